//! Ids to text, one id at a time.

use crate::decode::DecodeState;
use crate::tokenizer::Tokenizer;

/// Turns a stream of ids into a stream of text.
///
/// The pieces from [`push`](Self::push) and [`finish`](Self::finish), concatenated, are exactly
/// [`Tokenizer::decode`] of all the ids, whatever the ids; a piece is never taken back, so text that a
/// later id could still change (an unfinished character, a run of byte-fallback tokens) is held until it
/// cannot. Each id costs amortised constant time, and what is held is bounded by that run.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: DecodeState,
    /// Text of the prompt that was still held when it ended: it is not new, so it is dropped from the
    /// front of what comes out, as long as it comes out unchanged.
    old: String,
}

impl Detokenizer {
    /// A stream of its own: the first id begins the text (so a SentencePiece tokenizer drops its leading
    /// space). With `skip_special`, special tokens produce nothing.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        let state = tokenizer.decode_plan().start();
        Self { tokenizer: tokenizer.clone(), skip_special, state, old: String::new() }
    }

    /// A stream that continues `prompt`: what it yields is `decode(prompt + ids)` without
    /// `decode(prompt)`, so the first word keeps the space that separates it from the prompt.
    ///
    /// Where the prompt ends inside a character, `decode(prompt)` ends in U+FFFD and there is no exact
    /// difference; the character is then yielded whole.
    pub fn after_prompt(tokenizer: &Tokenizer, prompt: &[u32], skip_special: bool) -> Self {
        let mut this = Self::new(tokenizer, skip_special);
        for &id in prompt {
            this.push(id);
        }
        this.old = this.clone().finish();
        this
    }

    /// The stream after `prompt` and `ids`, and the text of `ids` so far: how a stream is rebuilt from
    /// a snapshot. An empty prompt is a stream of its own, as [`new`](Self::new) starts it.
    pub fn replay(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], skip_special: bool) -> (Self, String) {
        let mut this = Self::after_prompt(tokenizer, prompt, skip_special);
        let text = this.push_all(ids);
        (this, text)
    }

    /// Takes the next id; returns the text that is now final. An id outside the vocabulary produces
    /// nothing, as in [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> String {
        self.push_all(&[id])
    }

    /// [`push`](Self::push) for several ids.
    pub fn push_all(&mut self, ids: &[u32]) -> String {
        let mut text = String::new();
        for &id in ids {
            if self.skip_special && self.tokenizer.is_special(id) {
                continue;
            }
            if let Some(token) = self.tokenizer.id_to_token(id) {
                self.tokenizer.decode_plan().push(&mut self.state, token, &mut text);
            }
        }
        self.without_old(text)
    }

    /// Ends the stream: what was held, with unfinished bytes as U+FFFD. The stream is then as new.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        let plan = self.tokenizer.decode_plan();
        plan.finish(&mut self.state, &mut text);
        self.state = plan.start();
        self.without_old(text)
    }

    fn without_old(&mut self, mut text: String) -> String {
        if !self.old.is_empty() && !text.is_empty() {
            let same = common_prefix(&self.old, &text);
            if same == self.old.len() || same == text.len() {
                text.drain(..same);
                self.old.drain(..same);
            } else {
                self.old.clear();
            }
        }
        text
    }
}

/// Length in bytes of the longest common prefix of whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

impl std::fmt::Debug for Detokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detokenizer")
            .field("skip_special", &self.skip_special)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
