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
        let mut offsets = Offsets::default();
        for token in tokens {
            let offset = offsets.next(token.text_offset, &self.bytes(token.id));
            self.push_completion(out, token, start + offset);
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

pub(crate) fn finite(logprob: f32) -> f32 {
    // A NaN compares false and becomes the least.
    if logprob > LEAST_LOGPROB { logprob } else { LEAST_LOGPROB }
}

/// Where each token of a prompt begins in its text, in characters, and the text.
pub(crate) fn prompt_text(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> (String, Vec<usize>) {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let mut text = String::new();
    let mut characters = 0;
    let mut offsets = Vec::with_capacity(prompt.len());
    let mut exact = Offsets::default();
    for &id in prompt {
        let silent = skip_special && tokenizer.is_special(id);
        let bytes = if silent { Vec::new() } else { tokenizer.token_bytes(id) };
        offsets.push(exact.next(characters, &bytes));
        let piece = detokenizer.push(id);
        characters += piece.chars().count();
        text.push_str(&piece);
    }
    text.push_str(&detokenizer.finish());
    (text, offsets)
}

/// Refines where tokens begin in a text.
///
/// A decoder holds back what it cannot decide yet (half a character, a run of byte tokens), so several
/// tokens in a row have nothing but the place where that began. Their bytes tell them apart.
#[derive(Default)]
struct Offsets {
    /// Where the text of the tokens in hand begins.
    anchor: usize,
    /// Whole characters in their bytes, an invalid sequence being one.
    characters: usize,
    /// Bytes after those: the beginning of a character.
    partial: Vec<u8>,
}

impl Offsets {
    /// Where a token of `bytes` begins that a decoder places at `anchor`.
    fn next(&mut self, anchor: usize, bytes: &[u8]) -> usize {
        if anchor != self.anchor {
            *self = Offsets { anchor, ..Offsets::default() };
        }
        let goes_on = |first: &u8| {
            let joined = [&self.partial[..], &[*first]].concat();
            std::str::from_utf8(&joined).err().is_none_or(|e| e.error_len().is_none())
        };
        let cut = !self.partial.is_empty() && !bytes.first().is_none_or(goes_on);
        let offset = self.anchor + self.characters + usize::from(cut);
        // A SentencePiece decoder drops the space that begins a text.
        let dropped = offset == 0 && bytes == b" ";
        if !dropped {
            self.push(bytes);
        }
        offset
    }

    fn push(&mut self, bytes: &[u8]) {
        let joined = [&self.partial, bytes].concat();
        self.partial.clear();
        let mut chunks = joined.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.characters += chunk.valid().chars().count();
            match std::str::from_utf8(chunk.invalid()) {
                Ok(_) => {}
                // Only at the end it may be the beginning of a character.
                Err(e) if e.error_len().is_none() && chunks.peek().is_none() => self.partial = chunk.invalid().to_vec(),
                Err(_) => self.characters += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Offsets;

    fn offsets(tokens: &[(usize, &[u8])]) -> Vec<usize> {
        let mut offsets = Offsets::default();
        tokens.iter().map(|(anchor, bytes)| offsets.next(*anchor, bytes)).collect()
    }

    #[test]
    fn held_tokens_are_told_apart_by_their_bytes() {
        // Half a character that nothing completes.
        assert_eq!(offsets(&[(0, b"ab"), (2, b"\xf0\x9f"), (2, b" c"), (5, b"d")]), [0, 2, 3, 5]);
        // A character in three tokens.
        assert_eq!(offsets(&[(4, b"\xe6"), (4, b"\x97"), (4, b"\xa5"), (5, b"x")]), [4, 4, 4, 5]);
        // Two characters and a line break as byte tokens, held together until a word comes.
        let run = "\u{65e5}\u{672c}\n".as_bytes().chunks(1).map(|byte| (7, byte));
        let run: Vec<_> = run.chain([(7, &b"w"[..])]).collect();
        assert_eq!(offsets(&run), [7, 7, 7, 8, 8, 8, 9, 10]);
        // Two lead bytes.
        assert_eq!(offsets(&[(0, b"\xc3"), (0, b"\xc3"), (1, b"\xa9"), (2, b"!")]), [0, 1, 1, 2]);
        // A space that a decoder dropped, and a token without text.
        assert_eq!(offsets(&[(0, b""), (0, b" "), (0, b"x"), (1, b"y")]), [0, 0, 0, 1]);
    }
}
