//! The engine's handle.
use crate::request::{Completion, GenerateRequest, Prompt};
use crate::stream::TokenStream;
use crate::worker::{Board, Submission};
use crate::{ChatInput, ChatTemplate, EngineBuilder, Error, MemoryPlan, Result, SamplingParams, Stats, Tokenizer};
use anyfleet_runtime::Request;
use anyfleet_text::SpecialTokens;
use async_channel::{Receiver, Sender};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Everything that decides the bits of a logit: engine version, backend and kernel set, types.
    /// Two engines with one value and one checkpoint give one answer.
    pub numerics_id: String,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
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
    pub submissions: Sender<Submission>,
    pub board: Arc<Board>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.submissions.close();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("info", &self.shared.info).finish_non_exhaustive()
    }
}

/// An accepted or refused submission on its way back.
struct Submitted {
    accepted: Receiver<Result<()>>,
    stream: TokenStream,
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
        match submitted.accepted.recv_blocking() {
            Ok(accepted) => accepted.map(|()| submitted.stream),
            Err(_) => Err(self.closed()),
        }
    }

    /// As [`Engine::stream`], without blocking the thread. Tokenizing text prompts happens on the
    /// calling task.
    ///
    /// # Errors
    /// [`Error`] when the request is refused.
    pub async fn stream_async(&self, request: GenerateRequest) -> Result<TokenStream> {
        let submitted = self.submit(request)?;
        match submitted.accepted.recv().await {
            Ok(accepted) => accepted.map(|()| submitted.stream),
            Err(_) => Err(self.closed()),
        }
    }

    /// Takes no new requests; those running or waiting finish, then the engine's thread ends.
    pub fn shutdown(&self) {
        self.shared.submissions.close();
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
        let (events, receiver) = async_channel::unbounded();
        let (accept, accepted) = async_channel::bounded(1);
        let request = Request { prompt, params, adapter: request.adapter, tenant_salt };
        let submission = Submission { request, events, accepted: accept };
        self.shared.submissions.try_send(submission).map_err(|_| self.closed())?;
        Ok(Submitted { accepted, stream: TokenStream::new(receiver, prompt_tokens) })
    }
}
