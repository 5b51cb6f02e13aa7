//! What is measured: every combination of the lists on the command line.
use crate::args::RunArgs;
use crate::options::Quantize;

/// One combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// How weights are quantized.
    pub quantize: Quantize,
    /// Prompt tokens of the prefill, which runs alone.
    pub prompt: usize,
    /// Decode steps.
    pub steps: usize,
    /// Sequences that decode together.
    pub batch: usize,
    /// Tokens in the cache of each when decoding begins; 0 is the prompt.
    pub depth: usize,
}

impl Case {
    /// Every combination, each once, in the order of the flags' values.
    pub fn all(args: &RunArgs) -> Vec<Case> {
        let mut cases = Vec::new();
        for &quantize in &args.quantize {
            for &depth in &args.depth {
                for &batch in &args.batch {
                    for &prompt in &args.prompt {
                        for &steps in &args.steps {
                            let case = Case { quantize, prompt, steps, batch, depth };
                            if !cases.contains(&case) {
                                cases.push(case);
                            }
                        }
                    }
                }
            }
        }
        cases
    }

    /// Tokens in the cache of each sequence when decoding begins.
    pub fn context(&self) -> usize {
        if self.depth == 0 { self.prompt } else { self.depth }
    }

    /// Whether the request whose prefill is measured is the one that then decodes.
    pub fn is_one_request(&self) -> bool {
        self.batch == 1 && self.context() == self.prompt
    }

    /// Tokens that a sequence has at most. Sequences of a batch that are prefilled first generate some
    /// while the others are prefilled, at least `step_rows - batch + 1` rows a step.
    pub fn max_len(&self, step_rows: usize) -> usize {
        let prefill_steps = (self.batch * self.context()).div_ceil((step_rows + 1).saturating_sub(self.batch).max(1));
        let waiting = if self.batch > 1 { prefill_steps + 1 } else { 0 };
        // The first token, those of the steps, and one that is never reached: a full sequence would end.
        self.prompt.max(self.context() + waiting) + self.steps + 2
    }
}

#[cfg(test)]
pub(crate) fn example() -> Case {
    Case { quantize: Quantize::None, prompt: 512, steps: 64, batch: 1, depth: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use clap::Parser;

    fn cases(flags: &str) -> Vec<Case> {
        let words = ["bench", "run", "--model", "x"].into_iter().chain(flags.split_whitespace());
        match Args::try_parse_from(words).unwrap().command {
            Command::Run(run) => Case::all(&run),
            _ => unreachable!(),
        }
    }

    #[test]
    fn lists_are_combined() {
        assert_eq!(cases(""), [example()]);
        let all = cases("--prompt 8,16 --gen 4 --batch 1,2,4 --depth 0,32");
        assert_eq!(all.len(), 2 * 3 * 2);
        assert_eq!(all[0], Case { prompt: 8, steps: 4, ..example() });
        assert_eq!(all[1], Case { prompt: 16, steps: 4, ..example() });
        assert_eq!(all[11], Case { prompt: 16, steps: 4, batch: 4, depth: 32, ..example() });
        assert_eq!(cases("--prompt 8,8,8").len(), 1, "a value given twice is measured once");
    }

    #[test]
    fn sequences_have_room_for_what_they_generate() {
        assert_eq!(example().max_len(512), 512 + 64 + 2);
        assert_eq!(Case { depth: 4096, ..example() }.max_len(512), 4096 + 64 + 2);
        assert_eq!(Case { depth: 16, ..example() }.max_len(512), 512 + 64 + 2);
        // 16 x 128 rows, 497 a step and more: 5 steps.
        let batched = Case { prompt: 128, batch: 16, ..example() };
        assert_eq!(batched.max_len(512), 128 + 6 + 64 + 2);
        assert!(Case { batch: 64, ..batched }.max_len(64) > 128 * 64);
        assert!(example().is_one_request() && !batched.is_one_request());
        assert!(!Case { depth: 4096, ..example() }.is_one_request());
    }
}
