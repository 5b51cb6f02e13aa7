//! What one run of the head over at most [`LOGIT_ROWS`] rows is told.
use crate::output::LOGIT_ROWS;
use anyfleet_runtime::{Batch, LogitRow, SampleMode, TokenAdjust};
use anyfleet_tensor::{Adjust, Backend, DType, SampleMode as DeviceMode, SampleParams, StepHeader, Tensor};

/// `u32`s of one [`SampleParams`].
const PARAM_WORDS: usize = size_of::<SampleParams>() / 4;

/// Where rows and parameters start; the header has a cache line.
const ROWS: usize = 16;
const PARAMS: usize = ROWS + LOGIT_ROWS;

/// Words they take, a multiple of a cache line's.
pub const WORDS: usize = PARAMS + LOGIT_ROWS * PARAM_WORDS;

/// Views of its tensors.
pub struct HeadInputs<B: Backend> {
    /// [`StepHeader`].
    pub header: Tensor<B>,
    /// `[LOGIT_ROWS]` u32 token rows.
    pub rows: Tensor<B>,
    /// `[LOGIT_ROWS, 16]` u32 [`SampleParams`].
    pub params: Tensor<B>,
}

impl<B: Backend> HeadInputs<B> {
    /// The inputs that start at word `start` of `buffer`.
    pub fn at(buffer: &B::Buffer, start: usize) -> Self {
        let tensor = |first: usize, shape: &[usize]| {
            Tensor::from_buffer_at(buffer.clone(), 4 * (start + first), DType::U32, shape)
        };
        HeadInputs {
            header: tensor(0, &[size_of::<StepHeader>() / 4]),
            rows: tensor(ROWS, &[LOGIT_ROWS]),
            params: tensor(PARAMS, &[LOGIT_ROWS, PARAM_WORDS]),
        }
    }
}

/// Writes what a run over `rows` of `batch` is told.
pub fn fill(words: &mut [u32], batch: &Batch, rows: &[LogitRow]) {
    let (tokens, sequences) = (batch.tokens.len() as u32, batch.sequences.len() as u32);
    let header = StepHeader { tokens, sequences, logit_rows: rows.len() as u32, reserved: 0 };
    let header = bytemuck::cast_slice(bytemuck::bytes_of(&header));
    words[..header.len()].copy_from_slice(header);
    for (i, row) in rows.iter().enumerate() {
        words[ROWS + i] = row.row;
        let params = device_params(row);
        let start = PARAMS + i * PARAM_WORDS;
        words[start..start + PARAM_WORDS].copy_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(&params)));
    }
}

/// One penalty entry as the device reads it.
pub fn device_adjust(entry: &TokenAdjust) -> Adjust {
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
        mask: row.mask.map_or(0, |mask| mask + 1),
    }
}
