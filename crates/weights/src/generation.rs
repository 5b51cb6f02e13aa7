//! `generation_config.json`: the sampling defaults a model was published with.
use crate::{Config, Result};

/// Published defaults for generation; a request overrides them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end a text. Taken from `config.json` where `generation_config.json` has none.
    pub eos_token_ids: Vec<u32>,
    /// Id that begins a text.
    pub bos_token_id: Option<u32>,
    /// False asks for greedy decoding.
    pub do_sample: Option<bool>,
    /// Divides the logits; at least 0.
    pub temperature: Option<f32>,
    /// Keeps this many tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keeps this much probability; in `0..=1`.
    pub top_p: Option<f32>,
    /// Keeps tokens above this share of the best one's probability; in `0..=1`.
    pub min_p: Option<f32>,
    /// Divides logits of tokens seen before; above 0.
    pub repetition_penalty: Option<f32>,
    /// Longest answer in tokens.
    pub max_new_tokens: Option<usize>,
}

impl GenerationConfig {
    /// Reads the keys from `generation`; token ids that it does not have come from `config`.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) for a value of the wrong kind or out of range.
    pub fn new(generation: &Config, config: &Config) -> Result<Self> {
        let (own, model) = (generation.root(), config.root());
        let ids = |key: &str| if own.has(key) { own.token_ids(key) } else { model.token_ids(key) };
        let float = |key: &str, low: f64, high: f64| Ok(own.float(key, low..=high)?.map(|v| v as f32));
        let top_k = match own.get("top_k").and_then(|v| v.as_i64()) {
            Some(-1) => Some(0),
            _ => own.uint("top_k", 0..=u32::MAX as usize)?.map(|k| k as u32),
        };
        Ok(GenerationConfig {
            eos_token_ids: ids("eos_token_id")?,
            bos_token_id: ids("bos_token_id")?.first().copied(),
            do_sample: own.flag("do_sample")?,
            temperature: float("temperature", 0.0, 1e3)?,
            top_k,
            top_p: float("top_p", 0.0, 1.0)?,
            min_p: float("min_p", 0.0, 1.0)?,
            repetition_penalty: float("repetition_penalty", 1e-3, 1e3)?,
            max_new_tokens: own.uint("max_new_tokens", 0..=1 << 30)?,
        })
    }
}
