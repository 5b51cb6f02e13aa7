//! What the tests share: a tokenizer, running requests to the end, collecting what came of them.
use anyfleet_runtime::null::{NullExecutor, NullOptions};
use anyfleet_runtime::{
    Batch, CacheKind, CacheSpec, Event, Executor, ExecutorError, FinishReason, GroupSpec, Identity, Limits, Request,
    RequestId, RequestSnapshot, Runtime, RuntimeOptions, SampleMode, SamplingParams, StepOutput, TokenLogprob, Usage,
};
use anyfleet_text::Tokenizer;
use std::collections::BTreeMap;

pub const VOCAB: u32 = 40;

/// A byte-level tokenizer of 40 tokens: letters, digits, and halves of two-byte characters, so that
/// random ids make characters that span tokens as well as broken ones.
pub fn tokenizer() -> Tokenizer {
    let pieces = "abcdefghijklmnopqrstuvwxyz0123456789Ã©Ġ!".chars();
    let vocab: Vec<String> = pieces.enumerate().map(|(id, piece)| format!("\"{piece}\": {id}")).collect();
    assert_eq!(vocab.len(), VOCAB as usize);
    let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true}"#;
    let json = format!(
        r#"{{"version": "1.0", "decoder": {byte_level}, "pre_tokenizer": {byte_level},
            "model": {{"type": "BPE", "merges": [], "vocab": {{{}}}}}}}"#,
        vocab.join(", ")
    );
    Tokenizer::from_bytes(json.as_bytes()).expect("the test's tokenizer is valid")
}

/// Limits that hold nothing back.
pub fn roomy(groups: &[GroupSpec]) -> Limits {
    let groups = groups.iter().map(|group| GroupSpec { pages: 64, ..*group }).collect();
    Limits {
        max_tokens: 512,
        max_sequences: 64,
        max_model_len: 256,
        vocab_size: VOCAB as usize,
        cache: CacheSpec { page_size: 16, groups },
        steps_in_flight: 1,
    }
}

/// What one choice produced. Log-probabilities are compared as bits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    pub text: String,
    pub tokens: Vec<Entry>,
    pub reason: Option<FinishReason>,
    pub usage: Usage,
}

/// Token, log-probability, top log-probabilities, text offset.
pub type Entry = (u32, u32, Vec<(u32, u32)>, usize);

pub fn entry(token: &TokenLogprob) -> Entry {
    let top = token.top.iter().map(|&(id, logprob)| (id, logprob.to_bits())).collect();
    (token.id, token.logprob.to_bits(), top, token.text_offset)
}

/// What requests produced.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    pub choices: BTreeMap<(RequestId, u32), Choice>,
    pub prompts: BTreeMap<RequestId, Vec<Entry>>,
    pub failed: BTreeMap<RequestId, String>,
    pub over: Vec<RequestId>,
}

impl Outcomes {
    /// Takes a step's events; panics when one names something that is over.
    pub fn take(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::PromptLogprobs { request, logprobs } => {
                    self.expect_live(request);
                    assert!(self.choices.range((request, 0)..=(request, u32::MAX)).next().is_none());
                    assert!(self.prompts.insert(request, logprobs.iter().map(entry).collect()).is_none());
                }
                Event::Delta { request, choice, text, tokens } => {
                    self.expect_live(request);
                    assert!(!text.is_empty() || !tokens.is_empty(), "an empty delta");
                    let outcome = self.choices.entry((request, choice)).or_default();
                    assert!(outcome.reason.is_none(), "{request:?}/{choice} speaks after its end");
                    outcome.text += &text;
                    outcome.tokens.extend(tokens.iter().map(entry));
                }
                Event::Finished { request, choice, reason, usage, last } => {
                    self.expect_live(request);
                    let outcome = self.choices.entry((request, choice)).or_default();
                    assert!(outcome.reason.replace(reason).is_none(), "{request:?}/{choice} ends twice");
                    outcome.usage = usage;
                    if last {
                        self.over.push(request);
                    }
                }
                Event::Failed { request, message } => {
                    self.expect_live(request);
                    self.failed.insert(request, message);
                    self.over.push(request);
                }
            }
        }
    }

    fn expect_live(&self, request: RequestId) {
        assert!(!self.over.contains(&request), "an event of {request:?}, which is over");
    }

    /// A request goes on under another name; nothing may name the old one any more.
    pub fn rename(&mut self, old: RequestId, new: RequestId) {
        let choices: Vec<_> = self.choices.range((old, 0)..=(old, u32::MAX)).map(|(&key, _)| key).collect();
        for key in choices {
            let choice = self.choices.remove(&key).expect("it was just listed");
            self.choices.insert((new, key.1), choice);
        }
        let prompt = self.prompts.remove(&old);
        self.prompts.extend(prompt.map(|prompt| (new, prompt)));
        self.over.push(old);
    }

    /// The snapshot that a caller can make of a request from what it was told.
    pub fn ledger(&self, id: RequestId, request: &Request) -> RequestSnapshot {
        let params = request.params.clone();
        let mut snapshot = RequestSnapshot::new(Identity::default(), request.prompt.clone(), params, request.adapter);
        snapshot.prompt_scored = self.prompts.contains_key(&id);
        for (choice, state) in (0..).zip(&mut snapshot.choices) {
            let Some(seen) = self.choices.get(&(id, choice)) else { continue };
            state.tokens = seen.tokens.iter().map(|token| token.0).collect();
            state.sent_bytes = seen.text.len();
            state.finished = seen.reason.is_some().then_some(seen.usage.completion_tokens);
        }
        snapshot
    }

    pub fn choice(&self, request: RequestId, choice: u32) -> &Choice {
        &self.choices[&(request, choice)]
    }
}

/// Steps until nothing is left to do, checking the invariants after every step.
pub fn finish(runtime: &mut Runtime, executor: &mut dyn Executor, outcomes: &mut Outcomes) {
    let mut steps = 0;
    while runtime.has_work() {
        outcomes.take(runtime.step(executor));
        runtime.check_invariants().unwrap();
        steps += 1;
        assert!(steps < 20_000, "no end in sight: {:?}", runtime.stats());
    }
}

/// The request's outcome when it has a large cache to itself, without sharing, chunks or lookahead.
pub fn alone(request: &Request, groups: &[GroupSpec], eos: &[u32], tokenizer: Option<&Tokenizer>) -> Outcomes {
    let limits = roomy(groups);
    let options = RuntimeOptions {
        eos_token_ids: eos.to_vec(),
        tokenizer: tokenizer.cloned(),
        prefix_cache: false,
        ..RuntimeOptions::default()
    };
    let mut executor = NullExecutor::new(limits.clone(), NullOptions::default());
    let mut runtime = Runtime::new(limits, options).unwrap();
    assert_eq!(runtime.add(request.clone()), Ok(RequestId(0)));
    let mut outcomes = Outcomes::default();
    while runtime.has_work() {
        outcomes.take(runtime.step(&mut executor));
    }
    assert_eq!(executor.violations(), [] as [String; 0]);
    outcomes
}

/// Every page is free or cached.
pub fn assert_no_leak(runtime: &Runtime) {
    runtime.check_invariants().unwrap();
    for group in runtime.stats().groups {
        assert_eq!(group.free + group.cached, group.pages, "pages leaked");
    }
}

/// An executor that chooses what it is told to: output token `k` of every sequence is `script[k]`,
/// counted from `prompt_len`. It also keeps the batches it was given.
pub struct Scripted {
    pub inner: NullExecutor,
    pub prompt_len: usize,
    pub script: Vec<u32>,
    pub batches: Vec<Batch>,
    waited: usize,
    output: StepOutput,
}

impl Scripted {
    pub fn new(limits: Limits, prompt_len: usize, script: &[u32]) -> Self {
        let inner = NullExecutor::new(limits, NullOptions::default());
        let output = StepOutput::default();
        Scripted { inner, prompt_len, script: script.to_vec(), batches: Vec::new(), waited: 0, output }
    }
}

impl Executor for Scripted {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        self.batches.push(batch.clone());
        self.inner.submit(batch)
    }

    fn wait(&mut self) -> Result<&StepOutput, ExecutorError> {
        self.output.clone_from(self.inner.wait()?);
        for (row, id) in self.batches[self.waited].logit_rows.iter().zip(&mut self.output.ids) {
            if !matches!(row.mode, SampleMode::Score(_)) {
                *id = self.script[row.position as usize - self.prompt_len];
            }
        }
        self.waited += 1;
        Ok(&self.output)
    }
}

/// Adds a request and runs everything to the end.
pub fn complete(runtime: &mut Runtime, executor: &mut dyn Executor, request: Request) -> (RequestId, Outcomes) {
    let id = runtime.add(request).unwrap();
    let mut outcomes = Outcomes::default();
    finish(runtime, executor, &mut outcomes);
    (id, outcomes)
}

pub fn request(prompt: &[u32], params: SamplingParams) -> Request {
    Request { prompt: prompt.to_vec(), params, ..Request::default() }
}

/// Greedy, this many tokens, whatever they are.
pub fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: Some(max_tokens), ignore_eos: true, ..SamplingParams::default() }
}

pub fn limits(page_size: u32, groups: &[(CacheKind, u32)]) -> Limits {
    let groups: Vec<GroupSpec> = groups.iter().map(|&(kind, pages)| GroupSpec { kind, pages }).collect();
    let roomy = roomy(&groups);
    Limits { cache: CacheSpec { page_size, groups }, ..roomy }
}
