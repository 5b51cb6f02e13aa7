//! Checks of regular expressions.
//!
//! A pattern without look-around or back-references runs in linear time. One with them backtracks, and
//! the library gives up after a million steps *per match* and then silently leaves the rest of the text
//! unsplit. A pattern that needs exponential backtracking shows it on short repetitive texts, so it is
//! tried on some, with a budget that ordinary patterns use a hundredth of.

use fancy_regex::{Error, Regex, RegexBuilder, RuntimeError};

/// Published patterns have up to about 1 KB.
const MAX_PATTERN: usize = 16 << 10;
/// Compiled size; GPT-4's pattern needs less than 1 MB.
const MAX_COMPILED: usize = 10 << 20;
/// Backtracking steps for one match in a text of [`PROBE`] characters.
const MAX_STEPS: usize = 20_000;
const PROBE: usize = 64;

/// Checks a pattern; returns whether it can match the empty string (as far as the probes show).
pub(crate) fn check(pattern: &str) -> Result<bool, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("its pattern is {} bytes long, the limit is {MAX_PATTERN}", pattern.len()));
    }
    let regex = RegexBuilder::new(pattern)
        .backtrack_limit(MAX_STEPS)
        .delegate_size_limit(MAX_COMPILED)
        .build()
        .map_err(|e| format!("its pattern is not a regular expression: {e}"))?;
    let mut matches_empty = false;
    for text in probes(pattern) {
        matches_empty |= run(&regex, &text)?;
    }
    Ok(matches_empty)
}

/// Finds all matches; returns whether one was empty.
fn run(regex: &Regex, text: &str) -> Result<bool, String> {
    let mut empty = false;
    for found in regex.find_iter(text) {
        match found {
            Ok(found) => empty |= found.start() == found.end(),
            Err(Error::RuntimeError(RuntimeError::BacktrackLimitExceeded)) => {
                return Err(format!(
                    "its pattern backtracks more than {MAX_STEPS} steps on {PROBE} characters, which would \
                     take for ever on a long text"
                ));
            }
            Err(e) => return Err(format!("its pattern fails: {e}")),
        }
    }
    Ok(empty)
}

/// Repetitions of single characters, each with and without an end that breaks the pattern: the usual
/// character classes, and every letter or digit of the pattern itself.
fn probes(pattern: &str) -> Vec<String> {
    let mut units: Vec<String> =
        ["a", "A", "1", " ", "\n", "\r\n", "\t", "!", "_", "'", "é", "中", "\u{301}", "aB", "a ", "1a", "a'", "!\n"]
            .map(String::from)
            .into();
    for c in pattern.chars().filter(|c| c.is_alphanumeric()).take(256) {
        let unit = c.to_string();
        if !units.contains(&unit) {
            units.push(unit);
        }
    }
    let mut texts = vec![String::new()];
    for unit in units {
        let run = unit.repeat(PROBE / unit.chars().count());
        for end in ["!", "\u{0}"] {
            texts.push(format!("{run}{end}"));
        }
        texts.push(run);
    }
    texts
}
