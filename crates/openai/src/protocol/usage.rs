//! Token counts.
use serde::Serialize;

/// Tokens a response used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    /// Tokens of all prompts, each counted once however many choices it has.
    pub prompt_tokens: usize,
    /// Tokens generated, those that ended a choice included.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// What the prompt's tokens were.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What the prompt's tokens were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptTokensDetails {
    /// Those found in the prefix cache.
    pub cached_tokens: usize,
}

impl UsageReport {
    /// Adds one choice; `first` when it is the first finished choice of its prompt.
    pub(crate) fn add(&mut self, usage: anyfleet::Usage, first: bool) {
        if first {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_prompt_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}
