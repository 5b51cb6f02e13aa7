//! How a choice ends, and which text and tokens go out when.

use crate::common::{Scripted, complete, greedy, limits, request, tokenizer};
use anyfleet_runtime::{CacheKind, Event, FinishReason, Runtime, RuntimeOptions, SamplingParams, StopCause};

const EOS: u32 = 25; // "z"

/// Ids of a text over the test tokenizer's alphabet; "1" to "9" and letters are single tokens.
fn ids(text: &str) -> Vec<u32> {
    text.chars()
        .map(|c| match c {
            'a'..='z' => c as u32 - 'a' as u32,
            '0'..='9' => c as u32 - '0' as u32 + 26,
            // The two bytes of "é".
            'Ã' => 36,
            '©' => 37,
            _ => 39,
        })
        .collect()
}

fn runtime(with_text: bool) -> (Runtime, anyfleet_runtime::Limits) {
    let limits = limits(4, &[(CacheKind::Paged, 32)]);
    let options =
        RuntimeOptions { eos_token_ids: vec![EOS], tokenizer: with_text.then(tokenizer), ..RuntimeOptions::default() };
    (Runtime::new(limits.clone(), options).unwrap(), limits)
}

/// Generates a script after the prompt "p" and returns text, token ids, reason and completion tokens.
fn generate(script: &str, params: SamplingParams) -> (String, Vec<u32>, FinishReason, usize) {
    let (mut runtime, limits) = runtime(true);
    let mut executor = Scripted::new(limits, 1, &ids(script));
    let (id, outcomes) = complete(&mut runtime, &mut executor, request(&ids("p"), params));
    let choice = outcomes.choice(id, 0);
    let tokens = choice.tokens.iter().map(|token| token.0).collect();
    (choice.text.clone(), tokens, choice.reason.clone().unwrap(), choice.usage.completion_tokens)
}

fn up_to(max_tokens: u32) -> SamplingParams {
    SamplingParams { ignore_eos: false, ..greedy(max_tokens) }
}

fn stopped(string: &str) -> FinishReason {
    FinishReason::Stop(StopCause::String(string.into()))
}

#[test]
fn max_tokens_is_a_length() {
    assert_eq!(generate("abcdef", up_to(3)), ("abc".into(), ids("abc"), FinishReason::Length, 3));
}

#[test]
fn an_end_of_sequence_token_has_no_text_and_no_entry_but_counts() {
    let reason = FinishReason::Stop(StopCause::Eos(EOS));
    assert_eq!(generate("abzcd", up_to(5)), ("ab".into(), ids("ab"), reason.clone(), 3));
    let kept = SamplingParams { include_stop_str_in_output: true, ..up_to(5) };
    assert_eq!(generate("abzcd", kept), ("abz".into(), ids("abz"), reason, 3));
    assert_eq!(generate("abzcd", greedy(5)), ("abzcd".into(), ids("abzcd"), FinishReason::Length, 5));
}

#[test]
fn a_stop_token_ends_even_where_end_of_sequence_does_not() {
    let params = SamplingParams { stop_token_ids: ids("c"), ..greedy(5) };
    let reason = FinishReason::Stop(StopCause::TokenId(ids("c")[0]));
    assert_eq!(generate("azcde", params), ("az".into(), ids("az"), reason, 3));
}

#[test]
fn a_stop_string_across_tokens_is_cut_with_its_tokens() {
    let params = SamplingParams { stop: vec!["xyz".into(), "cd".into()], ..up_to(9) };
    assert_eq!(generate("abcdef", params.clone()), ("ab".into(), ids("ab"), stopped("cd"), 4));
    let kept = SamplingParams { include_stop_str_in_output: true, ..params };
    assert_eq!(generate("abcdef", kept), ("abcd".into(), ids("abcd"), stopped("cd"), 4));
}

#[test]
fn text_held_back_for_a_stop_string_is_not_lost() {
    let params = SamplingParams { stop: vec!["cdq".into()], ..up_to(4) };
    assert_eq!(generate("abcd", params.clone()), ("abcd".into(), ids("abcd"), FinishReason::Length, 4));
    let reason = FinishReason::Stop(StopCause::Eos(EOS));
    assert_eq!(generate("cdz", params), ("cd".into(), ids("cd"), reason, 3));
}

#[test]
fn stops_are_not_looked_for_before_min_tokens() {
    let params = SamplingParams { stop: vec!["b".into()], min_tokens: 3, ..up_to(6) };
    assert_eq!(generate("abcab", params), ("abca".into(), ids("abca"), stopped("b"), 5));
}

#[test]
fn min_tokens_bans_what_would_end_the_choice() {
    let (mut runtime, limits) = runtime(false);
    let mut executor = Scripted::new(limits, 1, &ids("bcde"));
    let params = SamplingParams { min_tokens: 2, stop_token_ids: ids("qa"), ..up_to(4) };
    complete(&mut runtime, &mut executor, request(&ids("p"), params));
    let banned = |batch: &anyfleet_runtime::Batch| {
        batch.adjust.iter().filter(|entry| entry.banned).map(|entry| entry.token).collect::<Vec<_>>()
    };
    let banned: Vec<Vec<u32>> = executor.batches.iter().map(banned).collect();
    assert_eq!(banned, [ids("aqz"), ids("aqz"), vec![], vec![]]);
}

#[test]
fn a_character_never_comes_in_halves() {
    let (mut runtime, limits) = runtime(true);
    let mut executor = Scripted::new(limits, 1, &ids("aÃ©bÃ"));
    runtime.add(request(&ids("p"), greedy(5))).unwrap();
    let mut deltas = Vec::new();
    while runtime.has_work() {
        for event in runtime.step(&mut executor) {
            if let Event::Delta { text, tokens, .. } = event {
                let tokens: Vec<(u32, usize)> = tokens.iter().map(|token| (token.id, token.text_offset)).collect();
                deltas.push((text, tokens));
            }
        }
    }
    let expected = [
        ("a".into(), vec![(0, 0)]),
        // Both halves go out with the character they make, at its offset.
        ("é".into(), vec![(36, 1), (37, 1)]),
        ("b".into(), vec![(1, 2)]),
        ("\u{fffd}".into(), vec![(36, 3)]),
    ];
    assert_eq!(deltas, expected);
}

#[test]
fn tokens_wait_for_their_text() {
    let (mut runtime, limits) = runtime(true);
    let mut executor = Scripted::new(limits, 1, &ids("acdbe"));
    let params = SamplingParams { stop: vec!["cdq".into()], ..greedy(5) };
    runtime.add(request(&ids("p"), params)).unwrap();
    let mut deltas = Vec::new();
    while runtime.has_work() {
        for event in runtime.step(&mut executor) {
            if let Event::Delta { text, tokens, .. } = event {
                deltas.push((text, tokens.len()));
            }
        }
    }
    assert_eq!(deltas, [("a".into(), 1), ("cdb".into(), 3), ("e".to_string(), 1)]);
}

#[test]
fn without_a_tokenizer_tokens_go_out_at_once_and_stop_strings_are_refused() {
    let (mut runtime, limits) = runtime(false);
    let mut executor = Scripted::new(limits, 1, &ids("aÃz"));
    let (id, outcomes) = complete(&mut runtime, &mut executor, request(&ids("p"), up_to(9)));
    let choice = outcomes.choice(id, 0);
    assert_eq!((choice.text.as_str(), choice.tokens.len(), choice.usage.completion_tokens), ("", 2, 3));
    let params = SamplingParams { stop: vec!["a".into()], ..up_to(9) };
    let error = runtime.add(request(&ids("p"), params)).unwrap_err().to_string();
    assert!(error.starts_with("stop: ") && error.contains("tokenizer"), "{error}");
}

#[test]
fn zero_tokens_score_the_prompt_and_end() {
    let (mut runtime, limits) = runtime(true);
    let mut executor = Scripted::new(limits, 1, &[]);
    let params = SamplingParams { prompt_logprobs: Some(2), ..up_to(0) };
    let (id, outcomes) = complete(&mut runtime, &mut executor, request(&ids("prompt"), params));
    let choice = outcomes.choice(id, 0);
    assert_eq!((choice.tokens.len(), choice.reason.clone()), (0, Some(FinishReason::Length)));
    let prompt = &outcomes.prompts[&id];
    assert_eq!(prompt.iter().map(|token| token.0).collect::<Vec<_>>(), ids("rompt"));
    assert!(prompt.iter().all(|token| token.2.len() == 2));
}
