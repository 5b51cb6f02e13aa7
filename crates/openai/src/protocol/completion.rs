//! `/v1/completions`.
use super::sampling::{MAX_TOP_LOGPROBS, refuse, token_ids};
use super::{CompletionLogprobs, SamplingOptions, Streaming, UsageReport};
use crate::ApiError;
use crate::fields::{Fields, missing, wrong_type};
use crate::fleet::Part;
use serde::Serialize;
use serde_json::Value;

/// Most prompts in one request.
pub const MAX_PROMPTS: usize = 2048;
/// Tokens generated when a completion does not say: OpenAI's default.
pub const DEFAULT_COMPLETION_TOKENS: u32 = 16;

/// One of a request's prompts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptInput {
    /// Tokenized, with the tokenizer's special tokens unless `add_special_tokens` is false.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<u32>),
}

/// A completion request.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// `model`.
    pub model: String,
    /// `prompt`: a string, an array of strings, of token ids, or of arrays of token ids; 1 to
    /// [`MAX_PROMPTS`] of them.
    pub prompts: Vec<PromptInput>,
    /// `max_tokens`, at least 1; 0 with `echo`. [`DEFAULT_COMPLETION_TOKENS`] by default, or what the
    /// context has room for if that is less.
    pub max_tokens: Option<u32>,
    /// `echo`: the prompt goes before the text, and its log-probabilities before the others.
    pub echo: bool,
    /// `logprobs`: this many of the most likely tokens with each token, 0 to
    /// [`MAX_TOP_LOGPROBS`](super::MAX_TOP_LOGPROBS) (OpenAI stops at 5).
    pub logprobs: Option<u8>,
    /// `stream` and `stream_options`.
    pub streaming: Streaming,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// `add_special_tokens` (vLLM), true by default.
    pub add_special_tokens: bool,
    /// `return_token_ids` (vLLM): choices carry `token_ids` and `prompt_token_ids`.
    pub return_token_ids: bool,
    /// `return_tokens_as_token_ids` (vLLM): log-probabilities name tokens `token_id:N`.
    pub return_tokens_as_token_ids: bool,
}

impl CompletionRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// What is not JSON, missing, of a wrong type, out of range or not supported: a 400.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        refuse(fields, &["suffix", "response_format", "structured_outputs", "prompt_embeds", "use_beam_search"])?;
        let request = CompletionRequest {
            model: fields.string("model")?.ok_or_else(|| missing("model"))?,
            prompts: prompts(fields.required("prompt")?)?,
            max_tokens: fields.count("max_tokens", 0..=u32::MAX)?,
            echo: fields.boolean("echo")?.unwrap_or(false),
            logprobs: fields.count("logprobs", 0..=MAX_TOP_LOGPROBS)?.map(|top| top as u8),
            streaming: Streaming::read(fields)?,
            sampling: SamplingOptions::read(fields)?,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(true),
            return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            return_tokens_as_token_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
        };
        if request.max_tokens == Some(0) && !request.echo {
            let message = "Invalid 'max_tokens': 0 is below the minimum, 1; only with 'echo' it may be 0.";
            return Err(ApiError::invalid("max_tokens", message).code("integer_below_min_value"));
        }
        let n = request.sampling.choices();
        if fields.count("best_of", 1..=128)?.is_some_and(|best_of| best_of != n) {
            return Err(ApiError::unsupported("best_of", format!("'best_of' other than 'n' ({n}) is not supported.")));
        }
        Ok(request)
    }
}

fn prompts(value: Value) -> Result<Vec<PromptInput>, ApiError> {
    const EXPECTED: &str = "a string, an array of strings, of token ids, or of arrays of token ids";
    let items = match value {
        Value::String(text) => return Ok(vec![PromptInput::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", EXPECTED, &other)),
    };
    match items.first() {
        None => return Err(ApiError::invalid("prompt", "Invalid 'prompt': the array is empty.").code("empty_array")),
        Some(Value::Number(_)) => return Ok(vec![PromptInput::Tokens(token_ids("prompt", &Value::Array(items))?)]),
        Some(_) => {}
    }
    if items.len() > MAX_PROMPTS {
        let message = format!("Invalid 'prompt': {} prompts; at most {MAX_PROMPTS} are allowed.", items.len());
        return Err(ApiError::invalid("prompt", message).code("array_above_max_length"));
    }
    let texts = items[0].is_string();
    let one = |(i, item): (usize, Value)| match item {
        Value::String(text) if texts => Ok(PromptInput::Text(text)),
        Value::Array(_) if !texts => Ok(PromptInput::Tokens(token_ids(&format!("prompt[{i}]"), &item)?)),
        other => Err(wrong_type(&format!("prompt[{i}]"), EXPECTED, &other)),
    };
    items.into_iter().enumerate().map(one).collect()
}

/// A completion, or a chunk of one: chunks have the same shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-...`, the same in every chunk.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The engine's NumericsId: equal ids and checkpoints give equal answers.
    pub system_fingerprint: String,
    /// Choices; `n` of the first prompt, then `n` of the second, ...
    pub choices: Vec<CompletionChoice>,
    /// Tokens used; in a stream only where it was asked for: null until the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageReport>>,
    /// In a stream, for a fleet's front door; see [`fleet`](crate::fleet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anyfleet: Option<Part>,
}

/// A continuation, or a piece of one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Its index in the request.
    pub index: usize,
    /// Its text.
    pub text: String,
    /// Log-probabilities, where they were asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; null in all chunks but the last.
    pub finish_reason: Option<&'static str>,
    /// The stop string or stop token that ended it (vLLM).
    pub stop_reason: Option<StopReason>,
    /// Generated ids, where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The prompt's ids, where they were asked for (vLLM); in a stream in the choice's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// What made a choice stop: one of the request's own stop conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

impl StopReason {
    pub(crate) fn of(reason: &anyfleet::FinishReason) -> Option<Self> {
        use anyfleet::{FinishReason, StopCause};
        match reason {
            FinishReason::Stop(StopCause::String(text)) => Some(StopReason::Text(text.clone())),
            FinishReason::Stop(StopCause::TokenId(id)) => Some(StopReason::Token(*id)),
            FinishReason::Stop(StopCause::Eos(_) | StopCause::Constraint) | FinishReason::Length => None,
        }
    }
}
