//! An executor without arithmetic, to test schedulers with.
//!
//! It has a real cache: every slot remembers what was stored there, and a row's logits are a hash of
//! all that the row can see, read *through* the block tables and state pages. What a slot stores is
//! such a hash too, as a layer's keys depend on all earlier tokens. So a wrong table, slot or state,
//! a stale page, a page shared too early, a window cut too short change the answer; and what can be
//! recognised as wrong (positions, ranges, two writers, a reader beside a writer) fails the step with
//! a message that [`NullExecutor::violations`] keeps.
mod check;
mod memory;
mod sampler;

use crate::{
    Batch, CacheKind, CacheSpec, Executor, ExecutorError, GroupSpec, Limits, SampleMode, StepOutput, TOP_LOGPROBS,
    TokenSource,
};
use memory::Memory;
use std::collections::VecDeque;
use std::time::Duration;

pub use sampler::choose;

/// Faults and delays of a [`NullExecutor`].
#[derive(Clone, Debug, Default)]
pub struct NullOptions {
    /// Calls of [`Executor::submit`], counted from 0, that fail.
    pub fail_submit: Vec<u64>,
    /// Submitted steps, counted likewise, that fail when waited for.
    pub fail_wait: Vec<u64>,
    /// Time that a step takes.
    pub time_per_step: Duration,
    /// Time that each of its rows adds.
    pub time_per_row: Duration,
}

/// See the [module](self).
#[derive(Debug)]
pub struct NullExecutor {
    limits: Limits,
    options: NullOptions,
    memory: Memory,
    submits: u64,
    /// Tokens that the last submitted batch chose.
    last_ids: Vec<u32>,
    finished: VecDeque<Finished>,
    output: StepOutput,
    violations: Vec<String>,
    logits: Vec<f32>,
}

#[derive(Debug)]
struct Finished {
    outcome: Result<StepOutput, ExecutorError>,
    time: Duration,
}

impl NullExecutor {
    /// An executor with these limits and faults.
    pub fn new(limits: Limits, options: NullOptions) -> Self {
        NullExecutor {
            memory: Memory::new(&limits.cache),
            limits,
            options,
            submits: 0,
            last_ids: Vec::new(),
            finished: VecDeque::new(),
            output: StepOutput::default(),
            violations: Vec::new(),
            logits: Vec::new(),
        }
    }

    /// One paged group of 64 pages of 4 tokens, a vocabulary of 64, 128 tokens per sequence.
    pub fn small() -> Self {
        let groups = vec![GroupSpec { kind: CacheKind::Paged, pages: 64 }];
        let limits = Limits {
            max_tokens: 64,
            max_sequences: 16,
            max_model_len: 128,
            vocab_size: 64,
            cache: CacheSpec { page_size: 4, groups },
            steps_in_flight: 1,
        };
        NullExecutor::new(limits, NullOptions::default())
    }

    /// What was found wrong with the batches so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn run(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        check::check(batch, &self.limits, self.last_ids.len())?;
        let tokens: Vec<u32> = batch
            .tokens
            .iter()
            .map(|source| match *source {
                TokenSource::Id(id) => id,
                TokenSource::SampledBy(row) => self.last_ids[row as usize],
            })
            .collect();
        let hidden = self.memory.run(batch, &tokens)?;

        let mut output = StepOutput::default();
        for row in &batch.logit_rows {
            let logits = &mut self.logits;
            logits.clear();
            logits.extend((0..self.limits.vocab_size as u64).map(|token| {
                let bits = memory::mix(hidden[row.row as usize], token) >> 40;
                bits as f32 / (1 << 24) as f32 * 8.0 - 4.0
            }));
            let adjust = &batch.adjust[row.adjust.start as usize..row.adjust.end as usize];
            let id = match row.mode {
                SampleMode::Score(token) => token,
                SampleMode::Greedy | SampleMode::Random => {
                    let words = self.limits.vocab_size.div_ceil(32);
                    let mask = row.mask.map(|mask| &batch.masks[mask as usize * words..][..words]);
                    sampler::choose_masked(logits, row, adjust, mask)
                }
            };
            let log_sum = logits.iter().map(|logit| logit.exp()).sum::<f32>().ln();
            output.ids.push(id);
            output.logprobs.push(logits[id as usize] - log_sum);
            let mut order = sampler::highest_first(logits);
            order.truncate(TOP_LOGPROBS);
            output.top_logprobs.extend(order.iter().map(|&id| logits[id as usize] - log_sum));
            output.top_ids.append(&mut order);
            let end = output.ids.len() * TOP_LOGPROBS;
            output.top_ids.resize(end, u32::MAX);
            output.top_logprobs.resize(end, f32::NEG_INFINITY);
            if row.want_logits {
                output.logits.extend_from_slice(logits);
            }
        }
        self.last_ids.clone_from(&output.ids);
        Ok(output)
    }
}

impl Executor for NullExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        let step = self.submits;
        self.submits += 1;
        if self.finished.len() >= self.limits.steps_in_flight {
            let message = format!("{} steps are in flight already", self.finished.len());
            self.violations.push(message.clone());
            return Err(ExecutorError(message));
        }
        if self.options.fail_submit.contains(&step) {
            self.memory.poison(batch);
            return Err(ExecutorError(format!("injected failure of submit {step}")));
        }
        let broken = self.finished.iter().any(|earlier| earlier.outcome.is_err());
        let outcome = match self.run(batch) {
            // It may read what the failed step should have stored; the runtime cannot know yet.
            _ if broken => Err(ExecutorError("a step before it failed".into())),
            Ok(_) if self.options.fail_wait.contains(&step) => {
                self.memory.poison(batch);
                Err(ExecutorError(format!("injected failure of step {step}")))
            }
            Ok(output) => Ok(output),
            Err(violation) => {
                self.violations.push(format!("step {step}: {violation}"));
                Err(ExecutorError(violation))
            }
        };
        let time = self.options.time_per_step + self.options.time_per_row * batch.tokens.len() as u32;
        self.finished.push_back(Finished { outcome, time });
        Ok(())
    }

    fn wait(&mut self) -> Result<&StepOutput, ExecutorError> {
        let Some(Finished { outcome, time }) = self.finished.pop_front() else {
            self.violations.push("waited for a step that was not submitted".into());
            return Err(ExecutorError("no step is in flight".into()));
        };
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        self.output = outcome?;
        Ok(&self.output)
    }
}
