//! What callers ask for, and the answer to those who wait for all of it.
use crate::{Constraint, FinishReason, SamplingParams, TokenLogprob, Usage};

/// Text or token ids to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Tokenized with the special tokens that the tokenizer's post-processor adds.
    Text(String),
    /// Taken as they are.
    Tokens(Vec<u32>),
}

/// A prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How; `None` takes the model's defaults ([`Engine::default_params`](crate::Engine::default_params)).
    pub params: Option<SamplingParams>,
    /// Adapter; 0 is the base model.
    pub adapter: u32,
    /// Requests share cached prefixes only within one tenant.
    pub tenant: Option<String>,
    /// What the answer may be, at its beginning.
    pub constraint: Option<Box<dyn Constraint>>,
    edits: Edits,
}

/// Single changes to the parameters, applied over the defaults when the request is submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Edits {
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    seed: Option<u64>,
}

impl GenerateRequest {
    /// Continues `prompt`.
    pub fn new(prompt: Prompt) -> Self {
        GenerateRequest { prompt, params: None, adapter: 0, tenant: None, constraint: None, edits: Edits::default() }
    }

    /// Continues text, special tokens added by the tokenizer's post-processor.
    pub fn text(prompt: impl Into<String>) -> Self {
        Self::new(Prompt::Text(prompt.into()))
    }

    /// Continues token ids.
    pub fn tokens(prompt: impl Into<Vec<u32>>) -> Self {
        Self::new(Prompt::Tokens(prompt.into()))
    }

    /// Replaces all sampling parameters.
    #[must_use]
    pub fn params(mut self, params: SamplingParams) -> Self {
        self.params = Some(params);
        self
    }

    /// Most tokens to generate.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.edits.max_tokens = Some(tokens);
        self
    }

    /// Sampling temperature; 0 takes the most likely token.
    #[must_use]
    pub fn temperature(mut self, temperature: f32) -> Self {
        self.edits.temperature = Some(temperature);
        self
    }

    /// Seed of the sampler: equal seeds give equal tokens.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.edits.seed = Some(seed);
        self
    }

    /// Requests share cached prefixes only within one tenant.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Only answers that `constraint`, which is at its beginning, allows: each choice has a copy of it. Such a request
    /// stays on its engine: [`Engine::suspend`](crate::Engine::suspend) refuses it.
    #[must_use]
    pub fn constraint(mut self, constraint: impl Constraint + 'static) -> Self {
        self.constraint = Some(Box::new(constraint));
        self
    }

    /// The parameters after defaults and edits.
    pub(crate) fn resolve(&self, defaults: &SamplingParams) -> SamplingParams {
        let mut params = self.params.clone().unwrap_or_else(|| defaults.clone());
        params.max_tokens = self.edits.max_tokens.or(params.max_tokens);
        params.temperature = self.edits.temperature.unwrap_or(params.temperature);
        params.seed = self.edits.seed.or(params.seed);
        params
    }
}

/// One of the `n` continuations of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The text, without what ended it.
    pub text: String,
    /// Its tokens and their log-probabilities.
    pub tokens: Vec<TokenLogprob>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens it used.
    pub usage: Usage,
}

/// A finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// As many as were asked for, by index.
    pub choices: Vec<Choice>,
    /// Log-probabilities of the prompt's tokens from the second on, where they were asked for.
    pub prompt_logprobs: Option<Vec<TokenLogprob>>,
}

impl Completion {
    /// Text of the first choice.
    pub fn text(&self) -> &str {
        self.choices.first().map_or("", |c| &c.text)
    }

    /// Token ids of the first choice.
    pub fn token_ids(&self) -> Vec<u32> {
        self.choices.first().map_or(Vec::new(), |c| c.tokens.iter().map(|t| t.id).collect())
    }
}
