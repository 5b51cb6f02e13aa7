//! The sparse inputs of penalties, bias and bans.
use crate::{SamplingParams, TokenAdjust};
use std::ops::Range;

/// What is known of the tokens that a sequence's sampling treats specially, kept up to date token by
/// token. Empty, and free, for requests without penalties, bias or bans.
#[derive(Clone, Debug, Default)]
pub(crate) struct Adjustments {
    /// Sorted by token, one entry each.
    entries: Vec<TokenAdjust>,
    /// Penalties look at the output, so occurrences are counted.
    penalties: bool,
    min_tokens: usize,
}

impl Adjustments {
    /// `stop_tokens` are those that may not be chosen before `min_tokens` others have been.
    pub(crate) fn new(params: &SamplingParams, prompt: &[u32], stop_tokens: &[u32]) -> Self {
        let repetition = params.repetition_penalty != 1.0;
        let penalties = repetition || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        let mut entries: Vec<TokenAdjust> = Vec::new();
        if repetition {
            entries.extend(prompt.iter().map(|&token| TokenAdjust { token, in_prompt: true, ..Default::default() }));
        }
        if params.min_tokens > 0 {
            entries.extend(stop_tokens.iter().map(|&token| TokenAdjust { token, banned: true, ..Default::default() }));
        }
        entries.extend(params.logit_bias.iter().map(|&(token, bias)| TokenAdjust {
            token,
            bias,
            ..Default::default()
        }));
        entries.sort_by_key(|entry| entry.token);
        entries.dedup_by(|next, kept| {
            let same = next.token == kept.token;
            if same {
                kept.in_prompt |= next.in_prompt;
                kept.banned |= next.banned;
                kept.bias += next.bias;
            }
            same
        });
        Adjustments { entries, penalties, min_tokens: params.min_tokens as usize }
    }

    /// Whether the next token depends on which token comes before it other than through the logits.
    pub(crate) fn follow_output(&self) -> bool {
        self.penalties
    }

    /// Counts a token of the output.
    pub(crate) fn record(&mut self, token: u32) {
        if !self.penalties {
            return;
        }
        match self.entries.binary_search_by_key(&token, |entry| entry.token) {
            Ok(at) => self.entries[at].output_count += 1,
            Err(at) => self.entries.insert(at, TokenAdjust { token, output_count: 1, ..Default::default() }),
        }
    }

    /// Appends the entries for the row that chooses output token number `index`.
    pub(crate) fn write(&self, index: usize, into: &mut Vec<TokenAdjust>) -> Range<u32> {
        let start = into.len() as u32;
        let bans = index < self.min_tokens;
        into.extend(self.entries.iter().filter_map(|entry| {
            let entry = TokenAdjust { banned: entry.banned && bans, ..*entry };
            let neutral = TokenAdjust { token: entry.token, ..Default::default() };
            (entry != neutral).then_some(entry)
        }));
        start..into.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(adjustments: &Adjustments, index: usize) -> Vec<TokenAdjust> {
        let mut entries = Vec::new();
        let range = adjustments.write(index, &mut entries);
        assert_eq!(range, 0..entries.len() as u32);
        entries
    }

    #[test]
    fn plain_sampling_needs_nothing() {
        let mut plain = Adjustments::new(&SamplingParams::default(), &[1, 2], &[0]);
        plain.record(5);
        assert!(write(&plain, 1).is_empty() && !plain.follow_output());
    }

    #[test]
    fn prompt_output_bias_and_bans_meet_in_one_sorted_entry() {
        let params = SamplingParams {
            repetition_penalty: 1.5,
            logit_bias: vec![(7, 2.0), (3, -1.0)],
            min_tokens: 1,
            ..Default::default()
        };
        let mut adjustments = Adjustments::new(&params, &[3, 9, 3], &[3, 4]);
        let entry = |token| TokenAdjust { token, ..Default::default() };
        let prompt = |token| TokenAdjust { in_prompt: true, ..entry(token) };
        let first = [
            TokenAdjust { banned: true, bias: -1.0, ..prompt(3) },
            TokenAdjust { banned: true, ..entry(4) },
            TokenAdjust { bias: 2.0, ..entry(7) },
            prompt(9),
        ];
        assert_eq!(write(&adjustments, 0), first);
        adjustments.record(9);
        adjustments.record(9);
        adjustments.record(5);
        let later = [
            TokenAdjust { bias: -1.0, ..prompt(3) },
            TokenAdjust { output_count: 1, ..entry(5) },
            TokenAdjust { bias: 2.0, ..entry(7) },
            TokenAdjust { output_count: 2, ..prompt(9) },
        ];
        assert_eq!(write(&adjustments, 3), later);
    }
}
