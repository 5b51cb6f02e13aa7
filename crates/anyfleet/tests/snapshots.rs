//! Requests that move: suspended at every token, resumed elsewhere, and nobody can tell.
mod common;

use anyfleet::{
    Engine, EngineBuilder, Error, Executor, GenerateRequest, RequestSnapshot, SamplingParams, StreamEvent,
    TokenLogprob, Tokenizer, Usage,
};
use anyfleet_conformance::rng::{Rng, seed_from_env};
use anyfleet_runtime::{Event, Request, Runtime, RuntimeOptions};
use common::fixtures_dir;
use std::collections::BTreeMap;

fn builder() -> EngineBuilder {
    Engine::builder(fixtures_dir().join("tiny-chat").to_string_lossy()).kv_cache_bytes(1 << 20).max_batch_tokens(64)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(fixtures_dir().join("tiny-chat")).expect("tokenizer")
}

/// What a caller has of a choice: text, tokens with the bits of their log-probabilities, and how it ended.
#[derive(Clone, Debug, Default, PartialEq)]
struct Choice {
    text: String,
    tokens: Vec<Entry>,
    end: Option<(String, Usage)>,
}

type Entry = (u32, u32, Vec<(u32, u32)>, usize);

fn entry(token: &TokenLogprob) -> Entry {
    let top = token.top.iter().map(|&(id, logprob)| (id, logprob.to_bits())).collect();
    (token.id, token.logprob.to_bits(), top, token.text_offset)
}

/// What a caller has of a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    prompt: Option<Vec<Entry>>,
    choices: BTreeMap<u32, Choice>,
}

impl Answer {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::PromptLogprobs { logprobs, .. } => {
                    assert!(self.prompt.replace(logprobs.iter().map(entry).collect()).is_none(), "the prompt, twice");
                }
                Event::Delta { choice, text, tokens, .. } => {
                    let seen = self.choices.entry(choice).or_default();
                    seen.text += &text;
                    seen.tokens.extend(tokens.iter().map(entry));
                }
                Event::Finished { choice, reason, usage, .. } => {
                    let end = (format!("{reason:?}"), usage);
                    let seen = self.choices.entry(choice).or_default();
                    assert!(seen.end.replace(end).is_none(), "choice {choice} ended twice");
                }
                Event::Failed { message, .. } => panic!("{message}"),
            }
        }
    }

    /// The snapshot a caller can make from what it has.
    fn ledger(&self, own: &RequestSnapshot) -> RequestSnapshot {
        let mut snapshot = RequestSnapshot { prompt_scored: self.prompt.is_some(), ..own.clone() };
        for (choice, state) in (0..).zip(&mut snapshot.choices) {
            let seen = self.choices.get(&choice).cloned().unwrap_or_default();
            state.tokens = seen.tokens.iter().map(|token| token.0).collect();
            state.held.clear();
            state.sent_bytes = seen.text.len();
            state.finished = seen.end.map(|(_, usage)| usage.completion_tokens);
        }
        snapshot
    }
}

/// A machine: its executor, and a runtime for each request, so that nothing is in its cache.
struct Machine {
    executor: Box<dyn Executor>,
    tokenizer: Tokenizer,
}

impl Machine {
    fn new(builder: &EngineBuilder) -> Self {
        Machine { executor: builder.executor().expect("executor"), tokenizer: tokenizer() }
    }

    fn runtime(&self) -> Runtime {
        let tokenizer = Some(self.tokenizer.clone());
        let options = RuntimeOptions { eos_token_ids: vec![3, 1], tokenizer, ..RuntimeOptions::default() };
        Runtime::new(self.executor.limits().clone(), options).expect("runtime")
    }

    /// At most so many steps.
    fn run(&mut self, runtime: &mut Runtime, answer: &mut Answer, steps: usize) {
        for _ in 0..steps {
            if !runtime.has_work() {
                return;
            }
            answer.take(runtime.step(&mut *self.executor));
        }
    }
}

/// Greedy and seeded sampling, penalties, min_tokens, stop strings, log-probabilities, several choices, scored prompts,
/// and text with characters of many tokens.
fn request(rng: &mut Rng, tokenizer: &Tokenizer) -> Request {
    let prompts =
        ["Say hello.", "What is the capital of", "naïve café", "日本", "1 2 3 4 5 6 7 8", "The quick brown fox"];
    let prompt = tokenizer.encode(rng.pick(&prompts), true).expect("ids");
    let byte = |c: &str| tokenizer.token_to_id(c).expect("a byte's token");
    let max_tokens = rng.range(1, 13) as u32;
    let stops = [" ", "e", "é", "\u{fffd}", "th", "a b"];
    // The bytes of é, or two that begin a character of three.
    let biases: [&[(u32, f32)]; 3] =
        [&[], &[(byte("Ã"), 9.0), (byte("©"), 9.0)], &[(byte("â"), 8.0), (byte("Ĥ"), 8.0)]];
    let bias = rng.pick(&biases);
    let stop: Vec<String> = (0..rng.pick(&[0, 0, 2])).map(|_| rng.pick(&stops).to_owned()).collect();
    let params = SamplingParams {
        temperature: rng.pick(&[0.0, 0.0, 0.7, 1.0, 2.0]),
        top_k: rng.pick(&[0, 0, 8]),
        top_p: rng.pick(&[1.0, 1.0, 0.9]),
        presence_penalty: rng.pick(&[0.0, 0.0, 1.5]),
        frequency_penalty: rng.pick(&[0.0, 0.0, 0.7]),
        repetition_penalty: rng.pick(&[1.0, 1.0, 1.3]),
        logit_bias: bias.to_vec(),
        seed: rng.pick(&[None, Some(7), Some(u64::MAX)]),
        n: rng.pick(&[1, 1, 2]),
        max_tokens: Some(max_tokens),
        min_tokens: rng.pick(&[0, 0, max_tokens / 2]),
        stop,
        include_stop_str_in_output: rng.pick(&[false, false, true]),
        ignore_eos: rng.pick(&[false, true, true]),
        logprobs: rng.pick(&[None, Some(0), Some(5)]),
        prompt_logprobs: rng.pick(&[None, None, Some(2)]),
        ..SamplingParams::default()
    };
    Request { prompt, params, ..Request::default() }
}

#[test]
fn a_request_that_moves_at_any_token_is_the_same_request() {
    let seed = seed_from_env().expect("ANYFLEET_SEED");
    println!("ANYFLEET_SEED={seed}");
    let mut rng = Rng::new(seed);
    // Another page size and another number of threads: not part of what decides the bits.
    let (mut here, mut there) = (Machine::new(&builder()), Machine::new(&builder().page_size(5).threads(1)));
    let (mut positions, mut moves) = (0, 0);
    for number in 0..50 {
        let mut request = request(&mut rng, &here.tokenizer);
        let seed = *request.params.seed.get_or_insert(number);
        let mut whole = Answer::default();
        let mut runtime = here.runtime();
        runtime.add(request.clone()).expect("accepted");
        here.run(&mut runtime, &mut whole, usize::MAX);
        let steps = 2 + request.params.max_tokens.unwrap_or(0) as usize * request.params.n as usize;
        for steps in 0..steps {
            for ledger in [false, true] {
                let mut answer = Answer::default();
                let mut runtime = here.runtime();
                let id = runtime.add(request.clone()).expect("accepted");
                here.run(&mut runtime, &mut answer, steps);
                let Some(own) = runtime.suspend(id).expect("no constraint") else { continue };
                assert!(!runtime.has_work(), "a suspended request has steps left");
                assert_eq!(own.params.seed, Some(seed));
                let snapshot = if ledger { answer.ledger(&own) } else { own };
                let snapshot = RequestSnapshot::from_json(snapshot.to_json().as_bytes()).expect("a snapshot");
                let mut runtime = there.runtime();
                let (_, first) = runtime.resume(snapshot, Vec::new()).expect("resumed");
                answer.take(first);
                there.run(&mut runtime, &mut answer, usize::MAX);
                assert_eq!(answer, whole, "request {number} {request:?}, after {steps} steps, ledger {ledger}");
                moves += 1;
            }
            positions += 1;
        }
    }
    println!("{moves} moves at {positions} positions of 50 requests");
    assert!(moves > 300, "{moves}");
}

#[test]
fn engines_hand_requests_over_while_both_run() {
    let engines = [builder().build().expect("here"), builder().page_size(3).build().expect("there")];
    let params = |seed| SamplingParams {
        temperature: 1.0,
        seed: Some(seed),
        max_tokens: Some(60),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let request = |seed| GenerateRequest::text("Say hello.").params(params(seed)).tenant("a");
    let expected: Vec<String> =
        (0..8).map(|seed| engines[0].generate(request(seed)).expect("answer").text().to_owned()).collect();
    std::thread::scope(|scope| {
        for (seed, expected) in (0..).zip(&expected) {
            let engines = &engines;
            scope.spawn(move || {
                let (mut at, mut text, mut moves) = (0, String::new(), 0);
                let mut stream = engines[at].stream(request(seed)).expect("accepted");
                loop {
                    match stream.next().expect("it ends with its end").expect("event") {
                        StreamEvent::Delta { text: new, .. } => {
                            text += &new;
                            // What comes before the suspension is still in the stream.
                            if moves < 5 && text.len() > moves * 9 {
                                engines[at].suspend(stream.id()).expect("an engine");
                                moves += 1;
                            }
                        }
                        StreamEvent::Suspended(snapshot) => {
                            at = 1 - at;
                            stream = engines[at].resume(*snapshot, Some("a".into())).expect("resumed");
                        }
                        StreamEvent::Finished { usage, .. } => {
                            assert_eq!(usage.completion_tokens, 60);
                            break;
                        }
                        StreamEvent::PromptLogprobs(_) => panic!("nobody asked for them"),
                    }
                }
                assert_eq!(&text, expected, "seed {seed}");
            });
        }
    });
}

#[test]
fn what_cannot_be_resumed_says_why() {
    let engine = builder().build().expect("engine");
    let stream = engine.stream(GenerateRequest::text("Say hello.").max_tokens(400)).expect("accepted");
    let snapshot = engine.suspend(stream.id()).expect("an engine").expect("it runs");
    assert_eq!(engine.suspend(stream.id()).expect("an engine"), None, "it is gone");
    assert_eq!(snapshot.identity, engine.info().identity);
    let refused = |change: &dyn Fn(&mut RequestSnapshot)| {
        let mut snapshot = snapshot.clone();
        change(&mut snapshot);
        match engine.resume(snapshot, None).map(|_| ()) {
            Err(Error::Request { message, .. }) => message,
            Err(Error::ContextLength { .. }) => "context".into(),
            other => panic!("{other:?}"),
        }
    };
    // Whether text is held back after the step it was suspended in is a matter of time.
    let chosen = |s: &mut RequestSnapshot, tokens: Vec<u32>| {
        (s.choices[0].tokens, s.choices[0].held) = (tokens, Vec::new());
    };
    type Change<'a> = (&'a str, &'a dyn Fn(&mut RequestSnapshot));
    let changes: [Change<'_>; 14] = [
        ("another model", &|s| s.identity.weights = "0123".into()),
        ("another tokenizer", &|s| s.identity.tokenizer = String::new()),
        ("another adapter", &|s| s.identity.adapter = "x".into()),
        ("seed", &|s| s.params.seed = None),
        ("max_tokens", &|s| s.params.max_tokens = None),
        ("choices", &|s| s.choices.clear()),
        ("of a vocabulary", &|s| chosen(s, vec![443])),
        ("its last tokens", &|s| s.choices[0].held = vec![TokenLogprob::default()]),
        ("at most 400", &|s| chosen(s, vec![5; 401])),
        ("which ended it", &|s| chosen(s, vec![5, 3, 5])),
        ("complete", &|s| s.choices[0].finished = Some(3)),
        ("empty", &|s| s.prompt.clear()),
        ("top_p", &|s| s.params.top_p = f32::NEG_INFINITY),
        ("context", &|s| s.prompt = vec![5; 4000]),
    ];
    for (word, change) in changes {
        let message = refused(change);
        assert!(message.contains(word) && !message.contains('\n'), "{word}: {message}");
    }
    let json = snapshot.to_json();
    let unread = |json: &str| RequestSnapshot::from_json(json.as_bytes()).expect_err(json).to_string();
    assert!(unread(&json.replacen("\"version\":1", "\"version\":2", 1)).contains("version 2"));
    assert!(unread(&json[1..]).contains("not a request snapshot"));
    assert!(unread(&json.replacen("\"prompt\"", "\"prompts\"", 1)).contains("prompts"));
    assert!(unread(&" ".repeat(RequestSnapshot::MAX_BYTES + 1)).contains("bytes"));
    // As it is, it goes on.
    engine.resume(snapshot, None).expect("resumed").for_each(|event| drop(event.expect("event")));
}
