//! Answers that must have a form.

use crate::common::{
    Outcomes, VOCAB, alone, assert_no_leak, complete, finish, greedy, limits, request, roomy, tokenizer,
};
use anyfleet_runtime::null::{NullExecutor, NullOptions};
use anyfleet_runtime::{
    CacheKind, Constraint, FinishReason, GroupSpec, Limits, Request, RequestId, Runtime, RuntimeOptions,
    SamplingParams, StopCause,
};
use std::ops::Range;

/// Says from the answer so far which tokens may come next, and refuses one token.
#[derive(Clone)]
struct Rule {
    allowed: fn(&[u32]) -> Result<Range<u32>, String>,
    refused: Option<u32>,
    answer: Vec<u32>,
}

impl Constraint for Rule {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String> {
        assert!(mask.len() == VOCAB.div_ceil(32) as usize && mask.iter().all(|&word| word == 0));
        for token in (self.allowed)(&self.answer)? {
            mask[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert!((self.allowed)(&self.answer).unwrap().contains(&token), "{token} after {:?}", self.answer);
        self.answer.push(token);
        if self.refused == Some(token) { Err(format!("token {token} is refused")) } else { Ok(()) }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn ruled(prompt: &[u32], params: SamplingParams, allowed: fn(&[u32]) -> Result<Range<u32>, String>) -> Request {
    let rule = Rule { allowed, refused: None, answer: Vec::new() };
    Request { constraint: Some(Box::new(rule)), ..request(prompt, params) }
}

/// The test tokenizer's `0` to `9`.
const DIGITS: Range<u32> = 26..36;

fn small(steps_in_flight: usize) -> Limits {
    Limits { steps_in_flight, ..limits(4, &[(CacheKind::Paged, 16)]) }
}

fn runtime(limits: &Limits) -> (Runtime, NullExecutor) {
    let options = RuntimeOptions { eos_token_ids: vec![0], tokenizer: Some(tokenizer()), ..RuntimeOptions::default() };
    let executor = NullExecutor::new(limits.clone(), NullOptions::default());
    (Runtime::new(limits.clone(), options).unwrap(), executor)
}

fn ids(outcomes: &Outcomes, id: RequestId, choice: u32) -> Vec<u32> {
    outcomes.choice(id, choice).tokens.iter().map(|token| token.0).collect()
}

#[test]
fn only_digits_in_any_company() {
    for steps_in_flight in [1, 2] {
        let limits = small(steps_in_flight);
        let (mut runtime, mut executor) = runtime(&limits);
        let sampled = |seed: u32| SamplingParams {
            seed: Some(u64::from(seed)),
            max_tokens: Some(20),
            temperature: 2.0,
            frequency_penalty: if seed.is_multiple_of(5) { 0.5 } else { 0.0 },
            logprobs: Some(1),
            ..SamplingParams::default()
        };
        let requests: Vec<Request> = (0..24)
            .map(|i| match i % 3 {
                0 => request(&[i, 1, 2], sampled(i)),
                _ => ruled(&[i, 1, 2, 3], sampled(i), |_| Ok(DIGITS)),
            })
            .collect();
        let names: Vec<RequestId> = requests.iter().map(|request| runtime.add(request.clone()).unwrap()).collect();
        let mut outcomes = Outcomes::default();
        finish(&mut runtime, &mut executor, &mut outcomes);
        for (id, request) in names.iter().zip(&requests) {
            let expected = alone(request, &limits.cache.groups, &[0], Some(&tokenizer()));
            assert_eq!(outcomes.choice(*id, 0), expected.choice(RequestId(0), 0));
            let digits = outcomes.choice(*id, 0).text.chars().all(|c| c.is_ascii_digit());
            assert_eq!(digits, request.constraint.is_some(), "{}", outcomes.choice(*id, 0).text);
        }
        assert!(runtime.stats().preemptions > 0);
        assert_eq!(executor.violations(), [] as [String; 0]);
        assert_no_leak(&runtime);
    }
}

#[test]
fn each_choice_has_its_own_constraint() {
    let (mut runtime, mut executor) = runtime(&small(2));
    let params = SamplingParams { n: 3, seed: Some(1), max_tokens: Some(9), ..SamplingParams::default() };
    let alternating = |answer: &[u32]| match answer.len() % 2 {
        0 => Ok(5..6),
        _ => Ok(7..8),
    };
    let (id, outcomes) = complete(&mut runtime, &mut executor, ruled(&[1, 2], params, alternating));
    for choice in 0..3 {
        assert_eq!(ids(&outcomes, id, choice), [5, 7, 5, 7, 5, 7, 5, 7, 5]);
    }
    assert_eq!(executor.violations(), [] as [String; 0]);
}

#[test]
fn an_answer_ends_where_nothing_is_allowed() {
    let stopped = Some(FinishReason::Stop(StopCause::Constraint));
    let (mut runtime, mut executor) = runtime(&small(2));
    // Text that could begin a stop string is held back until then.
    let params = SamplingParams { stop: vec!["ab".into()], ..greedy(10) };
    let three = |answer: &[u32]| Ok(if answer.len() < 3 { 0..1 } else { VOCAB..VOCAB + 4 });
    let (id, outcomes) = complete(&mut runtime, &mut executor, ruled(&[1, 2], params, three));
    let choice = outcomes.choice(id, 0);
    assert_eq!((&choice.text[..], choice.tokens.len(), &choice.reason), ("aaa", 3, &stopped));
    assert_eq!(choice.usage.completion_tokens, 3);
    let (id, outcomes) = complete(&mut runtime, &mut executor, ruled(&[1, 2], greedy(10), |_| Ok(0..0)));
    let choice = outcomes.choice(id, 0);
    assert_eq!((&choice.text[..], choice.tokens.len(), &choice.reason), ("", 0, &stopped));
    assert_eq!(runtime.stats().generated_tokens, 3);
    assert_no_leak(&runtime);
}

#[test]
fn a_constraint_is_kept_to_where_parameters_ban_all_it_allows() {
    let (mut runtime, mut executor) = runtime(&small(1));
    let params = SamplingParams { min_tokens: 5, max_tokens: Some(9), ..SamplingParams::default() };
    let (id, outcomes) = complete(&mut runtime, &mut executor, ruled(&[1, 2], params, |_| Ok(0..1)));
    assert_eq!(outcomes.choice(id, 0).reason, Some(FinishReason::Stop(StopCause::Eos(0))));
}

#[test]
fn a_constraint_that_fails_fails_its_request_alone() {
    let (mut runtime, mut executor) = runtime(&small(2));
    let plain = request(&[3, 4], greedy(12));
    let other = runtime.add(plain.clone()).unwrap();
    let two = SamplingParams { n: 2, ..greedy(9) };
    let lost = |answer: &[u32]| if answer.len() < 2 { Ok(DIGITS) } else { Err("no way on".into()) };
    let asked = runtime.add(ruled(&[1, 2], two, lost)).unwrap();
    let rule = Rule { allowed: |_| Ok(9..10), refused: Some(9), answer: Vec::new() };
    let told = runtime.add(Request { constraint: Some(Box::new(rule)), ..request(&[1, 2], greedy(4)) }).unwrap();
    let mut outcomes = Outcomes::default();
    finish(&mut runtime, &mut executor, &mut outcomes);
    assert_eq!(outcomes.failed.len(), 2);
    assert_eq!(outcomes.failed[&asked], "its constraint failed: no way on");
    assert_eq!(outcomes.failed[&told], "its constraint failed: token 9 is refused");
    let expected = alone(&plain, &roomy(&[GroupSpec { kind: CacheKind::Paged, pages: 1 }]).cache.groups, &[0], None);
    assert_eq!(ids(&outcomes, other, 0), ids(&expected, RequestId(0), 0));
    assert_no_leak(&runtime);
}

#[test]
fn no_snapshot_of_a_constraint() {
    let (mut runtime, mut executor) = runtime(&small(1));
    let id = runtime.add(ruled(&[1, 2], greedy(4), |_| Ok(DIGITS))).unwrap();
    let mut outcomes = Outcomes::default();
    outcomes.take(runtime.step(&mut executor));
    let error = runtime.suspend(id).unwrap_err();
    assert!(error.to_string().starts_with("a request with a constraint has no snapshot"), "{error}");
    finish(&mut runtime, &mut executor, &mut outcomes);
    assert_eq!(outcomes.choice(id, 0).tokens.len(), 4, "it went on");
}
