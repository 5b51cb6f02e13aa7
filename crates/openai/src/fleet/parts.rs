//! What chunks mean for the ledger of their answer.
use super::{Part, StreamSnapshot};
use crate::tokens::finite;
use anyfleet::{RequestSnapshot, TokenLogprob, Usage};

/// How much an answer has said, so that its chunks can say what they mean.
pub(crate) struct Said {
    /// The caller is told.
    pub in_fleet: bool,
    /// Bytes of text of each choice, by index.
    bytes: Vec<usize>,
}

impl Said {
    pub fn nothing(choices: usize) -> Self {
        Said { in_fleet: false, bytes: vec![0; choices] }
    }

    /// Of an answer that began elsewhere; who resumes is a fleet's.
    pub fn before(snapshot: &StreamSnapshot) -> Self {
        let choices = snapshot.prompts.iter().flat_map(|prompt| &prompt.request.choices);
        Said { in_fleet: true, bytes: choices.map(|choice| choice.sent_bytes).collect() }
    }

    pub fn begun(&self, index: usize) -> Option<Part> {
        self.in_fleet.then_some(Part::Begun { index })
    }

    pub fn more(&mut self, index: usize, text: &str, tokens: &[TokenLogprob]) -> Option<Part> {
        self.bytes[index] += text.len();
        self.in_fleet.then(|| Part::Tokens {
            index,
            ids: tokens.iter().map(|token| token.id).collect(),
            logprobs: tokens.iter().map(|token| finite(token.logprob)).collect(),
            bytes: self.bytes[index],
        })
    }

    pub fn finished(&self, index: usize, usage: Usage) -> Option<Part> {
        let Usage { completion_tokens: tokens, cached_prompt_tokens, .. } = usage;
        self.in_fleet.then_some(Part::Finished { index, tokens, cached_prompt_tokens })
    }
}

/// What the complete choices of a request used.
pub(crate) fn finished(request: &RequestSnapshot) -> impl Iterator<Item = Usage> {
    let (prompt_tokens, cached) = (request.prompt.len(), request.cached_prompt_tokens.unwrap_or(0));
    let usage = move |completion_tokens| Usage { prompt_tokens, cached_prompt_tokens: cached, completion_tokens };
    request.choices.iter().filter_map(|choice| choice.finished).map(usage)
}
