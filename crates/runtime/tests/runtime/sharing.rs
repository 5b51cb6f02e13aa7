//! Which cached pages a request takes over, which it never does, and when pages are free again.

use crate::common::{Outcomes, alone, assert_no_leak, complete, finish, greedy, limits, request};
use anyfleet_runtime::null::{NullExecutor, NullOptions};
use anyfleet_runtime::{CacheKind, Executor, Limits, Request, Runtime, RuntimeOptions, SamplingParams};

const PAGE: usize = 4;

struct Engine {
    runtime: Runtime,
    executor: NullExecutor,
}

impl Engine {
    fn new(groups: &[(CacheKind, u32)], options: RuntimeOptions) -> Self {
        Engine::of(limits(PAGE as u32, groups), options)
    }

    fn of(limits: Limits, options: RuntimeOptions) -> Self {
        let executor = NullExecutor::new(limits.clone(), NullOptions::default());
        Engine { runtime: Runtime::new(limits, options).unwrap(), executor }
    }

    /// Runs a request, compares it with itself alone, and returns how many prompt tokens were cached.
    fn cached(&mut self, request: &Request) -> usize {
        let (id, outcomes) = complete(&mut self.runtime, &mut self.executor, request.clone());
        let groups = &self.executor.limits().cache.groups;
        let expected = alone(request, groups, &[], None);
        assert_eq!(outcomes.choice(id, 0).tokens, expected.choices.values().next().unwrap().tokens);
        assert_eq!(self.executor.violations(), [] as [String; 0]);
        assert_no_leak(&self.runtime);
        outcomes.choice(id, 0).usage.cached_prompt_tokens
    }
}

fn paged() -> Engine {
    Engine::new(&[(CacheKind::Paged, 32)], RuntimeOptions::default())
}

fn numbered(range: std::ops::Range<u32>) -> Vec<u32> {
    range.collect()
}

#[test]
fn whole_pages_are_shared_and_one_token_is_always_computed() {
    let mut engine = paged();
    let prompt = numbered(0..12);
    assert_eq!(engine.cached(&request(&prompt, greedy(1))), 0);
    assert_eq!(engine.cached(&request(&prompt, greedy(1))), 8);
    assert_eq!(engine.cached(&request(&numbered(0..13), greedy(1))), 12);
    assert_eq!(engine.cached(&request(&numbered(0..7), greedy(1))), 4);
    let mut other = prompt.clone();
    other[5] = 39;
    assert_eq!(engine.cached(&request(&other, greedy(1))), 4);
}

#[test]
fn generated_tokens_are_shared_with_the_next_turn() {
    let kinds = [&[(CacheKind::Paged, 32)][..], &[(CacheKind::Recurrent, 16)], &[(CacheKind::Window(3), 32)]];
    for (groups, steps_in_flight) in kinds.into_iter().flat_map(|groups| [(groups, 1), (groups, 2)]) {
        let limits = Limits { steps_in_flight, ..limits(PAGE as u32, groups) };
        let mut engine = Engine::of(limits, RuntimeOptions::default());
        let (id, outcomes) = complete(&mut engine.runtime, &mut engine.executor, request(&numbered(0..6), greedy(8)));
        let mut turn = numbered(0..6);
        turn.extend(outcomes.choice(id, 0).tokens.iter().map(|token| token.0));
        turn.push(1);
        // 13 of the 14 tokens were fed.
        assert_eq!(engine.cached(&request(&turn, greedy(1))), 12, "{groups:?}, {steps_in_flight} steps in flight");
    }
}

#[test]
fn tenants_and_adapters_share_nothing() {
    let mut engine = paged();
    let plain = request(&numbered(0..12), greedy(2));
    let tenant = |salt: &[u8]| Request { tenant_salt: salt.to_vec(), ..plain.clone() };
    assert_eq!(engine.cached(&tenant(b"a")), 0);
    assert_eq!(engine.cached(&tenant(b"b")), 0);
    assert_eq!(engine.cached(&plain), 0);
    assert_eq!(engine.cached(&Request { adapter: 1, ..tenant(b"a") }), 0);
    assert_eq!(engine.cached(&tenant(b"a")), 8);
    assert_eq!(engine.cached(&Request { adapter: 1, ..tenant(b"a") }), 8);
}

#[test]
fn without_a_prefix_cache_nothing_is_kept() {
    let options = RuntimeOptions { prefix_cache: false, ..RuntimeOptions::default() };
    let mut engine = Engine::new(&[(CacheKind::Paged, 32)], options);
    assert_eq!(engine.cached(&request(&numbered(0..12), greedy(2))), 0);
    assert_eq!(engine.cached(&request(&numbered(0..12), greedy(2))), 0);
    assert_eq!(engine.runtime.stats().groups[0].free, 32);
}

#[test]
fn scored_prompts_compute_every_row() {
    let mut engine = paged();
    let scored = request(&numbered(0..12), SamplingParams { prompt_logprobs: Some(1), ..greedy(1) });
    assert_eq!(engine.cached(&scored), 0);
    assert_eq!(engine.cached(&scored), 0);
    assert_eq!(engine.cached(&request(&numbered(0..12), greedy(1))), 8);
}

#[test]
fn choices_share_the_prompts_pages() {
    let mut engine = Engine::new(&[(CacheKind::Paged, 9)], RuntimeOptions::default());
    // 4 shared pages of prompt and 1 own page for each of 5 choices: without sharing, 25 pages.
    let params = SamplingParams { n: 5, seed: Some(7), max_tokens: Some(3), ..SamplingParams::default() };
    let (id, outcomes) = complete(&mut engine.runtime, &mut engine.executor, request(&numbered(0..17), params));
    let stats = engine.runtime.stats();
    assert_eq!((stats.preemptions, stats.prefix_hits), (0, 4 * 16));
    for choice in 0..5 {
        let usage = outcomes.choice(id, choice).usage;
        assert_eq!((usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens), (17, 0, 3));
    }
    let texts: std::collections::BTreeSet<Vec<u32>> =
        (0..5).map(|choice| outcomes.choice(id, choice).tokens.iter().map(|token| token.0).collect()).collect();
    assert!(texts.len() > 1, "all choices drew the same tokens");
}

#[test]
fn a_prefix_outlives_what_continues_it() {
    let mut engine = Engine::new(&[(CacheKind::Paged, 8)], RuntimeOptions::default());
    engine.cached(&request(&numbered(0..24), greedy(1)));
    // Takes the 2 free pages and 2 cached ones: the deepest two of the first prompt's six.
    engine.cached(&request(&numbered(20..36), greedy(1)));
    assert_eq!(engine.cached(&request(&numbered(0..24), greedy(1))), 16);
}

#[test]
fn a_window_gives_its_pages_back_as_it_moves() {
    let mut engine = Engine::new(&[(CacheKind::Window(6), 3)], RuntimeOptions::default());
    // 60 tokens through 3 pages of 4.
    assert_eq!(engine.cached(&request(&numbered(0..20), greedy(40))), 0);
    assert_eq!(engine.runtime.stats().preemptions, 0);
}

#[test]
fn a_window_needs_only_the_pages_it_covers_to_be_restored() {
    let mut engine = Engine::new(&[(CacheKind::Window(5), 4)], RuntimeOptions::default());
    assert_eq!(engine.cached(&request(&numbered(0..24), greedy(1))), 0);
    // The first pages of the prompt are long overwritten.
    assert_eq!(engine.cached(&request(&numbered(0..24), greedy(1))), 20);
    assert_eq!(engine.cached(&request(&numbered(0..9), greedy(1))), 0);
}

#[test]
fn a_hybrid_is_restored_where_every_group_can_be() {
    let groups = [(CacheKind::Paged, 64), (CacheKind::Window(8), 64), (CacheKind::Recurrent, 8)];
    let mut engine = Engine::new(&groups, RuntimeOptions::default());
    let prompt = |tail: u32| {
        let mut tokens = numbered(0..18);
        tokens.extend([tail; 9]);
        request(&tokens, greedy(1))
    };
    assert_eq!(engine.cached(&prompt(30)), 0);
    // The first left its state at 24 only; the second finds 16 tokens shared and leaves one there.
    assert_eq!(engine.cached(&prompt(30)), 24);
    assert_eq!(engine.cached(&prompt(31)), 0);
    assert_eq!(engine.cached(&prompt(32)), 16);
}

#[test]
fn a_cancelled_request_frees_its_pages_before_the_next_step() {
    let options = RuntimeOptions { prefix_cache: false, ..RuntimeOptions::default() };
    for steps_in_flight in [1, 2] {
        let mut limits = limits(4, &[(CacheKind::Paged, 16), (CacheKind::Recurrent, 4)]);
        limits.steps_in_flight = steps_in_flight;
        let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
        let mut runtime = Runtime::new(limits, options.clone()).unwrap();
        let mut outcomes = Outcomes::default();
        let dropped = runtime.add(request(&numbered(0..9), greedy(20))).unwrap();
        let kept = runtime.add(request(&numbered(5..10), greedy(20))).unwrap();
        (0..4).for_each(|_| outcomes.take(runtime.step(&mut executor)));
        let before = runtime.stats();
        runtime.cancel(dropped);
        runtime.check_invariants().unwrap();
        let after = runtime.stats();
        assert!(after.groups[0].free >= before.groups[0].free + 3 && after.groups[1].free == 3, "{after:?}");
        outcomes.over.push(dropped);
        finish(&mut runtime, &mut executor, &mut outcomes);
        assert_eq!(outcomes.choice(kept, 0).usage.completion_tokens, 20);
        assert_no_leak(&runtime);
        runtime.cancel(kept);
    }
}
