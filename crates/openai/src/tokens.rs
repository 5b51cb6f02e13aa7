//! Token ids as OpenAI's log-probability objects name them.
use crate::protocol::{ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, TokenAndLogprob, TopLogprobs};
use anyfleet::{Detokenizer, TokenLogprob, Tokenizer};

/// What OpenAI reports for a token that is next to impossible. JSON has no infinity.
const LEAST_LOGPROB: f32 = -9999.0;

/// Names tokens.
#[derive(Clone, Debug)]
pub(crate) struct TokenNames {
    /// A model without one has ids for names.
    pub tokenizer: Option<Tokenizer>,
    /// Name tokens `token_id:N`, which is the only name that is unique.
    pub as_ids: bool,
}

impl TokenNames {
    fn name(&self, id: u32) -> String {
        match &self.tokenizer {
            Some(tokenizer) if !self.as_ids => match String::from_utf8(tokenizer.token_bytes(id)) {
                Ok(text) => text,
                Err(e) => e.as_bytes().iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
            },
            _ => format!("token_id:{id}"),
        }
    }

    fn bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.as_ref().map_or(Vec::new(), |tokenizer| tokenizer.token_bytes(id))
    }

    fn named(&self, id: u32, logprob: f32) -> TokenAndLogprob {
        TokenAndLogprob { token: self.name(id), logprob: finite(logprob), bytes: self.bytes(id) }
    }

    pub fn chat(&self, tokens: &[TokenLogprob]) -> ChatLogprobs {
        let entry = |token: &TokenLogprob| ChatTokenLogprob {
            token: self.named(token.id, token.logprob),
            top_logprobs: token.top.iter().map(|&(id, logprob)| self.named(id, logprob)).collect(),
        };
        ChatLogprobs { content: tokens.iter().map(entry).collect(), refusal: None }
    }

    /// Appends generated tokens; `start` is where the generated text begins in the choice's.
    pub fn extend_completion(&self, out: &mut CompletionLogprobs, tokens: &[TokenLogprob], start: usize) {
        for token in tokens {
            self.push_completion(out, token, start + token.text_offset);
        }
    }

    fn push_completion(&self, out: &mut CompletionLogprobs, token: &TokenLogprob, offset: usize) {
        let name = self.name(token.id);
        let mut top: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
        let chosen = (token.id, token.logprob);
        for &(id, logprob) in token.top.iter().chain([&chosen]) {
            // Two ids can have one text; the likelier one comes first and stays.
            let name = self.name(id);
            if !top.iter().any(|(known, _)| *known == name) {
                top.push((name, finite(logprob)));
            }
        }
        out.tokens.push(name);
        out.token_logprobs.push(Some(finite(token.logprob)));
        out.top_logprobs.push(Some(TopLogprobs(top)));
        out.text_offset.push(offset);
    }

    /// The entries of an echoed prompt. The first token follows nothing, so it has no probability.
    pub fn echo(&self, prompt: &[u32], offsets: &[usize], scored: &[TokenLogprob]) -> CompletionLogprobs {
        let mut out = CompletionLogprobs::default();
        if let Some(&first) = prompt.first() {
            out.tokens.push(self.name(first));
            out.token_logprobs.push(None);
            out.top_logprobs.push(None);
            out.text_offset.push(0);
        }
        for (token, &offset) in scored.iter().zip(offsets.iter().skip(1)) {
            self.push_completion(&mut out, token, offset);
        }
        out
    }
}

fn finite(logprob: f32) -> f32 {
    // A NaN compares false and becomes the least.
    if logprob > LEAST_LOGPROB { logprob } else { LEAST_LOGPROB }
}

/// Where each token of a prompt begins in its text, in characters, and the text.
pub(crate) fn prompt_text(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> (String, Vec<usize>) {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let mut text = String::new();
    let mut characters = 0;
    let mut offsets = Vec::with_capacity(prompt.len());
    for &id in prompt {
        offsets.push(characters);
        let piece = detokenizer.push(id);
        characters += piece.chars().count();
        text.push_str(&piece);
    }
    text.push_str(&detokenizer.finish());
    (text, offsets)
}
