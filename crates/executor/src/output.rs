//! The head's buffers: rows of logits in chunks, what is sampled from them, and the way back.
use crate::plan::{ExecutorOptions, logit_chunks};
use anyfleet_models::{Decoder, DecoderSpec, HeadTensors};
use anyfleet_runtime::{Batch, LogitRow, SampleMode, StepOutput};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::{
    Adjust, Backend, DType, Encoder, Readback, Result, SampleMode as DeviceMode, SampleParams, StepHeader,
    TOP_LOGPROBS, Tensor,
};
use std::collections::HashMap;

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

/// Words of results per row: id, log-probability, and the top ids and log-probabilities.
const RESULT_WORDS: usize = 2 + 2 * TOP_LOGPROBS;

/// `u32`s of one [`SampleParams`].
const PARAM_WORDS: usize = size_of::<SampleParams>() / 4;

/// Room for penalty entries, in entries per logit row on average; rows share it.
const ADJUST_PER_ROW: usize = 4096;

/// Device buffers of the head. Chunk `c` of a step has its own header, rows and parameters, so that
/// all of them are written before anything runs.
pub struct HeadBuffers<B: Backend> {
    headers: Tensor<B>,
    rows: Tensor<B>,
    params: Tensor<B>,
    adjust: Tensor<B>,
    hidden: Tensor<B>,
    logits: Tensor<B>,
    results: B::Buffer,
    staged: Staged,
    words: Vec<u32>,
    /// Per launched row: read the whole row of logits back.
    want_logits: Vec<bool>,
    /// By chunk and rows.
    plans: HashMap<(usize, usize), B::Plan>,
}

/// Host side of the head's inputs.
#[derive(Default)]
struct Staged {
    headers: Vec<StepHeader>,
    rows: Vec<u32>,
    params: Vec<SampleParams>,
    adjust: Vec<Adjust>,
}

impl Staged {
    fn clear(&mut self) {
        self.headers.clear();
        self.rows.clear();
        self.params.clear();
        self.adjust.clear();
    }
}

impl<B: Backend> HeadBuffers<B> {
    /// Bytes [`HeadBuffers::new`] allocates.
    pub fn bytes(spec: &DecoderSpec, options: &ExecutorOptions) -> usize {
        let chunks = logit_chunks(options.max_tokens);
        let rows = chunks * LOGIT_ROWS;
        let small = chunks * size_of::<StepHeader>() + rows * 4 * (1 + PARAM_WORDS) + LOGIT_ROWS * RESULT_WORDS * 4;
        let wide = LOGIT_ROWS * (spec.hidden_size * options.activation.size() + spec.vocab_size * 4);
        small + wide + adjust_capacity(spec, options) * size_of::<Adjust>()
    }

    /// Allocates the head's buffers.
    pub fn new(device: &B, spec: &DecoderSpec, options: &ExecutorOptions) -> Result<Self> {
        let chunks = logit_chunks(options.max_tokens);
        let rows = chunks * LOGIT_ROWS;
        Ok(HeadBuffers {
            headers: Tensor::new(device, DType::U32, &[chunks, size_of::<StepHeader>() / 4])?,
            rows: Tensor::new(device, DType::U32, &[rows])?,
            params: Tensor::new(device, DType::U32, &[rows, PARAM_WORDS])?,
            adjust: Tensor::new(device, DType::U32, &[adjust_capacity(spec, options), size_of::<Adjust>() / 4])?,
            hidden: Tensor::new(device, options.activation, &[LOGIT_ROWS, spec.hidden_size])?,
            logits: Tensor::new(device, DType::F32, &[LOGIT_ROWS, spec.vocab_size])?,
            results: device.alloc(LOGIT_ROWS * RESULT_WORDS * 4)?,
            staged: Staged::default(),
            words: Vec::new(),
            want_logits: Vec::new(),
            plans: HashMap::new(),
        })
    }

    /// Writes the head's inputs for `batch`, before anything of the step runs.
    pub fn prepare(&mut self, device: &B, batch: &Batch) -> Result<()> {
        self.want_logits.clear();
        self.want_logits.extend(batch.logit_rows.iter().map(|r| r.want_logits));
        if batch.logit_rows.is_empty() { Ok(()) } else { self.write(device, batch) }
    }

    /// Starts the first chunk of rows on the residual stream `x`, which must stay until
    /// [`HeadBuffers::collect`] is done.
    pub fn launch(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>) -> Result<()> {
        if self.want_logits.is_empty() { Ok(()) } else { self.run(device, decoder, x, 0) }
    }

    /// Records all chunks.
    pub fn warm_up(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>) -> Result<()> {
        let first = CAPACITIES.into_iter().map(|rows| (0, rows));
        let later = (1..self.headers.rows()).map(|chunk| (chunk, LOGIT_ROWS));
        first.chain(later).try_for_each(|(chunk, rows)| self.plan(device, decoder, x, (chunk, rows)))
    }

    fn plan(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>, key: (usize, usize)) -> Result<()> {
        if !self.plans.contains_key(&key) {
            let plan = device.record(|enc| self.encode(enc, decoder, x, key))?;
            self.plans.insert(key, plan);
        }
        Ok(())
    }

    fn run(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>, chunk: usize) -> Result<()> {
        let rows = (self.want_logits.len() - chunk * LOGIT_ROWS).min(LOGIT_ROWS);
        let key = (chunk, capacity(chunk, rows));
        self.plan(device, decoder, x, key)?;
        device.replay(&self.plans[&key])
    }

    /// Reads the launched rows into `output`, running the chunks after the first.
    pub fn collect(&mut self, device: &B, decoder: &Decoder<B>, x: &Tensor<B>, output: &mut StepOutput) -> Result<()> {
        output.ids.clear();
        output.logprobs.clear();
        output.top_ids.clear();
        output.top_logprobs.clear();
        output.logits.clear();
        for chunk in 0..self.want_logits.len().div_ceil(LOGIT_ROWS) {
            if chunk > 0 {
                self.run(device, decoder, x, chunk)?;
            }
            self.read_chunk(device, chunk, output)?;
        }
        Ok(())
    }

    fn write(&mut self, device: &B, batch: &Batch) -> Result<()> {
        self.staged.clear();
        for rows in batch.logit_rows.chunks(LOGIT_ROWS) {
            let (tokens, sequences) = (batch.tokens.len() as u32, batch.sequences.len() as u32);
            self.staged.headers.push(StepHeader { tokens, sequences, logit_rows: rows.len() as u32, reserved: 0 });
        }
        self.staged.rows.extend(batch.logit_rows.iter().map(|r| r.row));
        self.staged.params.extend(batch.logit_rows.iter().map(device_params));
        self.staged.adjust.extend(batch.adjust.iter().map(device_adjust));
        if self.staged.adjust.len() > self.adjust.rows() {
            // Penalties over very long contexts in many rows at once: rare, so it may allocate.
            let rows = self.staged.adjust.len().next_power_of_two();
            self.adjust = Tensor::new(device, DType::U32, &[rows, size_of::<Adjust>() / 4])?;
            self.plans.clear();
        }
        device.write(&self.headers, bytemuck::cast_slice(&self.staged.headers))?;
        device.write(&self.rows, bytemuck::cast_slice(&self.staged.rows))?;
        device.write(&self.params, bytemuck::cast_slice(&self.staged.params))?;
        device.write(&self.adjust, bytemuck::cast_slice(&self.staged.adjust))
    }

    fn encode(&self, enc: &mut Encoder<'_, B>, decoder: &Decoder<B>, x: &Tensor<B>, (chunk, capacity): (usize, usize)) {
        let first = chunk * LOGIT_ROWS;
        let [ids, logprobs, top_ids, top_logprobs] = self.result_tensors().map(|result| result.narrow(0, capacity));
        let logits = self.logits.narrow(0, capacity);
        decoder.head(
            enc,
            HeadTensors {
                header: &self.headers.narrow(chunk, 1),
                x,
                rows: &self.rows.narrow(first, capacity),
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
            params: &self.params.narrow(first, capacity),
            adjust: &self.adjust,
            live: anyfleet_tensor::Live::LogitRows,
        });
    }

    /// The four results as views of one buffer, so that one transfer brings them all.
    fn result_tensors(&self) -> [Tensor<B>; 4] {
        let at = |words: usize, dtype, shape: &[usize]| {
            Tensor::from_buffer_at(self.results.clone(), 4 * words * LOGIT_ROWS, dtype, shape)
        };
        [
            at(0, DType::U32, &[LOGIT_ROWS]),
            at(1, DType::F32, &[LOGIT_ROWS]),
            at(2, DType::U32, &[LOGIT_ROWS, TOP_LOGPROBS]),
            at(2 + TOP_LOGPROBS, DType::F32, &[LOGIT_ROWS, TOP_LOGPROBS]),
        ]
    }

    fn read_chunk(&mut self, device: &B, chunk: usize, output: &mut StepOutput) -> Result<()> {
        self.words.resize(LOGIT_ROWS * RESULT_WORDS, 0);
        let all = Tensor::from_buffer(self.results.clone(), DType::U32, &[LOGIT_ROWS * RESULT_WORDS]);
        device.read(&all)?.wait(bytemuck::cast_slice_mut(&mut self.words))?;
        let first = chunk * LOGIT_ROWS;
        let n = (self.want_logits.len() - first).min(LOGIT_ROWS);
        let part = |words: usize, len: usize| &self.words[words * LOGIT_ROWS..words * LOGIT_ROWS + len];
        output.ids.extend_from_slice(part(0, n));
        output.logprobs.extend(part(1, n).iter().map(|&w| f32::from_bits(w)));
        output.top_ids.extend_from_slice(part(2, n * TOP_LOGPROBS));
        output.top_logprobs.extend(part(2 + TOP_LOGPROBS, n * TOP_LOGPROBS).iter().map(|&w| f32::from_bits(w)));
        for i in (0..n).filter(|&i| self.want_logits[first + i]) {
            let start = output.logits.len();
            output.logits.resize(start + self.logits.cols(), 0.0);
            device.read(&self.logits.narrow(i, 1))?.wait(bytemuck::cast_slice_mut(&mut output.logits[start..]))?;
        }
        Ok(())
    }
}

/// Entries of the penalty buffer: one row may name every token of the vocabulary.
fn adjust_capacity(spec: &DecoderSpec, options: &ExecutorOptions) -> usize {
    let rows = options.max_sequences.min(LOGIT_ROWS);
    spec.vocab_size.max(rows * ADJUST_PER_ROW.min(spec.vocab_size))
}

fn device_adjust(entry: &anyfleet_runtime::TokenAdjust) -> Adjust {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    Adjust {
        token: entry.token,
        output_count: entry.output_count,
        flags: flag(entry.in_prompt, Adjust::IN_PROMPT) | flag(entry.banned, Adjust::BANNED),
        bias: entry.bias,
    }
}

fn device_params(row: &LogitRow) -> SampleParams {
    let (mode, target) = match row.mode {
        SampleMode::Greedy => (DeviceMode::Greedy, 0),
        SampleMode::Random => (DeviceMode::Random, 0),
        SampleMode::Score(token) => (DeviceMode::Score, token),
    };
    SampleParams {
        mode: mode as u32,
        target,
        temperature: row.temperature,
        top_k: row.top_k,
        top_p: row.top_p,
        min_p: row.min_p,
        seed_lo: row.seed as u32,
        seed_hi: (row.seed >> 32) as u32,
        choice: row.choice,
        position: row.position,
        adjust_start: row.adjust.start,
        adjust_len: row.adjust.end - row.adjust.start,
        repetition_penalty: row.repetition_penalty,
        frequency_penalty: row.frequency_penalty,
        presence_penalty: row.presence_penalty,
        reserved: 0,
    }
}
