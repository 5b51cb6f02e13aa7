//! How tokens are chosen and when generation ends.
use crate::snapshot::exact;
use serde::{Deserialize, Serialize};

/// Temperatures below this are greedy: dividing logits by less would overflow.
pub const MIN_TEMPERATURE: f32 = 1e-5;

/// Sampling parameters of a request, with OpenAI's names and ranges where OpenAI has the parameter.
///
/// [`SamplingParams::validate`] states the range of every field; the default is plain sampling at
/// temperature 1 until an end-of-sequence token or the model's limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 (below [`MIN_TEMPERATURE`]) takes the highest. Range 0 to 2.
    #[serde(with = "exact")]
    pub temperature: f32,
    /// Keep the k highest logits; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of highest tokens whose mass reaches this; 1 keeps all. Range 0 to 1.
    #[serde(with = "exact")]
    pub top_p: f32,
    /// Keep tokens with at least this share of the highest token's probability; 0 keeps all. Range 0 to 1.
    #[serde(with = "exact")]
    pub min_p: f32,
    /// Subtracted once from the logit of a token that the output contains. Range -2 to 2.
    #[serde(with = "exact")]
    pub presence_penalty: f32,
    /// Subtracted from a token's logit per occurrence in the output. Range -2 to 2.
    #[serde(with = "exact")]
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off.
    /// Range 0.01 to 100 (Keskar et al. 2019, arXiv:1909.05858).
    #[serde(with = "exact")]
    pub repetition_penalty: f32,
    /// Token id and what is added to its logit, within 100 of 0; one entry per token.
    #[serde(with = "exact::pairs")]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the counter-based randomness: the token at a position depends on nothing else but
    /// the seed, the choice's index and the logits. `None` draws one from the operating system.
    pub seed: Option<u64>,
    /// Independent choices. Range 1 to 128.
    pub n: u32,
    /// Most tokens to generate; `None` is as many as model length and cache hold. 0 only computes
    /// the prompt (with `prompt_logprobs`: scores it).
    pub max_tokens: Option<u32>,
    /// Until this many tokens are out, end-of-sequence and stop tokens are banned and stop strings
    /// are not looked for. At most `max_tokens`.
    pub min_tokens: u32,
    /// Text that ends the generation; none may be empty. At most 64. Needs a tokenizer.
    pub stop: Vec<String>,
    /// Tokens that end the generation besides the model's end-of-sequence tokens.
    pub stop_token_ids: Vec<u32>,
    /// Keep the stop string, or the text and the entry of the token that stopped, in the output.
    pub include_stop_str_in_output: bool,
    /// Generate on past end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Report this many top log-probabilities for every generated token. Range 0 to 20.
    pub logprobs: Option<u8>,
    /// Report the log-probability of every prompt token but the first, with this many top ones.
    /// Range 0 to 20. Such a request takes no prefix hits: every row's logits are needed.
    pub prompt_logprobs: Option<u8>,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
            n: 1,
            max_tokens: None,
            min_tokens: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            include_stop_str_in_output: false,
            ignore_eos: false,
            logprobs: None,
            prompt_logprobs: None,
            skip_special_tokens: true,
        }
    }
}

/// A parameter out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{param}: {message}")]
pub struct ParamError {
    /// The parameter's name, as in [`SamplingParams`].
    pub param: &'static str,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl SamplingParams {
    /// Checks every field against its documented range; token ids must be below `vocab_size`.
    ///
    /// # Errors
    /// The first parameter out of range.
    pub fn validate(&self, vocab_size: usize) -> Result<(), ParamError> {
        within("temperature", self.temperature, 0.0, 2.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        if !(1..=128).contains(&self.n) {
            return Err(error("n", format!("{} is not between 1 and 128", self.n)));
        }
        for (param, top) in [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)] {
            if let Some(top) = top.filter(|&top| usize::from(top) > crate::TOP_LOGPROBS) {
                return Err(error(param, format!("{top} is not between 0 and {}", crate::TOP_LOGPROBS)));
            }
        }
        if let Some(max) = self.max_tokens.filter(|&max| max < self.min_tokens) {
            return Err(error("min_tokens", format!("{} is above max_tokens, {max}", self.min_tokens)));
        }
        if self.stop.len() > 64 {
            return Err(error("stop", format!("{} stop strings; at most 64 are allowed", self.stop.len())));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(error("stop", "a stop string is empty".into()));
        }
        self.validate_ids(vocab_size)
    }

    fn validate_ids(&self, vocab_size: usize) -> Result<(), ParamError> {
        let in_vocab = |param, id: u32| match (id as usize) < vocab_size {
            true => Ok(()),
            false => Err(error(param, format!("token {id} is not below the vocabulary size, {vocab_size}"))),
        };
        self.stop_token_ids.iter().try_for_each(|&id| in_vocab("stop_token_ids", id))?;
        let mut biased: Vec<u32> = Vec::with_capacity(self.logit_bias.len());
        for &(id, bias) in &self.logit_bias {
            in_vocab("logit_bias", id)?;
            within("logit_bias", bias, -100.0, 100.0)?;
            biased.push(id);
        }
        biased.sort_unstable();
        match biased.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(error("logit_bias", format!("token {} is named twice", pair[0]))),
            None => Ok(()),
        }
    }

    /// Whether the highest logit is taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature < MIN_TEMPERATURE
    }
}

fn error(param: &'static str, message: String) -> ParamError {
    ParamError { param, message }
}

fn within(param: &'static str, value: f32, low: f32, high: f32) -> Result<(), ParamError> {
    // A NaN is in no range.
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(error(param, format!("{value} is not between {low} and {high}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut SamplingParams)) -> String {
        let mut params = SamplingParams::default();
        change(&mut params);
        params.validate(100).map_or_else(|error| error.to_string(), |()| "accepted".into())
    }

    #[test]
    fn the_ends_of_every_range_are_inside() {
        assert_eq!(SamplingParams::default().validate(100), Ok(()));
        let low = SamplingParams {
            temperature: 0.0,
            top_p: 0.0,
            presence_penalty: -2.0,
            frequency_penalty: -2.0,
            repetition_penalty: 0.01,
            logit_bias: vec![(0, -100.0), (99, 100.0)],
            max_tokens: Some(0),
            logprobs: Some(0),
            ..Default::default()
        };
        assert_eq!(low.validate(100), Ok(()));
        let high = SamplingParams {
            temperature: 2.0,
            min_p: 1.0,
            presence_penalty: 2.0,
            frequency_penalty: 2.0,
            repetition_penalty: 100.0,
            n: 128,
            max_tokens: Some(5),
            min_tokens: 5,
            stop_token_ids: vec![99],
            prompt_logprobs: Some(20),
            ..Default::default()
        };
        assert_eq!(high.validate(100), Ok(()));
    }

    #[test]
    fn what_is_outside_is_named() {
        assert_eq!(refused(|p| p.temperature = 2.1), "temperature: 2.1 is not between 0 and 2");
        assert_eq!(refused(|p| p.temperature = f32::NAN), "temperature: NaN is not between 0 and 2");
        assert_eq!(refused(|p| p.top_p = 1.5), "top_p: 1.5 is not between 0 and 1");
        assert_eq!(refused(|p| p.min_p = -0.5), "min_p: -0.5 is not between 0 and 1");
        assert_eq!(refused(|p| p.presence_penalty = 3.0), "presence_penalty: 3 is not between -2 and 2");
        assert_eq!(refused(|p| p.frequency_penalty = -3.0), "frequency_penalty: -3 is not between -2 and 2");
        assert_eq!(refused(|p| p.repetition_penalty = 0.0), "repetition_penalty: 0 is not between 0.01 and 100");
        assert_eq!(refused(|p| p.n = 0), "n: 0 is not between 1 and 128");
        assert_eq!(refused(|p| p.logprobs = Some(21)), "logprobs: 21 is not between 0 and 20");
        assert_eq!(refused(|p| p.prompt_logprobs = Some(21)), "prompt_logprobs: 21 is not between 0 and 20");
        let above = refused(|p| (p.min_tokens, p.max_tokens) = (3, Some(2)));
        assert_eq!(above, "min_tokens: 3 is above max_tokens, 2");
        assert_eq!(refused(|p| p.stop = vec![String::new()]), "stop: a stop string is empty");
        assert_eq!(refused(|p| p.stop = vec!["a".into(); 65]), "stop: 65 stop strings; at most 64 are allowed");
        let outside = "token 100 is not below the vocabulary size, 100";
        assert_eq!(refused(|p| p.stop_token_ids = vec![100]), format!("stop_token_ids: {outside}"));
        assert_eq!(refused(|p| p.logit_bias = vec![(100, 0.0)]), format!("logit_bias: {outside}"));
        assert_eq!(refused(|p| p.logit_bias = vec![(1, 101.0)]), "logit_bias: 101 is not between -100 and 100");
        let twice = refused(|p| p.logit_bias = vec![(1, 1.0), (2, 1.0), (1, 2.0)]);
        assert_eq!(twice, "logit_bias: token 1 is named twice");
    }
}
