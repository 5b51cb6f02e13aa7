//! `/v1/chat/completions`.
use super::sampling::{MAX_TOP_LOGPROBS, refuse};
use super::{ChatLogprobs, SamplingOptions, StopReason, Streaming, UsageReport};
use crate::ApiError;
use crate::fields::{Fields, missing, not_among, wrong_type};
use crate::fleet::Part;
use crate::messages::normalize;
use serde::Serialize;
use serde_json::{Map, Value};

/// A chat completion request.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// `model`.
    pub model: String,
    /// `messages`, as the template will see them: content is a string, arguments of tool calls are
    /// objects. Plain JSON, because a template may use any field a client sends.
    pub messages: Vec<Value>,
    /// `tools` for the template; none with `tool_choice: "none"`. What the model answers is not
    /// parsed into tool calls.
    pub tools: Option<Value>,
    /// `max_completion_tokens` or else `max_tokens`, at least 1; what the context has room for by
    /// default.
    pub max_tokens: Option<u32>,
    /// `logprobs` and `top_logprobs`: this many of the most likely tokens with each token.
    pub logprobs: Option<u8>,
    /// `stream` and `stream_options`.
    pub streaming: Streaming,
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// `chat_template_kwargs` (vLLM): further variables of the template; `reasoning_effort` joins them.
    pub template_variables: Map<String, Value>,
    /// `add_generation_prompt` (vLLM), true by default.
    pub add_generation_prompt: bool,
    /// `continue_final_message` (vLLM): the answer goes on where the last message ends.
    pub continue_final_message: bool,
    /// `add_special_tokens` (vLLM), false by default: a template writes its own.
    pub add_special_tokens: bool,
    /// `return_token_ids` (vLLM).
    pub return_token_ids: bool,
    /// `return_tokens_as_token_ids` (vLLM).
    pub return_tokens_as_token_ids: bool,
}

impl ChatRequest {
    /// Reads a request body.
    ///
    /// # Errors
    /// What is not JSON, missing, of a wrong type, out of range or not supported: a 400.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let fields = &mut fields;
        refuse(
            fields,
            &["functions", "function_call", "audio", "structured_outputs", "chat_template", "use_beam_search"],
        )?;
        response_format(fields)?;
        modalities(fields)?;
        let tools = tools(fields)?;
        let continue_final_message = fields.boolean("continue_final_message")?.unwrap_or(false);
        let add_generation_prompt = fields.boolean("add_generation_prompt")?;
        if continue_final_message && add_generation_prompt == Some(true) {
            let message = "'continue_final_message' and 'add_generation_prompt' exclude each other.";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        let max_completion_tokens = fields.count("max_completion_tokens", 1..=u32::MAX)?;
        Ok(ChatRequest {
            model: fields.string("model")?.ok_or_else(|| missing("model"))?,
            messages: normalize(fields.required("messages")?)?,
            tools,
            max_tokens: fields
                .count("max_tokens", 1..=u32::MAX)?
                .filter(|_| max_completion_tokens.is_none())
                .or(max_completion_tokens),
            logprobs: logprobs(fields)?,
            streaming: Streaming::read(fields)?,
            sampling: SamplingOptions::read(fields)?,
            template_variables: template_variables(fields)?,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final_message),
            continue_final_message,
            add_special_tokens: fields.boolean("add_special_tokens")?.unwrap_or(false),
            return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            return_tokens_as_token_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
        })
    }
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let format = match fields.take("response_format") {
        None => return Ok(()),
        Some(Value::Object(format)) => format,
        Some(other) => return Err(wrong_type("response_format", "an object", &other)),
    };
    match format.get("type") {
        Some(Value::String(kind)) if kind == "text" => Ok(()),
        Some(Value::String(kind)) => {
            let kind = crate::error::shorten(kind);
            Err(ApiError::unsupported(
                "response_format",
                format!("'response_format' of type '{kind}' is not supported; only 'text' is."),
            ))
        }
        _ => Err(missing("response_format.type")),
    }
}

fn modalities(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("modalities") {
        None => Ok(()),
        Some(Value::Array(kinds)) if kinds.iter().all(|kind| kind == "text") => Ok(()),
        Some(_) => Err(ApiError::unsupported(
            "modalities",
            "This server answers in text only: 'modalities' may be [\"text\"].",
        )),
    }
}

fn tools(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    let wanted = match fields.take("tool_choice") {
        None => true,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => true,
            "none" => false,
            "required" => return Err(forced_tool()),
            other => return Err(not_among("tool_choice", other, &["auto", "none"])),
        },
        Some(Value::Object(_)) => return Err(forced_tool()),
        Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
    };
    let tools = match fields.take("tools") {
        None => return Ok(None),
        Some(Value::Array(tools)) => tools,
        Some(other) => return Err(wrong_type("tools", "an array", &other)),
    };
    for (i, tool) in tools.iter().enumerate() {
        if !tool.is_object() {
            return Err(wrong_type(&format!("tools[{i}]"), "an object", tool));
        }
        if tool["type"] != "function" {
            let kind = tool["type"].as_str().unwrap_or("nothing");
            return Err(not_among(&format!("tools[{i}].type"), kind, &["function"]));
        }
        if !tool["function"]["name"].is_string() {
            let param = format!("tools[{i}].function.name");
            return Err(ApiError::invalid(param.clone(), format!("Missing required parameter: '{param}'."))
                .code("missing_required_parameter"));
        }
    }
    Ok((wanted && !tools.is_empty()).then_some(Value::Array(tools)))
}

fn forced_tool() -> ApiError {
    ApiError::unsupported("tool_choice", "This server cannot force a tool call: 'tool_choice' may be 'auto' or 'none'.")
}

fn logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    match (wanted, top) {
        (false, Some(1..)) => {
            Err(ApiError::invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true."))
        }
        (false, _) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

fn template_variables(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let mut variables = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("chat_template_kwargs", "an object", &other)),
    };
    if let Some(name) =
        ["messages", "tools", "add_generation_prompt"].into_iter().find(|&name| variables.contains_key(name))
    {
        let message = format!("'{name}' is a parameter of the request, not of 'chat_template_kwargs'.");
        return Err(ApiError::invalid("chat_template_kwargs", message));
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        variables.entry("reasoning_effort").or_insert(Value::String(effort));
    }
    Ok(variables)
}

/// A chat completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-...`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The engine's NumericsId: equal ids and checkpoints give equal answers.
    pub system_fingerprint: String,
    /// `n` answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: UsageReport,
    /// The prompt's ids, where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Its index.
    pub index: usize,
    /// What the model says.
    pub message: AssistantMessage,
    /// Log-probabilities, where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string or stop token that ended it (vLLM).
    pub stop_reason: Option<StopReason>,
    /// Generated ids, where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the model says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<()>,
}

/// A chunk of a streamed chat completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChunk {
    /// `chatcmpl-...`, the same in every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The engine's NumericsId.
    pub system_fingerprint: String,
    /// One choice's news; empty in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Only where it was asked for: null until the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageReport>>,
    /// The prompt's ids, where they were asked for (vLLM); in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// For a fleet's front door; see [`fleet`](crate::fleet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anyfleet: Option<Part>,
}

/// A piece of one answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChunkChoice {
    /// The answer's index.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta,
    /// Log-probabilities of the new tokens, where they were asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; null in all chunks but the answer's last.
    pub finish_reason: Option<&'static str>,
    /// The stop string or stop token that ended it (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// The new ids, where they were asked for (vLLM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What is new in an answer; the first chunk has the role, the last nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChatDelta {
    /// `assistant`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// New text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
