//! What callers hand to the runtime and what it tells them.
use crate::snapshot::exact;
use crate::{Constraint, ParamError, SamplingParams};
use serde::{Deserialize, Serialize};

/// A prompt and how to continue it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when generation ends.
    pub params: SamplingParams,
    /// Adapter of every row; 0 is the base model.
    pub adapter: u32,
    /// Opaque bytes that separate tenants: requests share cached prefixes only when these are equal.
    pub tenant_salt: Vec<u8>,
    /// What the answer may be, at its beginning. A request with one has no snapshot.
    pub constraint: Option<Box<dyn Constraint>>,
}

/// Names a request for the lifetime of its runtime; later requests have higher ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Why a request was not taken. Nothing of it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// A sampling parameter is out of its range.
    #[error(transparent)]
    InvalidParam(#[from] ParamError),
    /// The prompt has no tokens.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A prompt token is not in the vocabulary.
    #[error("prompt token {index} is {id}, but the vocabulary has {vocab_size} tokens")]
    TokenOutOfVocab {
        /// Its index in the prompt.
        index: usize,
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Prompt and output together exceed the model's length.
    #[error(
        "the model's context is {max_model_len} tokens, but {prompt_tokens} prompt tokens and {max_tokens} new tokens were \
         asked for: shorten the prompt or ask for fewer"
    )]
    ContextTooLong {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// New tokens asked for; 1 where the request set no limit.
        max_tokens: usize,
        /// The most tokens a sequence may have.
        max_model_len: usize,
    },
    /// The cache could not hold one choice of this request even if it ran alone.
    #[error(
        "the KV cache holds {capacity_tokens} tokens of one sequence, but {prompt_tokens} prompt tokens and {max_tokens} new \
         tokens were asked for: shorten the prompt, ask for fewer, or give the cache more memory"
    )]
    NeverFits {
        /// Tokens in the prompt.
        prompt_tokens: usize,
        /// New tokens asked for; 1 where the request set no limit.
        max_tokens: usize,
        /// The most tokens, prompt and output, that a sequence running alone can have.
        capacity_tokens: usize,
    },
    /// A snapshot that is of another model, or contradicts itself.
    #[error("this snapshot cannot be resumed here: {message}")]
    Snapshot {
        /// What is wrong.
        message: String,
    },
    /// Too many requests wait already.
    #[error("{max_queue} requests are waiting already: try again later")]
    QueueFull {
        /// The bound.
        max_queue: usize,
    },
}

/// One token and its log-probabilities under the model (before penalties and temperature, natural log).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Its log-probability.
    #[serde(with = "exact")]
    pub logprob: f32,
    /// As many of the highest as the request asked for, highest first; empty if it asked for none.
    #[serde(with = "exact::pairs")]
    pub top: Vec<(u32, f32)>,
    /// Where the token's text begins in its choice's text, in characters (Unicode scalar values).
    /// 0 for prompt tokens. Not part of a snapshot: it follows from the tokens.
    #[serde(skip)]
    pub text_offset: usize,
}

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt was scored; once, before the request's first [`Event::Delta`], for requests with
    /// [`SamplingParams::prompt_logprobs`].
    PromptLogprobs {
        /// Which request.
        request: RequestId,
        /// Entry `i` is prompt token `i + 1`, given the tokens before it; the first token has none.
        logprobs: Vec<TokenLogprob>,
    },
    /// A choice grew.
    ///
    /// A token's entry goes out with the text that completes it, so text held back (because it may
    /// begin a stop string, or ends within a character) holds its tokens back too. A token that
    /// ended the choice, and tokens wholly inside a matched stop string, have neither text nor an
    /// entry unless [`SamplingParams::include_stop_str_in_output`] is set; usage counts them. So text
    /// and entries always describe each other, as in OpenAI's API; vLLM sends entries as tokens are
    /// chosen, those of a cut stop string included.
    Delta {
        /// Which request.
        request: RequestId,
        /// Which of its `n` choices.
        choice: u32,
        /// New text; empty without a tokenizer.
        text: String,
        /// New tokens.
        tokens: Vec<TokenLogprob>,
    },
    /// A choice is complete; nothing more will be said of it.
    Finished {
        /// Which request.
        request: RequestId,
        /// Which of its `n` choices.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
        /// What it used.
        usage: Usage,
        /// No choice of the request is left.
        last: bool,
    },
    /// The request could not be completed; nothing more will be said of it or any of its choices.
    Failed {
        /// Which request.
        request: RequestId,
        /// Why.
        message: String,
    },
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model or the request said stop.
    Stop(StopCause),
    /// `max_tokens`, the model's length or the capacity of the cache was reached.
    Length,
}

impl FinishReason {
    /// OpenAI's word for it.
    pub fn as_str(&self) -> &'static str {
        match self {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// What stopped a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// An end-of-sequence token of the model.
    Eos(u32),
    /// One of [`SamplingParams::stop_token_ids`].
    TokenId(u32),
    /// One of [`SamplingParams::stop`].
    String(String),
    /// The request's [`Constraint`] allows no further token.
    Constraint,
}

/// Tokens used by one choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt: the same in every choice of a request, to be counted once.
    pub prompt_tokens: usize,
    /// How many of them were found in the prefix cache when the request started: likewise.
    pub cached_prompt_tokens: usize,
    /// Tokens this choice generated, the one that ended it included.
    pub completion_tokens: usize,
}
