//! The stop-string matcher against a naive search of the whole text.

use anyfleet_text::StopStrings;
use proptest::prelude::*;

/// The stop string that completes first in `text`, the longest of several: (start, end, index).
fn naive(text: &str, stops: &[String]) -> Option<(usize, usize, usize)> {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    ends.filter_map(|end| {
        stops
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.is_empty() && text[..end].ends_with(s.as_str()))
            .max_by_key(|(i, s)| (s.len(), std::cmp::Reverse(*i)))
            .map(|(i, s)| (end - s.len(), end, i))
    })
    .next()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn equals_a_naive_search(
        whole in "[ab é✨]{0,24}",
        stops in prop::collection::vec("[ab é✨]{0,5}", 0..4),
        cuts in prop::collection::vec(0usize..6, 0..30),
        include in any::<bool>(),
    ) {
        let mut matcher = StopStrings::new(&stops, include);
        let (mut emitted, mut found) = (String::new(), None);
        let mut rest = whole.as_str();
        let mut cuts = cuts.into_iter();
        let longest = stops.iter().map(String::len).max().unwrap_or(0);
        while !rest.is_empty() && found.is_none() {
            let n = cuts.next().unwrap_or(3);
            let cut = rest.char_indices().nth(n).map_or(rest.len(), |(at, _)| at);
            let (text, matched) = matcher.push(&rest[..cut]);
            emitted += &text;
            found = matched;
            rest = &rest[cut..];
            // No more is held back than a stop string short of one byte.
            prop_assert!(found.is_some() || emitted.len() + longest.max(1) > whole.len() - rest.len());
        }
        let last = matcher.finish();
        match naive(&whole, &stops) {
            Some((start, end, index)) => {
                prop_assert_eq!(found, Some(index));
                prop_assert_eq!(emitted, &whole[..if include { end } else { start }]);
                prop_assert_eq!(last, "");
            }
            None => {
                prop_assert_eq!(found, None);
                prop_assert_eq!(emitted + &last, whole);
            }
        }
    }
}

#[test]
fn text_after_a_match_is_dropped() {
    let mut stops = StopStrings::new(["END"], false);
    assert_eq!(stops.push("a E"), ("a ".to_string(), None));
    assert_eq!(stops.push("ND b"), (String::new(), Some(0)));
    assert_eq!(stops.push("more"), (String::new(), Some(0)));
    assert_eq!((stops.finish(), stops.matched()), (String::new(), Some(0)));
}
