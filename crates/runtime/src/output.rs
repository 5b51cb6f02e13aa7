//! From chosen tokens to what the caller sees: text, stop strings, and which token goes with which text.
use crate::{SamplingParams, TokenLogprob};
use anyfleet_text::{Detokenizer, StopStrings};
use std::collections::VecDeque;

/// The output side of one choice. It sees every generated token exactly once, in order, whatever
/// preemption does to the sequence.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    detokenizer: Option<Detokenizer>,
    stops: StopStrings,
    /// Tokens whose text is not out yet.
    held: VecDeque<HeldToken>,
    /// Text produced so far, in characters and in bytes, and how many of the bytes are out.
    chars: usize,
    bytes: usize,
    emitted: usize,
    /// Tokens whose text is out.
    released: usize,
    /// What the caller has: as much as is out, or more while a resumed choice is replayed.
    sent: Sent,
}

/// How much of a choice its caller has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Of its text.
    pub(crate) bytes: usize,
    /// Of its tokens.
    pub(crate) tokens: usize,
}

#[derive(Clone, Debug)]
struct HeldToken {
    token: TokenLogprob,
    /// Its bytes in the choice's text.
    start: usize,
    end: usize,
}

/// What became ready for the caller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenLogprob>,
    /// Index of the stop string that matched.
    pub(crate) stop: Option<usize>,
}

impl Output {
    /// `detokenizer` continues the prompt.
    pub(crate) fn new(params: &SamplingParams, detokenizer: Option<Detokenizer>) -> Self {
        let stops = StopStrings::new(&params.stop, params.include_stop_str_in_output);
        Output {
            detokenizer,
            stops,
            held: VecDeque::new(),
            chars: 0,
            bytes: 0,
            emitted: 0,
            released: 0,
            sent: Sent::default(),
        }
    }

    /// Says what the caller has of a choice that is about to be replayed: nothing of it goes out again.
    pub(crate) fn resume(&mut self, sent: Sent) {
        self.sent = sent;
    }

    /// What the caller has.
    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }

    /// The last tokens, which the caller does not have yet.
    pub(crate) fn held(&self) -> impl Iterator<Item = &TokenLogprob> {
        self.held.iter().map(|held| &held.token).skip(self.sent.tokens.saturating_sub(self.released))
    }

    /// Takes a token. Where `look_for_stops` is false its text passes unexamined.
    pub(crate) fn push(&mut self, mut token: TokenLogprob, look_for_stops: bool) -> Piece {
        let Some(detokenizer) = &mut self.detokenizer else {
            return self.unsent(Piece { tokens: vec![token], ..Piece::default() });
        };
        let text = detokenizer.push(token.id);
        token.text_offset = self.chars;
        let start = self.bytes;
        self.chars += text.chars().count();
        self.bytes += text.len();
        self.held.push_back(HeldToken { token, start, end: self.bytes });
        match look_for_stops && !self.stops.is_empty() {
            true => {
                let (safe, stop) = self.stops.push(&text);
                self.release(safe, stop)
            }
            false => self.release(text, None),
        }
    }

    /// Ends the choice: whatever was held back.
    pub(crate) fn finish(&mut self) -> Piece {
        let Some(detokenizer) = &mut self.detokenizer else { return Piece::default() };
        let tail = detokenizer.finish();
        self.bytes += tail.len();
        if let Some(last) = self.held.back_mut() {
            last.end = self.bytes;
        }
        let (mut text, stop) = self.stops.push(&tail);
        if stop.is_none() {
            text += &self.stops.finish();
        }
        let mut piece = self.release(text, stop);
        if stop.is_none() {
            let rest = self.held.drain(..).map(|held| held.token).collect();
            piece.tokens.extend(self.unsent(Piece { tokens: rest, ..Piece::default() }).tokens);
        }
        piece
    }

    /// Notes what is out now, and leaves of it what the caller does not have.
    fn unsent(&mut self, mut piece: Piece) -> Piece {
        let known = self.sent.bytes.saturating_sub(self.emitted).min(piece.text.len());
        self.emitted += piece.text.len();
        // What a snapshot says may end within a character: the caller's text does not.
        let known = (known..piece.text.len()).find(|&at| piece.text.is_char_boundary(at)).unwrap_or(piece.text.len());
        piece.text.drain(..known);
        let known = self.sent.tokens.saturating_sub(self.released).min(piece.tokens.len());
        self.released += piece.tokens.len();
        piece.tokens.drain(..known);
        self.sent.bytes = self.sent.bytes.max(self.emitted);
        self.sent.tokens = self.sent.tokens.max(self.released);
        piece
    }

    /// Lets go the tokens whose text is out with this, or at a stop those that have some text out.
    ///
    /// A token without text (the first bytes of a character, a special token) goes with the next
    /// that has some.
    fn release(&mut self, text: String, stop: Option<usize>) -> Piece {
        let emitted = self.emitted + text.len();
        let out = |held: &HeldToken| match stop {
            Some(_) => held.start < emitted && held.start < held.end,
            None => held.end <= emitted && held.start < held.end,
        };
        let ready = self.held.iter().rposition(out).map_or(0, |last| last + 1);
        let tokens = self.held.drain(..ready).map(|held| held.token).collect();
        if stop.is_some() {
            self.held.clear();
        }
        self.unsent(Piece { text, tokens, stop })
    }
}
