//! What completions and chat completions have in common.
use crate::ApiError;
use crate::fields::{Fields, decimal, integer, wrong_type};
use anyfleet::SamplingParams;
use serde_json::Value;

/// Most stop strings a request may bring: OpenAI's limit.
pub const MAX_STOP_STRINGS: usize = 4;
/// Most alternatives per token: OpenAI's limit for chat, vLLM's default for both.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// Most choices per prompt.
pub const MAX_CHOICES: u32 = 128;

/// How tokens are chosen and when generation ends. `None` takes the model's default, which is what
/// its `generation_config.json` says, else OpenAI's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    /// `temperature`, 0 to 2; 0 takes the most likely token.
    pub temperature: Option<f32>,
    /// `top_p`, 0 to 1.
    pub top_p: Option<f32>,
    /// `top_k` (vLLM): 0 or -1 keeps all.
    pub top_k: Option<u32>,
    /// `min_p` (vLLM), 0 to 1.
    pub min_p: Option<f32>,
    /// `presence_penalty`, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// `frequency_penalty`, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// `repetition_penalty` (vLLM), 0.01 to 100; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// `logit_bias`: token id and what is added to its logit, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// `seed`: equal seeds give equal answers, whatever else the server does.
    pub seed: Option<i64>,
    /// `n`, 1 to [`MAX_CHOICES`].
    pub n: Option<u32>,
    /// `stop`: a string or up to [`MAX_STOP_STRINGS`], none empty.
    pub stop: Vec<String>,
    /// `stop_token_ids` (vLLM).
    pub stop_token_ids: Vec<u32>,
    /// `min_tokens` (vLLM).
    pub min_tokens: Option<u32>,
    /// `ignore_eos` (vLLM).
    pub ignore_eos: bool,
    /// `include_stop_str_in_output` (vLLM).
    pub include_stop_str_in_output: bool,
    /// `skip_special_tokens` (vLLM), true by default.
    pub skip_special_tokens: Option<bool>,
}

impl SamplingOptions {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        Ok(SamplingOptions {
            temperature: fields.decimal("temperature", 0.0..=2.0)?,
            top_p: fields.decimal("top_p", 0.0..=1.0)?,
            top_k: fields.integer("top_k", -1..=i64::from(i32::MAX))?.map(|k| k.max(0) as u32),
            min_p: fields.decimal("min_p", 0.0..=1.0)?,
            presence_penalty: fields.decimal("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: fields.decimal("frequency_penalty", -2.0..=2.0)?,
            repetition_penalty: fields.decimal("repetition_penalty", 0.01..=100.0)?,
            logit_bias: logit_bias(fields.take("logit_bias"))?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?,
            n: fields.count("n", 1..=MAX_CHOICES)?,
            stop: stop_strings(fields.take("stop"))?,
            stop_token_ids: fields
                .take("stop_token_ids")
                .map_or(Ok(Vec::new()), |ids| token_ids("stop_token_ids", &ids))?,
            min_tokens: fields.count("min_tokens", 0..=u32::MAX)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            include_stop_str_in_output: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?,
        })
    }

    /// Choices per prompt.
    pub fn choices(&self) -> u32 {
        self.n.unwrap_or(1)
    }

    /// The engine's parameters: `defaults` with what the request says instead.
    pub(crate) fn over(&self, defaults: SamplingParams) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            logit_bias: self.logit_bias.clone(),
            // Two's complement: every seed a client can write is a seed of its own.
            seed: self.seed.map(|seed| seed as u64).or(defaults.seed),
            n: self.choices(),
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            min_tokens: self.min_tokens.unwrap_or(defaults.min_tokens),
            ignore_eos: self.ignore_eos,
            include_stop_str_in_output: self.include_stop_str_in_output,
            skip_special_tokens: self.skip_special_tokens.unwrap_or(defaults.skip_special_tokens),
            ..defaults
        }
    }
}

/// An array of token ids. Whether they are in the vocabulary is the engine's to say.
pub(crate) fn token_ids(param: &str, value: &Value) -> Result<Vec<u32>, ApiError> {
    let Value::Array(items) = value else { return Err(wrong_type(param, "an array of token ids", value)) };
    let id = |(i, item): (usize, &Value)| match item.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) => Ok(id),
        None => integer(&format!("{param}[{i}]"), item, &(0..=i64::from(u32::MAX))).map(|id| id as u32),
    };
    items.iter().enumerate().map(id).collect()
}

fn logit_bias(value: Option<Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = match value {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("logit_bias", "an object of token ids and biases", &other)),
    };
    let entry = |(token, bias): (&String, &Value)| {
        let shown = crate::error::shorten(token);
        let param = format!("logit_bias.{shown}");
        let id = token.parse::<u32>().map_err(|_| {
            ApiError::invalid(param.clone(), format!("Invalid key in 'logit_bias': '{shown}' is not a token id."))
                .code("invalid_value")
        })?;
        Ok((id, decimal(&param, bias, &(-100.0..=100.0))?))
    };
    map.iter().map(entry).collect()
}

fn stop_strings(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let strings = match value {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(items)) => items
            .into_iter()
            .enumerate()
            .map(|(i, item)| match item {
                Value::String(stop) => Ok(stop),
                other => Err(wrong_type(&format!("stop[{i}]"), "a string", &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if strings.len() > MAX_STOP_STRINGS {
        let message = format!("Invalid 'stop': {} strings; at most {MAX_STOP_STRINGS} are allowed.", strings.len());
        return Err(ApiError::invalid("stop", message).code("array_above_max_length"));
    }
    match strings.iter().any(String::is_empty) {
        true => Err(ApiError::invalid("stop", "Invalid 'stop': a stop string is empty.").code("invalid_value")),
        false => Ok(strings),
    }
}

/// Whether and how the answer is streamed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaming {
    /// `stream`.
    pub enabled: bool,
    /// `stream_options.include_usage`: a last chunk with the usage of the whole request.
    pub include_usage: bool,
}

impl Streaming {
    pub(crate) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let enabled = fields.boolean("stream")?.unwrap_or(false);
        let options = match fields.take("stream_options") {
            None => return Ok(Streaming { enabled, include_usage: false }),
            Some(Value::Object(options)) => options,
            Some(other) => return Err(wrong_type("stream_options", "an object", &other)),
        };
        if !enabled {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
            return Err(ApiError::invalid("stream_options", message));
        }
        match options.get("include_usage") {
            None | Some(Value::Null) => Ok(Streaming { enabled, include_usage: false }),
            Some(&Value::Bool(include_usage)) => Ok(Streaming { enabled, include_usage }),
            Some(other) => Err(wrong_type("stream_options.include_usage", "a boolean", other)),
        }
    }
}

/// Refuses parameters that would change the answer and are not implemented: ignoring them would
/// give a client something it did not ask for.
pub(crate) fn refuse(fields: &mut Fields, names: &[&'static str]) -> Result<(), ApiError> {
    for &name in names {
        // Empty and false mean the same as absent.
        let idle = |value: &Value| match value {
            Value::Bool(on) => !on,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if fields.take(name).is_some_and(|value| !idle(&value)) {
            return Err(ApiError::unsupported(name, format!("'{name}' is not supported by this server.")));
        }
    }
    Ok(())
}
