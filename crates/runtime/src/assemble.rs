//! Writes a plan out as a batch.
use crate::scheduler::{Planned, Scheduler};
use crate::sequence::{SeqKey, Sequence};
use crate::{Batch, GroupBatch, LogitRow, SampleMode, SeqRows, TokenSource};

impl Batch {
    /// Empties the batch and keeps its memory.
    fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.adapters.clear();
        self.sequences.clear();
        self.logit_rows.clear();
        self.adjust.clear();
        self.masks.clear();
        for group in &mut self.groups {
            match group {
                GroupBatch::Pages { slots, table, ranges } => {
                    slots.clear();
                    table.clear();
                    ranges.clear();
                }
                GroupBatch::States { read, write } => {
                    read.clear();
                    write.clear();
                }
            }
        }
    }
}

/// Token rows of a step.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) prefill: u64,
    pub(crate) decode: u64,
}

/// Fills `batch` with what the scheduler planned and notes in the sequences what is now in flight.
pub(crate) fn assemble(scheduler: &mut Scheduler, vocab_size: usize, batch: &mut Batch) -> Rows {
    batch.clear();
    let mut rows = Rows::default();
    let Scheduler { plan, sequences, cache, .. } = scheduler;
    for planned in plan.iter() {
        let Some(sequence) = sequences.get_mut(&planned.key) else { continue };
        cache.describe(&sequence.lease, planned.start, planned.rows, &mut batch.groups);
        add_rows(planned, sequence, vocab_size, batch);
        sequence.steps_in_flight += 1;
        match planned.start >= sequence.job.prompt_len() && planned.rows == 1 {
            true => rows.decode += 1,
            false => rows.prefill += planned.rows as u64,
        }
    }
    rows
}

fn add_rows(planned: &Planned, sequence: &mut Sequence, vocab_size: usize, batch: &mut Batch) {
    let (start, end) = (planned.start, planned.start + planned.rows);
    let row_start = batch.tokens.len() as u32;
    batch.sequences.push(SeqRows { row_start, rows: planned.rows as u32, context_len: end as u32 });
    batch.tokens.extend((start..end).map(|position| match sequence.tokens.get(position) {
        Some(&id) => TokenSource::Id(id),
        None => TokenSource::SampledBy(sequence.source_row),
    }));
    batch.positions.extend(start as u32..end as u32);
    batch.adapters.extend(std::iter::repeat_n(sequence.job.scope.adapter, planned.rows));

    // Row r is given token r and says how likely token r + 1 is.
    if let Some(scores) = &sequence.prompt_scores {
        let scored = (start.max(scores.len())..end).take_while(|r| r + 1 < sequence.job.prompt_len());
        for r in scored {
            let mode = SampleMode::Score(sequence.tokens[r + 1]);
            let row = row_start + (r - start) as u32;
            batch.logit_rows.push(LogitRow { mode, ..plain_row(row, planned.key, r + 1, sequence.job.seed) });
        }
    }
    if sequence.chooses(end) {
        let row = row_start + planned.rows as u32 - 1;
        let mut choosing = choosing_row(plain_row(row, planned.key, end, sequence.job.seed), sequence, batch);
        choosing.mask = sequence.guide.as_mut().and_then(|guide| guide.write(vocab_size, &mut batch.masks));
        sequence.source_row = batch.logit_rows.len() as u32;
        sequence.tokens_in_flight += 1;
        batch.logit_rows.push(choosing);
    }
}

fn plain_row(row: u32, key: SeqKey, position: usize, seed: u64) -> LogitRow {
    LogitRow {
        row,
        mode: SampleMode::Greedy,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed,
        choice: key.choice,
        position: position as u32,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        adjust: 0..0,
        mask: None,
        want_logits: false,
    }
}

fn choosing_row(plain: LogitRow, sequence: &Sequence, batch: &mut Batch) -> LogitRow {
    let params = &sequence.job.params;
    let index = plain.position as usize - sequence.job.prompt_len();
    let row = LogitRow {
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        adjust: sequence.adjustments.write(index, &mut batch.adjust),
        ..plain
    };
    match params.is_greedy() {
        true => row,
        false => LogitRow {
            mode: SampleMode::Random,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            ..row
        },
    }
}
