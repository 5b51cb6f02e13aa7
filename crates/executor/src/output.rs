//! The head's buffers: rows of logits in chunks, what is sampled from them, and the way back.
use crate::head_inputs::{self, HeadInputs, device_adjust};
use crate::plan::{ExecutorOptions, logit_chunks};
use anyfleet_models::{Decoder, DecoderSpec, HeadTensors};
use anyfleet_runtime::{Batch, LogitRow, StepOutput};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::sampling::mask_words;
use anyfleet_tensor::{Adjust, Backend, DType, Encoder, Readback, Result, TOP_LOGPROBS, Tensor};
use std::collections::{HashMap, VecDeque};

/// Rows of logits computed at a time: bounds the logits buffer at `64 * V` floats.
pub const LOGIT_ROWS: usize = 64;

/// Rows that plans of a step's first chunk are recorded for: kernels for one row are not those for many. Later chunks, of
/// scored prompts, are full ones.
const CAPACITIES: [usize; 5] = [1, 8, 16, 32, LOGIT_ROWS];

/// The rows of the plan that computes `rows` rows of chunk `chunk`.
fn capacity(chunk: usize, rows: usize) -> usize {
    let fits = CAPACITIES.into_iter().find(|&capacity| capacity >= rows && chunk == 0);
    fits.unwrap_or(LOGIT_ROWS)
}

/// The runs of a step: key of the plan, and rows.
fn runs(batch: &Batch) -> impl Iterator<Item = ((usize, usize), &[LogitRow])> {
    let chunks = batch.logit_rows.chunks(LOGIT_ROWS).enumerate();
    chunks.map(|(chunk, rows)| ((chunk, capacity(chunk, rows.len())), rows))
}

/// Words of results per row: id, log-probability, and the top ids and log-probabilities.
const RESULT_WORDS: usize = 2 + 2 * TOP_LOGPROBS;

/// Words of the results of one run: each result for all rows, one after another.
const RESULTS: usize = RESULT_WORDS * LOGIT_ROWS;

/// Room for penalty entries, in entries per logit row on average; rows share it.
const ADJUST_PER_ROW: usize = 4096;

/// Device buffers of the head. Run `c` of a step has inputs and results of its own, so that all of it can be asked for
/// before anything is waited for.
pub struct HeadBuffers<B: Backend> {
    inputs: Vec<HeadInputs<B>>,
    /// Inputs of the runs after the first.
    later: Tensor<B>,
    adjust: Tensor<B>,
    /// One for each sequence that has one; written where a batch has any.
    masks: Tensor<B>,
    hidden: Tensor<B>,
    logits: Tensor<B>,
    results: Tensor<B>,
    words: Vec<u32>,
    staged: Vec<Adjust>,
    /// By run and rows.
    plans: HashMap<(usize, usize), B::Plan>,
    /// Steps whose results have not been taken, oldest first.
    launched: VecDeque<Launched<B>>,
}

/// Results on their way.
struct Launched<B: Backend> {
    rows: usize,
    /// `None` where no row was wanted.
    results: Option<B::Readback>,
    /// Whole rows of logits, for the rows that wanted them.
    logits: Vec<f32>,
}

impl<B: Backend> HeadBuffers<B> {
    /// Bytes [`HeadBuffers::new`] allocates.
    pub fn bytes(spec: &DecoderSpec, options: &ExecutorOptions) -> usize {
        let chunks = logit_chunks(options.max_tokens);
        let small = 4 * (later_words(chunks) + chunks * RESULTS);
        let wide = LOGIT_ROWS * (spec.hidden_size * options.activation.size() + spec.vocab_size * 4);
        let masks = options.max_sequences * mask_words(spec.vocab_size) * 4;
        small + wide + adjust_capacity(spec, options) * size_of::<Adjust>() + masks
    }

    /// Allocates the head's buffers; `first` is what the first run of a step is told.
    pub fn new(device: &B, first: HeadInputs<B>, spec: &DecoderSpec, options: &ExecutorOptions) -> Result<Self> {
        let chunks = logit_chunks(options.max_tokens);
        let later = Tensor::new(device, DType::U32, &[later_words(chunks)])?;
        let others = (0..chunks - 1).map(|i| HeadInputs::at(later.buffer(), i * head_inputs::WORDS));
        Ok(HeadBuffers {
            inputs: std::iter::once(first).chain(others).collect(),
            later,
            adjust: Tensor::new(device, DType::U32, &[adjust_capacity(spec, options), size_of::<Adjust>() / 4])?,
            masks: Tensor::new(device, DType::U32, &[options.max_sequences, mask_words(spec.vocab_size)])?,
            hidden: Tensor::new(device, options.activation, &[LOGIT_ROWS, spec.hidden_size])?,
            logits: Tensor::new(device, DType::F32, &[LOGIT_ROWS, spec.vocab_size])?,
            results: Tensor::new(device, DType::U32, &[chunks * RESULTS])?,
            words: Vec::new(),
            staged: Vec::new(),
            plans: HashMap::new(),
            launched: VecDeque::new(),
        })
    }

    /// The tokens that the last step chose, at the places that [`sampled_at`] names.
    pub fn sampled(&self) -> Tensor<B> {
        self.results.clone()
    }

    /// Writes what the head is told of `batch` beside what its first run is, and records the runs over rows of the
    /// residual stream `x` that were not yet, before anything of the step runs.
    pub fn prepare(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>, batch: &Batch) -> Result<()> {
        self.words.clear();
        for rows in batch.logit_rows.chunks(LOGIT_ROWS).skip(1) {
            let start = self.words.len();
            self.words.resize(start + head_inputs::WORDS, 0);
            head_inputs::fill(&mut self.words[start..], batch, rows);
        }
        self.staged.clear();
        self.staged.extend(batch.adjust.iter().map(device_adjust));
        if self.staged.len() > self.adjust.rows() {
            // Penalties over very long contexts in many rows at once: rare, so it may allocate.
            let rows = self.staged.len().next_power_of_two();
            self.adjust = Tensor::new(device, DType::U32, &[rows, size_of::<Adjust>() / 4])?;
            self.plans.clear();
        }
        if !batch.masks.is_empty() {
            device.write(&self.masks, bytemuck::cast_slice(&batch.masks))?;
        }
        device.write(&self.later, bytemuck::cast_slice(&self.words))?;
        device.write(&self.adjust, bytemuck::cast_slice(&self.staged))?;
        runs(batch).try_for_each(|(key, _)| self.plan(device, decoder, x, key))
    }

    /// Starts all runs over the wanted rows, after [`HeadBuffers::prepare`], and the way of their results to the host. Rows
    /// of logits are waited for.
    pub fn launch(&mut self, device: &B, batch: &Batch) -> Result<()> {
        let mut logits = Vec::new();
        let used = batch.logit_rows.len().div_ceil(LOGIT_ROWS);
        for (key, rows) in runs(batch) {
            device.replay(&self.plans[&key])?;
            for (i, _) in rows.iter().enumerate().filter(|(_, row)| row.want_logits) {
                let start = logits.len();
                logits.resize(start + self.logits.cols(), 0.0);
                device.read(&self.logits.narrow(i, 1))?.wait(bytemuck::cast_slice_mut(&mut logits[start..]))?;
            }
        }
        let results = (used > 0).then(|| device.read(&self.results.narrow(0, used * RESULTS))).transpose()?;
        self.launched.push_back(Launched { rows: batch.logit_rows.len(), results, logits });
        Ok(())
    }

    /// Waits for the results of the oldest launched step.
    pub fn collect(&mut self, output: &mut StepOutput) -> Result<()> {
        let launched = self.launched.pop_front().expect("head: nothing was launched");
        output.ids.clear();
        output.logprobs.clear();
        output.top_ids.clear();
        output.top_logprobs.clear();
        output.logits = launched.logits;
        let Some(results) = launched.results else { return Ok(()) };
        self.words.resize(launched.rows.div_ceil(LOGIT_ROWS) * RESULTS, 0);
        results.wait(bytemuck::cast_slice_mut(&mut self.words))?;
        for (chunk, words) in self.words.chunks(RESULTS).enumerate() {
            let n = (launched.rows - chunk * LOGIT_ROWS).min(LOGIT_ROWS);
            let part = |first: usize, len: usize| &words[first * LOGIT_ROWS..first * LOGIT_ROWS + len];
            output.ids.extend_from_slice(part(0, n));
            output.logprobs.extend(part(1, n).iter().map(|&w| f32::from_bits(w)));
            output.top_ids.extend_from_slice(part(2, n * TOP_LOGPROBS));
            output.top_logprobs.extend(part(2 + TOP_LOGPROBS, n * TOP_LOGPROBS).iter().map(|&w| f32::from_bits(w)));
        }
        Ok(())
    }

    /// Records all runs.
    pub fn warm_up(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>) -> Result<()> {
        let first = CAPACITIES.into_iter().map(|rows| (0, rows));
        let later = (1..self.inputs.len()).map(|chunk| (chunk, LOGIT_ROWS));
        first.chain(later).try_for_each(|key| self.plan(device, decoder, x, key))
    }

    /// Makes room for results on the host.
    pub fn make_room(&self, device: &B) -> Result<()> {
        let logits = self.logits.narrow(0, 1);
        [&self.results, &logits]
            .into_iter()
            .try_for_each(|values| device.read(values)?.wait(&mut vec![0; values.bytes()]))
    }

    fn plan(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>, key: (usize, usize)) -> Result<()> {
        if !self.plans.contains_key(&key) {
            let plan = device.record(|enc| self.encode(enc, decoder, x, key))?;
            self.plans.insert(key, plan);
        }
        Ok(())
    }

    fn encode(&self, enc: &mut Encoder<'_, B>, decoder: &Decoder<B>, x: &Tensor<B>, (chunk, capacity): (usize, usize)) {
        let inputs = &self.inputs[chunk];
        let [ids, logprobs, top_ids, top_logprobs] =
            self.result_tensors(chunk).map(|result| result.narrow(0, capacity));
        let logits = self.logits.narrow(0, capacity);
        decoder.head(
            enc,
            HeadTensors {
                header: &inputs.header,
                x,
                rows: &inputs.rows.narrow(0, capacity),
                hidden: &self.hidden.narrow(0, capacity),
                logits: &logits,
            },
        );
        enc.sample(Sample {
            ids: &ids,
            logprobs: &logprobs,
            top_ids: &top_ids,
            top_logprobs: &top_logprobs,
            logits: &logits,
            params: &inputs.params.narrow(0, capacity),
            adjust: &self.adjust,
            masks: Some(&self.masks),
            live: anyfleet_tensor::Live::LogitRows,
        });
    }

    /// The four results of a run as views of one buffer, so that one transfer brings them all.
    fn result_tensors(&self, chunk: usize) -> [Tensor<B>; 4] {
        let at = |words: usize, dtype, shape: &[usize]| {
            let offset = 4 * (chunk * RESULTS + words * LOGIT_ROWS);
            Tensor::from_buffer_at(self.results.buffer().clone(), offset, dtype, shape)
        };
        [
            at(0, DType::U32, &[LOGIT_ROWS]),
            at(1, DType::F32, &[LOGIT_ROWS]),
            at(2, DType::U32, &[LOGIT_ROWS, TOP_LOGPROBS]),
            at(2 + TOP_LOGPROBS, DType::F32, &[LOGIT_ROWS, TOP_LOGPROBS]),
        ]
    }
}

/// Where [`HeadBuffers::sampled`] has the token chosen for a step's logit row.
pub fn sampled_at(row: u32) -> u32 {
    let (run, row) = (row as usize / LOGIT_ROWS, row as usize % LOGIT_ROWS);
    (run * RESULTS + row) as u32
}

/// Words of the inputs of all runs but the first. No device has buffers of nothing.
fn later_words(chunks: usize) -> usize {
    ((chunks - 1) * head_inputs::WORDS).max(1)
}

/// Entries of the penalty buffer: one row may name every token of the vocabulary.
fn adjust_capacity(spec: &DecoderSpec, options: &ExecutorOptions) -> usize {
    let rows = options.max_sequences.min(LOGIT_ROWS);
    spec.vocab_size.max(rows * ADJUST_PER_ROW.min(spec.vocab_size))
}
