//! `sample`: three launches, whatever the rows ask for; devices see what each needs.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::{Error, Result, StepSizes, Tensor};
use bytemuck::{Pod, Zeroable};

/// `SampleKernelParams` of `sample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    logits: u64,
    sampling: u64,
    adjust: u64,
    masks: u64,
    ids: u64,
    logprobs: u64,
    top_ids: u64,
    top_logprobs: u64,
    live: u64,
    parts: u64,
    state: u64,
    adjusted: u64,
    rows: u32,
    vocab: u32,
    part_count: u32,
    logits_stride: u32,
    sampling_stride: u32,
    adjust_rows: u32,
    adjust_stride: u32,
    mask_rows: u32,
    masks_stride: u32,
    top_ids_stride: u32,
    top_logprobs_stride: u32,
    adjusted_stride: u32,
}

/// Threads of a block.
const THREADS: usize = 512;
/// Tokens of a part, a block's share of a row.
const PART: usize = 4 * THREADS;
/// The most parts of a row: each is a thread's where a block puts them together.
const PARTS: usize = THREADS;
/// Bytes of `Part` and `Row` of `sample.cu`.
const PART_BYTES: usize = 184;
const ROW_BYTES: usize = 6176;

/// Where things are in scratch memory.
struct Layout {
    parts: usize,
    state: usize,
    adjusted: usize,
    /// Of adjusted logits, in elements: rows start at 16 bytes.
    stride: usize,
    bytes: usize,
}

impl Layout {
    fn of(rows: usize, vocab: usize) -> Layout {
        let (parts, stride) = (vocab.div_ceil(PART), vocab.next_multiple_of(4));
        let state = rows * parts * PART_BYTES;
        let adjusted = (state + rows * ROW_BYTES).next_multiple_of(16);
        Layout { parts, state, adjusted, stride, bytes: adjusted + rows * stride * 4 }
    }
}

/// The most that [`record`] asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    Layout::of(sizes.logit_rows, sizes.vocab_size).bytes
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Sample<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "sample";
    let (rows, vocab) = (op.logits.rows(), op.logits.cols());
    let layout = Layout::of(rows, vocab);
    if layout.parts > PARTS {
        return Err(Error::Shape {
            op: OP,
            what: "a vocabulary of more tokens than a block has in reach",
            details: format!("{vocab} tokens, at most {}", PARTS * PART),
            remedy: "use another device",
        });
    }
    let scratch = recorder.scratch(layout.bytes)?;
    let params = Params {
        logits: recorder.address(op.logits),
        sampling: recorder.address(op.params),
        adjust: recorder.address(op.adjust),
        masks: op.masks.map_or(0, |masks| recorder.address(masks)),
        ids: recorder.address(op.ids),
        logprobs: recorder.address(op.logprobs),
        top_ids: recorder.address(op.top_ids),
        top_logprobs: recorder.address(op.top_logprobs),
        live: recorder.live(OP, op.live)?,
        parts: scratch,
        state: scratch + layout.state as u64,
        adjusted: scratch + layout.adjusted as u64,
        rows: rows as u32,
        vocab: vocab as u32,
        part_count: layout.parts as u32,
        logits_stride: op.logits.row_stride() as u32,
        sampling_stride: op.params.row_stride() as u32,
        adjust_rows: op.adjust.rows() as u32,
        adjust_stride: op.adjust.row_stride() as u32,
        mask_rows: op.masks.map_or(0, Tensor::rows) as u32,
        masks_stride: op.masks.map_or(0, Tensor::row_stride) as u32,
        top_ids_stride: op.top_ids.row_stride() as u32,
        top_logprobs_stride: op.top_logprobs.row_stride() as u32,
        adjusted_stride: layout.stride as u32,
    };
    recorder.launch((OP, "sample_parts"), [layout.parts, rows, 1], THREADS, 0, &params)?;
    // One more block of each row reports it.
    recorder.launch((OP, "sample_weigh"), [layout.parts + 1, rows, 1], THREADS, 0, &params)?;
    recorder.launch((OP, "sample_draw"), [layout.parts, rows, 1], THREADS, 0, &params)
}
