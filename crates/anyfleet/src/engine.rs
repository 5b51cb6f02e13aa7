//! The engine's handle.
use crate::request::{Completion, GenerateRequest, Prompt};
use crate::stream::{StreamEvent, TokenStream};
use crate::worker::{Board, Command, Rates, Submission, Work};
use crate::{ChatInput, ChatTemplate, EngineBuilder, Error, MemoryPlan, Result, SamplingParams, Stats, Tokenizer};
use anyfleet_runtime::{Identity, Request, RequestId, RequestSnapshot};
use anyfleet_text::SpecialTokens;
use async_channel::{Receiver, Sender};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What was loaded, where and how.
#[derive(Clone, Debug)]
pub struct EngineInfo {
    /// The model's name or directory, as given; a bundled model's name.
    pub model: String,
    /// The directory it was loaded from; `None` for a model that is part of the program.
    pub path: Option<PathBuf>,
    /// Family, e.g. `llama`.
    pub family: &'static str,
    /// Device, for people.
    pub device: String,
    /// Type of the weights on the device.
    pub dtype: String,
    /// What decides an answer beside the request; what snapshots of this engine are of. Its `numerics_id` is
    /// everything that decides the bits of a logit: engine version, backend and kernel set, types. Two engines with
    /// one value and one checkpoint give one answer.
    pub identity: Identity,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
    /// The same, or less where the KV cache holds less: where an answer without a limit ends.
    pub max_sequence_len: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Where the memory went.
    pub plan: MemoryPlan,
    /// What the operator should know of the checkpoint, one line each.
    pub warnings: Vec<String>,
}

/// A loaded model and the thread that runs it. Clones are handles to the same engine; when the last
/// one is dropped, or after [`Engine::shutdown`], running requests finish and the thread ends.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub info: EngineInfo,
    pub tokenizer: Option<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub defaults: SamplingParams,
    pub commands: Sender<Command>,
    pub board: Arc<Board>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.commands.close();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

/// An accepted or refused submission on its way back.
struct Submitted {
    accepted: Receiver<Result<RequestId>>,
    events: Receiver<Result<StreamEvent>>,
    prompt_tokens: usize,
}

impl Submitted {
    fn stream(self, id: RequestId) -> TokenStream {
        TokenStream::new(self.events, id, self.prompt_tokens)
    }
}

impl Engine {
    /// Starts describing an engine for `model`: a directory, or a hub name `ORG/NAME` that is
    /// looked up in the Hugging Face cache (and, with the feature `hub`, downloaded).
    pub fn builder(model: impl Into<String>) -> EngineBuilder {
        EngineBuilder::new(model.into(), None)
    }

    /// Starts describing an engine for the model `pocket`, a small chat model that is part of the
    /// program: it needs no files and no network.
    ///
    /// ```no_run
    /// use anyfleet::{ChatInput, Engine, GenerateRequest};
    ///
    /// # fn main() -> anyfleet::Result<()> {
    /// let engine = Engine::bundled().build()?;
    /// let messages = serde_json::json!([{"role": "user", "content": "What is the opposite of hot?"}]);
    /// let prompt = engine.encode(&engine.apply_chat_template(&ChatInput::new(&messages))?, false)?;
    /// println!("{}", engine.generate(GenerateRequest::tokens(prompt).max_tokens(32))?.text());
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "pocket")]
    pub fn bundled() -> EngineBuilder {
        let model = anyfleet_models::pocket();
        EngineBuilder::new(model.name.into(), Some(model))
    }

    pub(crate) fn from_shared(shared: Shared) -> Self {
        Engine { shared: Arc::new(shared) }
    }

    /// What was loaded, where and how.
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// The tokenizer, where the model directory has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.tokenizer.as_ref()
    }

    /// The chat template, where the model directory has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.shared.template.as_ref()
    }

    /// Sampling parameters of requests that bring none: what `generation_config.json` says. An
    /// explicit `do_sample: false` there means temperature 0.
    pub fn default_params(&self) -> SamplingParams {
        self.shared.defaults.clone()
    }

    /// Counters and gauges, as of the last step.
    pub fn stats(&self) -> Stats {
        self.shared.board.stats()
    }

    /// How fast it computes.
    pub fn rates(&self) -> Rates {
        self.shared.board.rates()
    }

    /// How long the step that runs now has been running; `None` between steps. A device that hangs shows here: a step
    /// takes milliseconds, or some seconds where a long prompt meets a slow device.
    pub fn step_time(&self) -> Option<Duration> {
        self.shared.board.step_time()
    }

    /// Why the engine stopped for good, if an internal error made it stop.
    pub fn failure(&self) -> Option<String> {
        self.shared.board.dead()
    }

    /// Tokenizes text that is to be a prompt; `special` adds what the tokenizer's post-processor
    /// adds.
    ///
    /// # Errors
    /// [`Error::Request`] when the model has no tokenizer, [`Error::ContextLength`] when the text is
    /// certainly too long (noticed before it is tokenized).
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let Some(tokenizer) = self.tokenizer() else {
            return Err(Error::Request {
                param: Some("prompt".into()),
                message: "this model has no tokenizer.json; give the prompt as token ids".into(),
            });
        };
        let max = self.info().max_model_len;
        tokenizer.encode_bounded(text, special, max).map_err(|e| match e {
            anyfleet_text::Error::TooLong { .. } => Error::ContextLength { max, prompt: max + 1, requested: 1 },
            e => Error::Request { param: Some("prompt".into()), message: e.to_string() },
        })
    }

    /// Renders a conversation with the model's chat template. The text holds its special tokens, so it
    /// is encoded with `special = false`.
    ///
    /// # Errors
    /// [`Error::Request`] when the model has no template or the template refuses the messages.
    pub fn apply_chat_template(&self, chat: &ChatInput<'_>) -> Result<String> {
        let bad = |message: String| Error::Request { param: Some("messages".into()), message };
        let Some(template) = self.chat_template() else {
            return Err(bad("this model has no chat template; use a completion request".into()));
        };
        let tokens = self.tokenizer().map_or_else(SpecialTokens::default, |t| t.special_tokens().clone());
        template.render(chat, &tokens).map_err(|e| bad(e.to_string()))
    }

    /// Generates to completion, blocking the calling thread.
    ///
    /// # Errors
    /// [`Error`] when the request is refused or fails.
    pub fn generate(&self, request: GenerateRequest) -> Result<Completion> {
        self.stream(request)?.collect_completion()
    }

    /// Starts a request; returns once it is accepted, which takes at most the step being run.
    ///
    /// # Errors
    /// [`Error`] when the request is refused.
    pub fn stream(&self, request: GenerateRequest) -> Result<TokenStream> {
        let submitted = self.submit(request)?;
        let id = submitted.accepted.recv_blocking().map_err(|_| self.closed())??;
        Ok(submitted.stream(id))
    }

    /// As [`Engine::stream`], without blocking the thread. Tokenizing text prompts happens on the
    /// calling task.
    ///
    /// # Errors
    /// [`Error`] when the request is refused.
    pub async fn stream_async(&self, request: GenerateRequest) -> Result<TokenStream> {
        let submitted = self.submit(request)?;
        let id = submitted.accepted.recv().await.map_err(|_| self.closed())??;
        Ok(submitted.stream(id))
    }

    /// Ends a request between two steps and gives what [`Engine::resume`] needs to go on with it, on this engine or on
    /// another of the same model. Its stream ends with [`StreamEvent::Suspended`]. `None` for a request that is over
    /// or unknown.
    ///
    /// ```no_run
    /// # use anyfleet::{Engine, GenerateRequest, RequestSnapshot};
    /// # fn main() -> anyfleet::Result<()> {
    /// # let (here, there) = (Engine::builder("model").build()?, Engine::builder("model").build()?);
    /// let stream = here.stream(GenerateRequest::text("Once upon a time"))?;
    /// if let Some(snapshot) = here.suspend(stream.id())? {
    ///     let json = snapshot.to_json();
    ///     // Elsewhere, later.
    ///     let snapshot = RequestSnapshot::from_json(json.as_bytes()).expect("it was just written");
    ///     for event in there.resume(snapshot, None)? {
    ///         println!("{:?}", event?);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The engine has stopped, or the request has a [`Constraint`](crate::Constraint) and goes on.
    pub fn suspend(&self, request: RequestId) -> Result<Option<RequestSnapshot>> {
        let snapshots = self.send_suspend(Some(request))?;
        Ok(snapshots.recv_blocking().map_err(|_| self.closed())??.pop())
    }

    /// As [`Engine::suspend`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Engine::suspend`].
    pub async fn suspend_async(&self, request: RequestId) -> Result<Option<RequestSnapshot>> {
        let snapshots = self.send_suspend(Some(request))?;
        Ok(snapshots.recv().await.map_err(|_| self.closed())??.pop())
    }

    /// Suspends all requests, those that wait to start too, but for those with a [`Constraint`](crate::Constraint), which
    /// go on to their end. New ones are taken as before.
    ///
    /// # Errors
    /// The engine has stopped.
    pub async fn suspend_all_async(&self) -> Result<Vec<RequestSnapshot>> {
        self.send_suspend(None)?.recv().await.map_err(|_| self.closed())?
    }

    /// Goes on with a suspended request. Its stream has what its caller did not have when it was suspended, and
    /// nothing of what it had. `tenant` is the caller's own, as in [`GenerateRequest::tenant`].
    ///
    /// # Errors
    /// [`Error::Request`] for a snapshot that is of another model, contradicts itself or has nothing left to do;
    /// otherwise as [`Engine::stream`].
    pub fn resume(&self, snapshot: RequestSnapshot, tenant: Option<String>) -> Result<TokenStream> {
        let submitted = self.submit_snapshot(snapshot, tenant)?;
        let id = submitted.accepted.recv_blocking().map_err(|_| self.closed())??;
        Ok(submitted.stream(id))
    }

    /// As [`Engine::resume`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Engine::resume`].
    pub async fn resume_async(&self, snapshot: RequestSnapshot, tenant: Option<String>) -> Result<TokenStream> {
        let submitted = self.submit_snapshot(snapshot, tenant)?;
        let id = submitted.accepted.recv().await.map_err(|_| self.closed())??;
        Ok(submitted.stream(id))
    }

    /// Takes no new requests; those running or waiting finish, then the engine's thread ends.
    pub fn shutdown(&self) {
        self.shared.commands.close();
    }

    fn closed(&self) -> Error {
        match self.failure() {
            Some(message) => Error::Failed(format!("the engine stopped after an internal error: {message}")),
            None => Error::ShuttingDown,
        }
    }

    fn submit(&self, request: GenerateRequest) -> Result<Submitted> {
        if request.adapter != 0 {
            let message =
                format!("adapter {} is not loaded; this version serves base models (adapter 0)", request.adapter);
            return Err(Error::Request { param: Some("adapter".into()), message });
        }
        let params = request.resolve(&self.shared.defaults);
        let prompt = match request.prompt {
            Prompt::Text(text) => self.encode(&text, true)?,
            Prompt::Tokens(tokens) => tokens,
        };
        let prompt_tokens = prompt.len();
        let tenant_salt = request.tenant.map(String::into_bytes).unwrap_or_default();
        let GenerateRequest { adapter, constraint, .. } = request;
        self.start(Work::New(Request { prompt, params, adapter, tenant_salt, constraint }), prompt_tokens)
    }

    fn submit_snapshot(&self, snapshot: RequestSnapshot, tenant: Option<String>) -> Result<Submitted> {
        let prompt_tokens = snapshot.prompt.len();
        let tenant_salt = tenant.map(String::into_bytes).unwrap_or_default();
        self.start(Work::Resumed { snapshot, tenant_salt }, prompt_tokens)
    }

    fn start(&self, work: Work, prompt_tokens: usize) -> Result<Submitted> {
        let (events, receiver) = async_channel::unbounded();
        let (accept, accepted) = async_channel::bounded(1);
        let command = Command::Start(Box::new(Submission { work, events, accepted: accept }));
        self.shared.commands.try_send(command).map_err(|_| self.closed())?;
        Ok(Submitted { accepted, events: receiver, prompt_tokens })
    }

    fn send_suspend(&self, request: Option<RequestId>) -> Result<Receiver<Result<Vec<RequestSnapshot>>>> {
        let (snapshots, receiver) = async_channel::bounded(1);
        let command = Command::Suspend { request, snapshots };
        self.shared.commands.try_send(command).map_err(|_| self.closed())?;
        Ok(receiver)
    }
}
