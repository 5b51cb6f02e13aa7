//! Stop strings over a stream of text.

/// Finds the first stop string in a stream of text pieces, holding back just enough text that
/// nothing of a stop string is ever emitted.
///
/// The match that *completes* first wins, whatever the pieces; of several that complete at the same
/// character, the longest. So the emitted text is a function of the concatenated pieces only.
///
/// ```
/// let mut stops = anyfleet_text::StopStrings::new(["</s>", "\nUser:"], false);
/// assert_eq!(stops.push("Hi.\nUs"), ("Hi.".to_string(), None));
/// assert_eq!(stops.push("er: more"), (String::new(), Some(1)));
/// ```
#[derive(Debug, Clone)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    include: bool,
    held: String,
    matched: Option<usize>,
}

/// One stop string with its Knuth-Morris-Pratt failure function and how far it matches now.
#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fail[k]`: length of the longest proper border of the first `k + 1` bytes.
    fail: Vec<usize>,
    matched: usize,
    index: usize,
}

impl Pattern {
    fn new(text: &str, index: usize) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut fail = vec![0; bytes.len()];
        let mut k = 0;
        for i in 1..bytes.len() {
            while k > 0 && bytes[i] != bytes[k] {
                k = fail[k - 1];
            }
            if bytes[i] == bytes[k] {
                k += 1;
            }
            fail[i] = k;
        }
        Self { bytes, fail, matched: 0, index }
    }

    /// Advances by one byte; true when the whole pattern has just been seen.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fail[self.matched - 1];
        }
        if self.bytes[self.matched] == byte {
            self.matched += 1;
        }
        self.matched == self.bytes.len()
    }
}

impl StopStrings {
    /// A matcher for `stops`; an empty string among them never matches. With `include`, the stop
    /// string itself is emitted before the stream ends.
    pub fn new<S: AsRef<str>>(stops: impl IntoIterator<Item = S>, include: bool) -> Self {
        let patterns = stops
            .into_iter()
            .enumerate()
            .filter(|(_, s)| !s.as_ref().is_empty())
            .map(|(i, s)| Pattern::new(s.as_ref(), i))
            .collect();
        Self { patterns, include, held: String::new(), matched: None }
    }

    /// Whether there is anything to match; without, text passes through untouched.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Takes the next piece of text. Returns the text that is now safe to emit, and the index (in
    /// the order given to [`new`](Self::new)) of the stop string once one is complete. Text after
    /// a match is dropped.
    pub fn push(&mut self, piece: &str) -> (String, Option<usize>) {
        if self.matched.is_some() {
            return (String::new(), self.matched);
        }
        if self.patterns.is_empty() {
            return (piece.to_owned(), None);
        }
        for (at, &byte) in piece.as_bytes().iter().enumerate() {
            let mut winner: Option<(usize, usize)> = None; // (length, index)
            for p in &mut self.patterns {
                if p.step(byte) && winner.is_none_or(|(length, _)| p.bytes.len() > length) {
                    winner = Some((p.bytes.len(), p.index));
                }
            }
            if let Some((length, index)) = winner {
                self.matched = Some(index);
                self.held.push_str(&piece[..=at]);
                let mut text = std::mem::take(&mut self.held);
                if !self.include {
                    text.truncate(text.len() - length);
                }
                return (text, self.matched);
            }
        }
        self.held.push_str(piece);
        // A stop string that completes later begins inside the longest suffix that is a prefix of one.
        let keep = self.patterns.iter().map(|p| p.matched).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, tail), None)
    }

    /// Ends the stream: the text held back, unless a stop string matched.
    pub fn finish(&mut self) -> String {
        for p in &mut self.patterns {
            p.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// The stop string that matched, if one has.
    pub fn matched(&self) -> Option<usize> {
        self.matched
    }
}
