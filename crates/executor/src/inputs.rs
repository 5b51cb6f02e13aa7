//! Step inputs: fixed device tensors and the host vectors they are refreshed from.
use crate::plan::ExecutorOptions;
use anyfleet_models::{GroupTensors, StepTensors};
use anyfleet_runtime::{Batch, GroupBatch, Limits};
use anyfleet_tensor::{Backend, DType, Result, SeqMeta, StepHeader, Tensor};

/// `u32`s of one [`SeqMeta`].
const SEQ_WORDS: usize = size_of::<SeqMeta>() / 4;

/// Device tensors at full capacity, and staging for them.
pub struct StepInputs<B: Backend> {
    tensors: StepTensors<B>,
    ids: Vec<u32>,
    seqs: Vec<SeqMeta>,
}

/// The smallest shapes a plan is recorded for that hold a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    tokens: usize,
    sequences: usize,
}

impl<B: Backend> StepInputs<B> {
    /// Bytes [`StepInputs::new`] allocates.
    pub fn bytes(options: &ExecutorOptions, groups: usize, pages_per_sequence: usize) -> usize {
        let (tokens, sequences) = (options.max_tokens, options.max_sequences);
        let group = tokens + sequences * (SEQ_WORDS + pages_per_sequence);
        size_of::<StepHeader>() + 4 * (2 * tokens + groups * group)
    }

    /// Allocates inputs for the largest batch.
    pub fn new(device: &B, options: &ExecutorOptions, groups: usize, limits: &Limits) -> Result<Self> {
        let pages_per_sequence = limits.max_model_len.div_ceil(limits.cache.page_size as usize);
        let (tokens, sequences) = (options.max_tokens, options.max_sequences);
        let u32s = |shape: &[usize]| Tensor::new(device, DType::U32, shape);
        let group = || {
            Ok(GroupTensors {
                slots: u32s(&[tokens])?,
                seqs: u32s(&[sequences, SEQ_WORDS])?,
                table: u32s(&[sequences * pages_per_sequence])?,
            })
        };
        let tensors = StepTensors {
            header: u32s(&[size_of::<StepHeader>() / 4])?,
            ids: u32s(&[tokens])?,
            positions: u32s(&[tokens])?,
            groups: (0..groups).map(|_| group()).collect::<Result<_>>()?,
            longest: limits.max_model_len,
        };
        Ok(StepInputs { tensors, ids: Vec::with_capacity(tokens), seqs: Vec::with_capacity(sequences) })
    }

    /// The bucket of a batch: powers of two up to the capacity, so that few plans serve all counts.
    pub fn bucket(&self, batch: &Batch) -> Bucket {
        let up = |n: usize, most: usize| n.next_power_of_two().min(most);
        Bucket {
            tokens: up(batch.tokens.len(), self.tensors.ids.rows()),
            sequences: up(batch.sequences.len(), self.tensors.groups[0].seqs.rows()),
        }
    }

    /// All buckets, the largest first.
    pub fn buckets(&self) -> Vec<Bucket> {
        let sizes = |most: usize| {
            let powers = std::iter::successors(Some(1), |n: &usize| Some(2 * n)).take_while(move |&n| n < most);
            powers.chain([most]).collect::<Vec<_>>().into_iter().rev()
        };
        let (tokens, sequences) = (self.tensors.ids.rows(), self.tensors.groups[0].seqs.rows());
        let with = |tokens: usize| {
            sizes(sequences).filter(move |&s| s <= tokens).map(move |sequences| Bucket { tokens, sequences })
        };
        sizes(tokens).flat_map(with).collect()
    }

    /// Views of the inputs, as wide as `bucket`.
    pub fn view(&self, bucket: Bucket) -> StepTensors<B> {
        let t = &self.tensors;
        let group = |g: &GroupTensors<B>| GroupTensors {
            slots: g.slots.narrow(0, bucket.tokens),
            seqs: g.seqs.narrow(0, bucket.sequences),
            table: g.table.clone(),
        };
        StepTensors {
            header: t.header.clone(),
            ids: t.ids.narrow(0, bucket.tokens),
            positions: t.positions.narrow(0, bucket.tokens),
            groups: t.groups.iter().map(group).collect(),
            longest: t.longest,
        }
    }

    /// Writes a batch; `resolve` gives the id of each token source.
    pub fn write(
        &mut self,
        device: &B,
        batch: &Batch,
        resolve: impl Fn(anyfleet_runtime::TokenSource) -> u32,
    ) -> Result<()> {
        let header = StepHeader {
            tokens: batch.tokens.len() as u32,
            sequences: batch.sequences.len() as u32,
            logit_rows: 0,
            reserved: 0,
        };
        self.ids.clear();
        self.ids.extend(batch.tokens.iter().map(|&t| resolve(t)));
        device.write(&self.tensors.header, bytemuck::bytes_of(&header))?;
        device.write(&self.tensors.ids, bytemuck::cast_slice(&self.ids))?;
        device.write(&self.tensors.positions, bytemuck::cast_slice(&batch.positions))?;
        for (tensors, group) in self.tensors.groups.iter().zip(&batch.groups) {
            let GroupBatch::Pages { slots, table, ranges } = group else {
                panic!("executor: a recurrent cache group in a model that has none");
            };
            self.seqs.clear();
            self.seqs.extend(batch.sequences.iter().zip(ranges).map(|(seq, range)| SeqMeta {
                row_start: seq.row_start,
                rows: seq.rows,
                context_len: seq.context_len,
                table_start: range.start,
                first_page: range.first_page,
                reserved: [0; 3],
            }));
            device.write(&tensors.slots, bytemuck::cast_slice(slots))?;
            device.write(&tensors.seqs, bytemuck::cast_slice(&self.seqs))?;
            device.write(&tensors.table, bytemuck::cast_slice(table))?;
        }
        Ok(())
    }
}
