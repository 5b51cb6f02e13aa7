//! Step inputs: one device buffer that one transfer refreshes, and views of it.
//!
//! What a step is told lies in it without gaps that matter: what the head's first run is told, then the step's own
//! tensors as wide as the step's bucket, then the page tables of all cache groups behind each other. Wider buckets have their
//! tensors at other places; plans are recorded per bucket. (Penalties, masks, and rows of logits past the first 64, have buffers of
//! their own: [`HeadBuffers`](crate::output::HeadBuffers).)
use crate::head_inputs::{self, HeadInputs};
use crate::plan::ExecutorOptions;
use anyfleet_models::{GroupTensors, StepTensors};
use anyfleet_runtime::{Batch, GroupBatch, Limits, TokenSource};
use anyfleet_tensor::{Backend, DType, Error, Result, SeqMeta, StepHeader, Tensor};

/// `u32`s of one [`SeqMeta`].
const SEQ_WORDS: usize = size_of::<SeqMeta>() / 4;

/// Tensors start at multiples of so many words: a cache line, which serves every vector load.
const ALIGNED: usize = 16;

/// The device buffer and staging for it.
pub struct StepInputs<B: Backend> {
    buffer: B::Buffer,
    /// The largest bucket.
    most: Bucket,
    groups: usize,
    /// Page ids in the tables of all groups.
    table: usize,
    longest: usize,
    words: Vec<u32>,
    seqs: Vec<SeqMeta>,
}

/// The smallest shapes a plan is recorded for that hold a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    tokens: usize,
    sequences: usize,
}

/// Where a bucket's tensors start, in words.
struct Layout {
    header: usize,
    ids: usize,
    positions: usize,
    /// Slots and sequences of each group.
    groups: Vec<(usize, usize)>,
    /// Tables; the rest of the buffer.
    table: usize,
}

impl Layout {
    fn new(bucket: Bucket, groups: usize) -> Layout {
        let mut end = head_inputs::WORDS;
        let mut take = |words: usize| {
            let start = end.next_multiple_of(ALIGNED);
            end = start + words;
            start
        };
        let Bucket { tokens, sequences } = bucket;
        Layout {
            header: take(size_of::<StepHeader>() / 4),
            ids: take(tokens),
            positions: take(tokens),
            groups: (0..groups).map(|_| (take(tokens), take(sequences * SEQ_WORDS))).collect(),
            table: take(0),
        }
    }
}

/// Page ids that the tables of all groups hold together.
fn table_entries(options: &ExecutorOptions, groups: usize, pages_per_sequence: usize) -> usize {
    groups * options.max_sequences * pages_per_sequence
}

fn largest(options: &ExecutorOptions) -> Bucket {
    Bucket { tokens: options.max_tokens, sequences: options.max_sequences }
}

impl<B: Backend> StepInputs<B> {
    /// Bytes [`StepInputs::new`] allocates.
    pub fn bytes(options: &ExecutorOptions, groups: usize, pages_per_sequence: usize) -> usize {
        4 * (Layout::new(largest(options), groups).table + table_entries(options, groups, pages_per_sequence))
    }

    /// Allocates inputs for the largest batch.
    pub fn new(device: &B, options: &ExecutorOptions, groups: usize, limits: &Limits) -> Result<Self> {
        let pages_per_sequence = limits.max_model_len.div_ceil(limits.cache.page_size as usize);
        Ok(StepInputs {
            buffer: device.alloc(Self::bytes(options, groups, pages_per_sequence))?,
            most: largest(options),
            groups,
            table: table_entries(options, groups, pages_per_sequence),
            longest: limits.max_model_len,
            words: Vec::new(),
            seqs: Vec::with_capacity(options.max_sequences),
        })
    }

    /// The bucket of a batch: powers of two up to the capacity, so that few plans serve all counts.
    pub fn bucket(&self, batch: &Batch) -> Bucket {
        let up = |n: usize, most: usize| n.next_power_of_two().min(most);
        Bucket {
            tokens: up(batch.tokens.len(), self.most.tokens),
            sequences: up(batch.sequences.len(), self.most.sequences),
        }
    }

    /// All buckets, the largest first.
    pub fn buckets(&self) -> Vec<Bucket> {
        let sizes = |most: usize| {
            let powers = std::iter::successors(Some(1), |n: &usize| Some(2 * n)).take_while(move |&n| n < most);
            powers.chain([most]).collect::<Vec<_>>().into_iter().rev()
        };
        let with = |tokens: usize| {
            let fitting = sizes(self.most.sequences).filter(move |&s| s <= tokens);
            fitting.map(move |sequences| Bucket { tokens, sequences })
        };
        sizes(self.most.tokens).flat_map(with).collect()
    }

    fn tensor(&self, start: usize, shape: &[usize]) -> Tensor<B> {
        Tensor::from_buffer_at(self.buffer.clone(), 4 * start, DType::U32, shape)
    }

    /// Views of the inputs, as wide as `bucket`. `sampled` are the tokens of the step before, where the device has them.
    pub fn view(&self, bucket: Bucket, sampled: Option<Tensor<B>>) -> StepTensors<B> {
        let layout = Layout::new(bucket, self.groups);
        let table = self.tensor(layout.table, &[self.table]);
        let group = |&(slots, seqs): &(usize, usize)| GroupTensors {
            slots: self.tensor(slots, &[bucket.tokens]),
            seqs: self.tensor(seqs, &[bucket.sequences, SEQ_WORDS]),
            table: table.clone(),
        };
        StepTensors {
            header: self.tensor(layout.header, &[size_of::<StepHeader>() / 4]),
            ids: self.tensor(layout.ids, &[bucket.tokens]),
            sampled,
            positions: self.tensor(layout.positions, &[bucket.tokens]),
            groups: layout.groups.iter().map(group).collect(),
            longest: self.longest,
        }
    }

    /// What the head's first run of a step is told.
    pub fn head(&self) -> HeadInputs<B> {
        HeadInputs::at(&self.buffer, 0)
    }

    /// Writes a batch, and into what the head's first run is told what `head` makes of its words. `resolve` gives the
    /// id of each token source.
    pub fn write(
        &mut self,
        device: &B,
        batch: &Batch,
        resolve: impl Fn(TokenSource) -> u32,
        head: impl FnOnce(&mut [u32]),
    ) -> Result<()> {
        let too_large =
            |host: usize, tensor: usize| Error::Transfer { op: "write", host: 4 * host, tensor: 4 * tensor };
        for (len, most) in [(batch.tokens.len(), self.most.tokens), (batch.sequences.len(), self.most.sequences)] {
            if len > most {
                return Err(too_large(len, most));
            }
        }
        let layout = Layout::new(self.bucket(batch), self.groups);
        self.words.clear();
        self.words.resize(layout.table, 0);
        head(&mut self.words[..head_inputs::WORDS]);
        let header = StepHeader {
            tokens: batch.tokens.len() as u32,
            sequences: batch.sequences.len() as u32,
            logit_rows: 0,
            reserved: 0,
        };
        let words = &mut self.words;
        put(words, layout.header, bytemuck::cast_slice(bytemuck::bytes_of(&header)));
        words[layout.ids..].iter_mut().zip(&batch.tokens).for_each(|(word, &token)| *word = resolve(token));
        assert_eq!(batch.positions.len(), batch.tokens.len(), "executor: a position for each token");
        put(words, layout.positions, &batch.positions);
        for (&(slots_at, seqs_at), group) in layout.groups.iter().zip(&batch.groups) {
            let GroupBatch::Pages { slots, table, ranges } = group else {
                panic!("executor: a recurrent cache group in a model that has none");
            };
            assert_eq!(slots.len(), batch.tokens.len(), "executor: a slot for each token");
            let before = (words.len() - layout.table) as u32;
            self.seqs.clear();
            self.seqs.extend(batch.sequences.iter().zip(ranges).map(|(seq, range)| SeqMeta {
                row_start: seq.row_start,
                rows: seq.rows,
                context_len: seq.context_len,
                table_start: before + range.start,
                first_page: range.first_page,
                reserved: [0; 3],
            }));
            put(words, slots_at, slots);
            put(words, seqs_at, bytemuck::cast_slice(&self.seqs));
            words.extend_from_slice(table);
        }
        let most = layout.table + self.table;
        if self.words.len() > most {
            return Err(too_large(self.words.len(), most));
        }
        device.write(&self.tensor(0, &[self.words.len()]), bytemuck::cast_slice(&self.words))
    }
}

fn put(words: &mut [u32], start: usize, values: &[u32]) {
    words[start..start + values.len()].copy_from_slice(values);
}
