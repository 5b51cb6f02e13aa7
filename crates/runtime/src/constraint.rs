//! Answers that must have a form. The host says which tokens may come next, and the device keeps to them.
use crate::{FinishReason, StopCause};
use std::fmt;

/// What an answer may be: a grammar, a schema, a list of names.
///
/// It is asked before each token of the answer and told the token that was chosen. A tokenizer's end-of-sequence tokens are
/// tokens like any others: an answer can end with one only where it is allowed. [`SamplingParams`](crate::SamplingParams)
/// hold as ever among the tokens that are allowed; where they ban all of those, the constraint wins.
///
/// Its methods run between two steps of all requests: a millisecond here is one more for each token of everybody.
pub trait Constraint: Send {
    /// Sets the bits of the tokens that may come next: of token `t`, bit `t % 32` of word `t / 32`. The mask comes empty; its
    /// bits past the vocabulary mean nothing. A mask that stays empty ends the answer ([`StopCause::Constraint`]). A
    /// step that fails may be asked for again, so the answer follows from the accepted tokens alone.
    ///
    /// # Errors
    /// One line for the caller, whose request fails.
    fn allowed(&mut self, mask: &mut [u32]) -> Result<(), String>;

    /// Takes the token that was chosen. It is not told of one that ends the answer.
    ///
    /// # Errors
    /// As [`Constraint::allowed`].
    fn accept(&mut self, token: u32) -> Result<(), String>;

    /// The same in the same state, for each of a request's choices.
    fn fork(&self) -> Box<dyn Constraint>;
}

impl fmt::Debug for dyn Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// How a choice ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    Finished(FinishReason),
    /// The request fails.
    Failed(String),
}

/// A choice's constraint.
#[derive(Debug)]
pub(crate) struct Guide {
    constraint: Box<dyn Constraint>,
    /// Why no token can come next. A row was planned for it already, whose token means nothing.
    end: Option<End>,
}

impl Guide {
    pub(crate) fn new(constraint: &dyn Constraint) -> Self {
        Guide { constraint: constraint.fork(), end: None }
    }

    /// Appends the mask of the next token and returns which of `masks` it is; `None` where no token can come.
    pub(crate) fn write(&mut self, vocab_size: usize, masks: &mut Vec<u32>) -> Option<u32> {
        let (start, words) = (masks.len(), vocab_size.div_ceil(32));
        masks.resize(start + words, 0);
        let mask = &mut masks[start..];
        self.end = match self.constraint.allowed(mask) {
            Err(message) => Some(failed(&message)),
            Ok(()) if is_empty(mask, vocab_size) => Some(End::Finished(FinishReason::Stop(StopCause::Constraint))),
            Ok(()) => return Some((start / words) as u32),
        };
        masks.truncate(start);
        None
    }

    /// Why the row that was planned last has no token.
    pub(crate) fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Takes a token; the end of the request where the constraint refuses it.
    pub(crate) fn accept(&mut self, token: u32) -> Option<End> {
        self.constraint.accept(token).err().map(|message| failed(&message))
    }
}

fn failed(message: &str) -> End {
    End::Failed(format!("its constraint failed: {message}"))
}

/// Whether a mask allows none of a vocabulary's tokens.
fn is_empty(mask: &[u32], vocab_size: usize) -> bool {
    let (whole, rest) = (vocab_size / 32, vocab_size % 32);
    mask[..whole].iter().all(|&word| word == 0) && (rest == 0 || mask[whole] << (32 - rest) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_past_the_vocabulary_allow_nothing() {
        assert!(is_empty(&[0, 0], 64) && !is_empty(&[0, 1 << 31], 64));
        assert!(is_empty(&[0, !0 << 3], 35) && !is_empty(&[0, 1 << 2], 35) && !is_empty(&[1, 0], 35));
    }
}
