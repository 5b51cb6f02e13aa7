//! The facade as a program sees it, on a tiny model with a tokenizer and a chat template.
mod common;

use anyfleet::{
    ChatInput, Constraint, Engine, EngineBuilder, Error, FinishReason, Gemm, GenerateRequest, SamplingParams,
    StopCause, StreamEvent, TokenStream,
};
use common::fixtures_dir;
use serde::Deserialize;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

fn builder() -> EngineBuilder {
    Engine::builder(fixtures_dir().join("tiny-chat").to_string_lossy()).kv_cache_bytes(2 << 20)
}

fn engine() -> Engine {
    builder().build().expect("tiny-chat")
}

#[derive(Deserialize)]
struct Expected {
    completions: Vec<Case>,
    chats: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    messages: serde_json::Value,
    #[serde(default)]
    rendered: String,
    prompt_ids: Vec<u32>,
    max_tokens: u32,
    text: String,
    finish_reason: String,
}

fn expected() -> Expected {
    let path = fixtures_dir().join("tiny-chat/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("expected.json")).expect("expected.json")
}

#[test]
fn text_and_chat_are_what_transformers_says() {
    let engine = engine();
    let check = |case: &Case, request: GenerateRequest| {
        let answer = engine.generate(request.max_tokens(case.max_tokens).temperature(0.0)).expect("answer");
        assert_eq!(answer.text(), case.text);
        assert_eq!(answer.choices[0].finish_reason.as_str(), case.finish_reason);
        assert_eq!(answer.choices[0].usage.prompt_tokens, case.prompt_ids.len());
    };
    let Expected { completions, chats } = expected();
    assert!(!completions.is_empty() && !chats.is_empty());
    for case in &completions {
        assert_eq!(engine.encode(&case.prompt, true).expect("ids"), case.prompt_ids);
        check(case, GenerateRequest::text(case.prompt.clone()));
    }
    for case in &chats {
        let text = engine.apply_chat_template(&ChatInput::new(&case.messages)).expect("rendered");
        assert_eq!(text, case.rendered);
        let ids = engine.encode(&text, false).expect("ids");
        assert_eq!(ids, case.prompt_ids);
        check(case, GenerateRequest::tokens(ids));
    }
}

/// tiny-chat with another `generation_config.json`.
fn with_generation_config(json: &str) -> Engine {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for entry in std::fs::read_dir(fixtures_dir().join("tiny-chat")).expect("fixture") {
        let path = entry.expect("entry").path();
        std::fs::copy(&path, dir.path().join(path.file_name().expect("name"))).expect("copy");
    }
    std::fs::write(dir.path().join("generation_config.json"), json).expect("write");
    Engine::builder(dir.path().to_string_lossy()).kv_cache_bytes(1 << 20).build().expect("engine")
}

#[test]
fn defaults_come_from_the_generation_config() {
    let sampled = with_generation_config(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#);
    let params = sampled.default_params();
    assert_eq!((params.temperature, params.top_k, params.top_p), (0.6, 20, 0.95));
    assert_eq!(with_generation_config(r#"{"do_sample": false}"#).default_params().temperature, 0.0);
    let absurd = with_generation_config(r#"{"temperature": 5.0}"#);
    assert_eq!(absurd.default_params(), SamplingParams::default());
    assert!(absurd.info().warnings.iter().any(|w| w.contains("temperature")), "{:?}", absurd.info().warnings);
}

#[test]
fn fast_products_change_nothing_on_the_cpu_and_say_so() {
    let plain = engine();
    let fast = builder().gemm(Gemm::Fast).build().expect("tiny-chat");
    assert_eq!(fast.info().identity.numerics_id, plain.info().identity.numerics_id);
    let notes = |engine: &Engine| engine.info().warnings.iter().filter(|w| w.starts_with("gemm fast changes")).count();
    assert_eq!((notes(&plain), notes(&fast)), (0, 1), "{:?}", fast.info().warnings);
}

#[test]
fn many_threads_share_one_engine() {
    let engine = engine();
    let ask = |i: u64| GenerateRequest::text(format!("thread {i}")).seed(i).temperature(0.8).max_tokens(24);
    let alone: Vec<String> = (0..16).map(|i| engine.generate(ask(i)).expect("alone").text().to_owned()).collect();
    std::thread::scope(|scope| {
        for (i, alone) in alone.iter().enumerate() {
            let engine = engine.clone();
            scope.spawn(move || assert_eq!(engine.generate(ask(i as u64)).expect("together").text(), alone));
        }
    });
}

#[test]
fn a_stream_is_the_completion_in_pieces() {
    let engine = engine();
    let request = GenerateRequest::text("Tell me").temperature(1.0).seed(3).max_tokens(40);
    let whole = engine.generate(request.clone()).expect("whole");
    let mut text = String::new();
    let mut finished = 0;
    for event in engine.stream(request).expect("stream") {
        match event.expect("event") {
            StreamEvent::Delta { text: piece, .. } => text.push_str(&piece),
            StreamEvent::Finished { reason, usage, .. } => {
                finished += 1;
                assert_eq!((&reason, usage), (&whole.choices[0].finish_reason, whole.choices[0].usage));
            }
            StreamEvent::PromptLogprobs(_) | StreamEvent::Suspended(_) => panic!("nobody asked for it"),
        }
    }
    assert_eq!((text.as_str(), finished), (whole.text(), 1));
}

#[test]
fn n_choices_are_the_seeds_own() {
    let engine = engine();
    let params = SamplingParams { n: 3, seed: Some(11), max_tokens: Some(12), ignore_eos: true, ..Default::default() };
    let ask = || engine.generate(GenerateRequest::text("Choose").params(params.clone())).expect("three");
    let (first, second) = (ask(), ask());
    assert_eq!(first.choices.len(), 3);
    assert_eq!(first, second);
    assert_ne!(first.choices[0].text, first.choices[1].text);
}

#[test]
fn a_dropped_stream_frees_its_pages() {
    let engine = engine();
    let params = SamplingParams { max_tokens: Some(1900), ignore_eos: true, ..Default::default() };
    let mut stream = engine.stream(GenerateRequest::text("Go on").params(params)).expect("stream");
    assert!(stream.next().is_some());
    assert!(engine.stats().groups.iter().any(|g| g.free + g.cached < g.pages));
    drop(stream);
    let deadline = Instant::now() + Duration::from_secs(20);
    while engine.stats().groups.iter().any(|g| g.free + g.cached < g.pages) {
        assert!(Instant::now() < deadline, "pages are still held: {:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(engine.stats().sequences_running, 0);
}

#[test]
fn a_step_that_runs_says_for_how_long() {
    let engine = engine();
    assert_eq!(engine.step_time(), None);
    let params = SamplingParams { max_tokens: Some(1900), ignore_eos: true, ..Default::default() };
    let stream = engine.stream(GenerateRequest::text("Go on").params(params)).expect("stream");
    let start = Instant::now();
    while engine.step_time().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no step was seen running");
    }
    drop(stream);
    while engine.stats().sequences_running > 0 || engine.step_time().is_some() {
        assert!(start.elapsed() < Duration::from_secs(60), "a step runs without a request");
    }
}

#[test]
fn refusals_are_one_line_each_and_say_what_is_allowed() {
    let engine = engine();
    let refuse = |request: GenerateRequest| engine.generate(request).expect_err("refused");
    let too_long = refuse(GenerateRequest::tokens(vec![5; 3000]));
    assert!(matches!(too_long, Error::ContextLength { prompt: 3000, .. }), "{too_long}");
    let text = refuse(GenerateRequest::text("word ".repeat(1_000_000)));
    assert!(matches!(text, Error::ContextLength { .. }), "{text}");
    let hot = refuse(GenerateRequest::text("x").temperature(9.0));
    assert!(matches!(&hot, Error::Request { param: Some(p), .. } if p == "temperature"), "{hot}");
    let unknown = refuse(GenerateRequest::tokens(vec![1, 1_000_000]));
    let empty = refuse(GenerateRequest::tokens(Vec::new()));
    let mut adapted = GenerateRequest::text("x");
    adapted.adapter = 7;
    let adapter = refuse(adapted);
    for error in [too_long, text, hot, unknown, empty, adapter] {
        assert!(!error.to_string().contains('\n') && !error.to_string().is_empty());
    }
}

#[test]
fn a_full_queue_refuses() {
    let engine = builder().max_num_seqs(1).max_queue(2).build().expect("engine");
    let params = SamplingParams { max_tokens: Some(1500), ignore_eos: true, ..Default::default() };
    let ask = || engine.stream(GenerateRequest::text("wait").params(params.clone()));
    let streams: Vec<_> = (0..6).map(|_| ask()).collect();
    let refused = streams.iter().filter(|s| matches!(s, Err(Error::QueueFull { waiting: 2 }))).count();
    assert!(refused >= 3, "{refused} of 6 were refused");
}

#[test]
fn shutdown_finishes_what_runs_and_refuses_the_rest() {
    let engine = engine();
    let running = engine.stream(GenerateRequest::text("last words").temperature(0.0).max_tokens(30)).expect("stream");
    engine.shutdown();
    assert!(matches!(engine.generate(GenerateRequest::text("late")), Err(Error::ShuttingDown)));
    let answer = running.collect_completion().expect("finished");
    assert!(matches!(answer.choices[0].finish_reason, FinishReason::Length | FinishReason::Stop(_)));
}

#[test]
fn dropping_the_engine_finishes_running_streams() {
    let stream = engine().stream(GenerateRequest::text("orphan").temperature(0.0).max_tokens(30)).expect("stream");
    assert!(!stream.collect_completion().expect("finished").choices.is_empty());
}

/// An async runtime of ten lines: the facade needs no other.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn the_async_side_needs_no_runtime_of_its_own() {
    use futures_core::Stream;
    let engine = engine();
    let request = GenerateRequest::text("async").temperature(0.0).max_tokens(16);
    let want = engine.generate(request.clone()).expect("blocking");
    let text = block_on(async {
        let mut stream: std::pin::Pin<Box<TokenStream>> = Box::pin(engine.stream_async(request).await.expect("stream"));
        let mut text = String::new();
        while let Some(event) = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await {
            if let StreamEvent::Delta { text: piece, .. } = event.expect("event") {
                text.push_str(&piece);
            }
        }
        text
    });
    assert_eq!(text, want.text());
}

/// Tokens that are even where `0` of them have been said, odd after the first, and so on; refuses to go past `most`.
#[derive(Clone)]
struct Alternating {
    said: u32,
    most: u32,
}

impl Constraint for Alternating {
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String> {
        if self.said < self.most {
            mask.fill(if self.said.is_multiple_of(2) { 0x5555_5555 } else { 0xaaaa_aaaa });
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token % 2, self.said % 2);
        self.said += 1;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn constraints_are_kept_to_by_the_device() {
    let engine = engine();
    let params = |n| SamplingParams { n, logprobs: Some(20), max_tokens: Some(12), ..SamplingParams::default() };
    let plain = |n| GenerateRequest::text("Hello").params(params(n)).seed(5);
    let unbound = plain(3);
    let alone = engine.generate(unbound.clone()).expect("an answer");
    let greedy = plain(1).temperature(0.0).constraint(Alternating { said: 0, most: 7 });
    let sampled = plain(4).temperature(1.5).constraint(Alternating { said: 0, most: 100 });
    let streams = [&unbound, &greedy, &sampled].map(|request| engine.stream(request.clone()).expect("accepted"));
    let [unbound, greedy, sampled] = streams.map(|stream| stream.collect_completion().expect("an answer"));
    assert_eq!(unbound, alone, "a request without a constraint, among others");
    let choice = &greedy.choices[0];
    assert_eq!((&choice.finish_reason, choice.tokens.len()), (&FinishReason::Stop(StopCause::Constraint), 7));
    for (i, token) in choice.tokens.iter().enumerate() {
        let best = token.top.iter().find(|(id, _)| *id as usize % 2 == i % 2).expect("one of twenty");
        assert_eq!(token.id, best.0, "token {i}");
    }
    let answers: Vec<Vec<u32>> = sampled.choices.iter().map(|c| c.tokens.iter().map(|t| t.id).collect()).collect();
    assert!(
        answers.iter().all(|ids| ids.len() >= 2 && ids.iter().enumerate().all(|(i, id)| *id as usize % 2 == i % 2))
    );
    assert!(answers.iter().any(|ids| *ids != answers[0]));
    // It may be over before it is to be suspended.
    let suspend =
        |_| engine.suspend(engine.stream(plain(4).constraint(Alternating { said: 0, most: 100 })).ok()?.id()).err();
    let refusal = (0..1000).find_map(suspend).expect("one that runs");
    assert!(
        matches!(&refusal, Error::Request { message, .. } if message.contains("a constraint has no snapshot")),
        "{refusal}"
    );
}
