//! Who runs when, who is refused, and what a failing device does.

use crate::common::{
    Outcomes, Scripted, VOCAB, alone, assert_no_leak, complete, finish, greedy, limits, request, tokenizer,
};
use anyfleet_runtime::null::{NullExecutor, NullOptions};
use anyfleet_runtime::{
    AddError, Batch, CacheKind, Event, Executor, ExecutorError, FinishReason, Limits, Request, RequestId, Runtime,
    RuntimeOptions, SamplingParams, StepOutput, TokenSource,
};

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| (seed * 7 + i * 11 + i * i * seed) % VOCAB).collect()
}

#[test]
fn sixty_four_streams_share_sixteen_pages() {
    for steps_in_flight in [1, 2] {
        let limits = Limits { steps_in_flight, ..limits(4, &[(CacheKind::Paged, 16)]) };
        let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
        let options = RuntimeOptions { tokenizer: Some(tokenizer()), ..RuntimeOptions::default() };
        let mut runtime = Runtime::new(limits.clone(), options).unwrap();
        let requests: Vec<Request> = (0..64)
            .map(|i| {
                let params = SamplingParams { seed: Some(u64::from(i)), ..SamplingParams::default() };
                request(&prompt(i, 1 + i % 9), SamplingParams { max_tokens: Some(24), logprobs: Some(2), ..params })
            })
            .collect();
        let ids: Vec<RequestId> = requests.iter().map(|request| runtime.add(request.clone()).unwrap()).collect();
        let mut outcomes = Outcomes::default();
        finish(&mut runtime, &mut executor, &mut outcomes);
        for (id, request) in ids.iter().zip(&requests) {
            let expected = alone(request, &limits.cache.groups, &[], Some(&tokenizer()));
            assert_eq!(outcomes.choice(*id, 0), expected.choice(RequestId(0), 0));
        }
        assert!(runtime.stats().preemptions > 0);
        assert_eq!(executor.violations(), [] as [String; 0]);
        assert_no_leak(&runtime);
    }
}

#[test]
fn decodes_go_on_while_a_long_prompt_is_computed() {
    let limits = Limits { max_tokens: 8, ..limits(4, &[(CacheKind::Paged, 64)]) };
    let mut executor = Scripted::new(limits.clone(), 2, &[1; 64]);
    let mut runtime = Runtime::new(limits, RuntimeOptions::default()).unwrap();
    let short = runtime.add(request(&prompt(1, 2), greedy(30))).unwrap();
    runtime.step(&mut executor);
    executor.script = vec![1; 256];
    runtime.add(request(&prompt(2, 40), greedy(1))).unwrap();
    for _ in 0..5 {
        let events = runtime.step(&mut executor);
        let rows: Vec<u32> = executor.batches.last().unwrap().sequences.iter().map(|rows| rows.rows).collect();
        assert_eq!(rows, [1, 7], "a decode and as much of the prompt as there is room for");
        assert!(matches!(&events[..], [Event::Delta { request, .. }] if *request == short));
    }
}

#[test]
fn prompts_are_computed_in_chunks_in_order_of_arrival() {
    let limits = Limits { max_tokens: 16, ..limits(4, &[(CacheKind::Paged, 64)]) };
    let mut executor = Scripted::new(limits.clone(), 0, &[1; 64]);
    let options = RuntimeOptions { max_prefill_chunk: Some(6), ..RuntimeOptions::default() };
    let mut runtime = Runtime::new(limits, options).unwrap();
    (1..5).for_each(|i| assert!(runtime.add(request(&prompt(i, 10), greedy(1))).is_ok()));
    runtime.step(&mut executor);
    runtime.step(&mut executor);
    let rows = |batch: &Batch| batch.sequences.iter().map(|rows| rows.rows).collect::<Vec<_>>();
    assert_eq!(executor.batches.iter().map(rows).collect::<Vec<_>>(), [vec![6, 6, 4], vec![4, 4, 6, 2]]);
}

#[test]
fn the_queue_is_bounded_and_cancelling_makes_room() {
    let limits = limits(4, &[(CacheKind::Paged, 16)]);
    let options = RuntimeOptions { max_queue: 2, max_num_seqs: 1, ..RuntimeOptions::default() };
    let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
    let mut runtime = Runtime::new(limits, options).unwrap();
    let plain = request(&[1, 2], greedy(2));
    runtime.add(plain.clone()).unwrap();
    runtime.add(plain.clone()).unwrap();
    assert_eq!(runtime.add(plain.clone()), Err(AddError::QueueFull { max_queue: 2 }));
    runtime.step(&mut executor);
    let waiting = runtime.add(plain.clone()).unwrap();
    assert_eq!(runtime.stats().requests_waiting, 2);
    assert!(runtime.add(plain.clone()).is_err());
    runtime.cancel(waiting);
    runtime.add(plain).unwrap();
    finish(&mut runtime, &mut executor, &mut Outcomes::default());
}

#[test]
fn what_can_never_run_is_refused_with_what_could() {
    let mut runtime =
        Runtime::new(Limits { max_model_len: 64, ..limits(4, &[(CacheKind::Paged, 4)]) }, RuntimeOptions::default())
            .unwrap();
    let sized = |tokens: u32, max| request(&prompt(1, tokens), SamplingParams { max_tokens: max, ..greedy(1) });
    let never = AddError::NeverFits { prompt_tokens: 10, max_tokens: 8, capacity_tokens: 17 };
    assert_eq!(runtime.add(sized(10, Some(8))), Err(never));
    let long = AddError::ContextTooLong { prompt_tokens: 60, max_tokens: 5, max_model_len: 64 };
    assert_eq!(runtime.add(sized(60, Some(5))), Err(long));
    assert_eq!(
        runtime.add(sized(64, None)).unwrap_err().to_string().split(':').next(),
        Some("the model's context is 64 tokens, but 64 prompt tokens and 1 new tokens were asked for")
    );
    assert_eq!(runtime.add(request(&[], greedy(1))), Err(AddError::EmptyPrompt));
    let outside = AddError::TokenOutOfVocab { index: 1, id: 40, vocab_size: 40 };
    assert_eq!(runtime.add(request(&[1, 40], greedy(1))), Err(outside));
    let invalid = runtime.add(request(&[1], SamplingParams { n: 0, ..greedy(1) }));
    assert!(matches!(invalid, Err(AddError::InvalidParam(error)) if error.param == "n"));
    assert!(!runtime.has_work());
    assert!(runtime.add(sized(10, Some(7))).is_ok());
    assert!(runtime.add(sized(16, None)).is_ok());
    assert!(runtime.add(sized(17, Some(0))).is_err());
    assert!(runtime.add(sized(16, Some(0))).is_ok());
}

#[test]
fn without_max_tokens_a_choice_ends_at_the_models_length_or_the_caches() {
    for (max_model_len, pages, tokens) in [(20, 64, 20), (100, 4, 17)] {
        let limits = Limits { max_model_len, ..limits(4, &[(CacheKind::Paged, pages)]) };
        let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
        let mut runtime = Runtime::new(limits, RuntimeOptions::default()).unwrap();
        assert_eq!(runtime.max_sequence_len(), tokens);
        let unbounded = request(&[1, 2, 3], SamplingParams { max_tokens: None, ..greedy(1) });
        let (id, outcomes) = complete(&mut runtime, &mut executor, unbounded);
        let choice = outcomes.choice(id, 0);
        assert_eq!((choice.usage.completion_tokens, choice.reason.clone()), (tokens - 3, Some(FinishReason::Length)));
    }
}

#[test]
fn limits_with_which_nothing_runs_are_refused() {
    let broken = Limits { max_sequences: 0, ..limits(4, &[(CacheKind::Paged, 4)]) };
    let error = Runtime::new(broken, RuntimeOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), "sequences per step must be at least 1");
    let error = Runtime::new(limits(4, &[(CacheKind::Paged, 0)]), RuntimeOptions::default()).err().unwrap();
    assert_eq!(error.to_string(), "the number of pages of a cache group must be at least 1");
}

#[test]
fn a_failed_step_fails_its_requests_and_the_runtime_lives_on() {
    for (submit, wait) in [(vec![3], vec![]), (vec![], vec![3])] {
        let limits = Limits { max_sequences: 2, steps_in_flight: 2, ..limits(4, &[(CacheKind::Paged, 16)]) };
        let faults = NullOptions { fail_submit: submit, fail_wait: wait, ..NullOptions::default() };
        let mut executor = NullExecutor::new(limits.clone(), faults);
        let mut runtime = Runtime::new(limits.clone(), RuntimeOptions::default()).unwrap();
        let requests: Vec<Request> = (0..4).map(|i| request(&prompt(i, 9), greedy(8))).collect();
        let ids: Vec<RequestId> = requests.iter().map(|request| runtime.add(request.clone()).unwrap()).collect();
        let mut outcomes = Outcomes::default();
        finish(&mut runtime, &mut executor, &mut outcomes);
        assert_eq!(outcomes.failed.keys().copied().collect::<Vec<_>>(), ids[..2]);
        assert!(outcomes.failed[&ids[0]].starts_with("the device failed: injected"));
        for (id, request) in ids.iter().zip(&requests).skip(2) {
            let expected = alone(request, &limits.cache.groups, &[], None);
            assert_eq!(outcomes.choice(*id, 0), expected.choice(RequestId(0), 0));
        }
        assert_eq!(runtime.stats().failed_steps, 1);
        assert_no_leak(&runtime);
    }
}

/// Answers with too little, or with a token that does not exist.
struct Broken(NullExecutor, StepOutput, bool);

impl Executor for Broken {
    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        self.0.submit(batch)
    }

    fn wait(&mut self) -> Result<&StepOutput, ExecutorError> {
        self.1.clone_from(self.0.wait()?);
        match self.2 {
            true => self.1.ids.fill(1000),
            false => self.1.ids.clear(),
        }
        Ok(&self.1)
    }
}

#[test]
fn an_output_that_makes_no_sense_is_a_failed_step() {
    for (out_of_range, message) in [(true, "token 1000"), (false, "[0, 1, 20, 20]")] {
        let mut executor = Broken(NullExecutor::small(), StepOutput::default(), out_of_range);
        let mut runtime = Runtime::new(executor.limits().clone(), RuntimeOptions::default()).unwrap();
        let (id, outcomes) = complete(&mut runtime, &mut executor, request(&[1, 2], greedy(2)));
        assert!(outcomes.failed[&id].contains(message), "{:?}", outcomes.failed);
        assert_no_leak(&runtime);
    }
}

fn sources(params: SamplingParams) -> (Vec<TokenSource>, usize) {
    let limits = Limits { steps_in_flight: 2, ..limits(4, &[(CacheKind::Paged, 16)]) };
    let script = [5, 6, 7, 8, 9, 10, 11];
    let mut executor = Scripted::new(limits.clone(), 2, &script);
    let mut runtime = Runtime::new(limits, RuntimeOptions { eos_token_ids: vec![8], ..Default::default() }).unwrap();
    let (id, outcomes) = complete(&mut runtime, &mut executor, request(&[1, 2], params));
    let decodes = executor.batches.iter().skip(1).map(|batch| batch.tokens[0]);
    (decodes.collect(), outcomes.choice(id, 0).usage.completion_tokens)
}

#[test]
fn decodes_run_ahead_of_their_input_where_only_the_device_needs_it() {
    let ahead = TokenSource::SampledBy(0);
    // The last token's row is known to be the last, so nothing runs past it.
    assert_eq!(sources(greedy(4)), (vec![ahead; 3], 4));
    // An end-of-sequence token is not foreseen: one surplus row runs, and its token is dropped.
    assert_eq!(sources(SamplingParams { ignore_eos: false, ..greedy(7) }), (vec![ahead; 4], 4));
    // Penalties need the host to have seen the token.
    let penalised = SamplingParams { presence_penalty: 1.0, ..greedy(4) };
    assert_eq!(sources(penalised), ([5, 6, 7].map(TokenSource::Id).to_vec(), 4));
    let biased = SamplingParams { logit_bias: vec![(3, 1.0)], ..greedy(4) };
    assert_eq!(sources(biased), (vec![ahead; 3], 4));
}

#[test]
fn who_waits_for_a_token_is_not_left_behind() {
    let limits = Limits { steps_in_flight: 2, ..limits(4, &[(CacheKind::Paged, 64)]) };
    for (first, second) in [(0.0, 1.0), (1.0, 1.0)] {
        let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
        // The second prompt takes two steps.
        let options = RuntimeOptions { max_prefill_chunk: Some(6), ..RuntimeOptions::default() };
        let mut runtime = Runtime::new(limits.clone(), options).unwrap();
        let penalised = |presence_penalty| SamplingParams { presence_penalty, ..greedy(20) };
        runtime.add(request(&prompt(1, 6), penalised(first))).unwrap();
        runtime.add(request(&prompt(2, 12), penalised(second))).unwrap();
        finish(&mut runtime, &mut executor, &mut Outcomes::default());
        // Two of prefill, and a step for each of the second's tokens after the first: not every other.
        let steps = runtime.stats().steps;
        assert!(steps <= 23, "{steps} steps for 20 tokens of two sequences");
    }
}

#[test]
fn a_request_without_a_seed_gets_one_of_its_own() {
    let mut seeds = Vec::new();
    for _ in 0..2 {
        let mut executor = Scripted::new(limits(4, &[(CacheKind::Paged, 16)]), 1, &[1, 2]);
        let mut runtime = Runtime::new(executor.limits().clone(), RuntimeOptions::default()).unwrap();
        (0..2).for_each(|_| assert!(runtime.add(request(&[1], SamplingParams { seed: None, ..greedy(1) })).is_ok()));
        runtime.step(&mut executor);
        seeds.extend(executor.batches[0].logit_rows.iter().map(|row| row.seed));
    }
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(seeds.len(), 4);
}

#[test]
fn a_runtime_can_move_to_its_engines_thread() {
    fn needs_send<T: Send>() {}
    needs_send::<Runtime>();
}
