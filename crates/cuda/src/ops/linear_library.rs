//! Products of `linear` and `linear_act_mul` by the device's library, where they need not be invariant: of many rows, with
//! weights of sixteen bits, and of eight that read as sixteen.
//!
//! Three steps: a kernel of `linear` brings x into the weights' type, the library multiplies, and `linear_finish` makes of its
//! sums what the operation wants. Weights of f8 are widened to scratch memory before, some output features at a time. The library is told a number of rows when a plan is recorded, so it computes all of the
//! capacity, and the sums go to scratch memory: only the last step knows which rows are live. This costs a pass over the
//! output, mostly in the device's cache: the output features are done some at a time where all sums would take more than
//! [`SUMS`] bytes.
use super::linear::{FEW, Params, Scratch, THREADS};
use crate::driver::{Matmul, WORKSPACE};
use crate::weight::BLOCK;
use crate::{CudaRecorder, CudaWeight};
use anyfleet_tensor::{DType, Result, StepSizes, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// Bytes of sums at a time: about what the caches of large devices hold.
const SUMS: usize = 64 << 20;
/// Bytes of widened weights at a time.
const WIDE: usize = 64 << 20;
/// Output features at a time are a whole number of tiles of the library's kernels.
const TILE: usize = 256;
/// Output features of a panel of weights.
const PANEL: usize = 16;
/// Alignment of what the library is given.
const ALIGN: usize = 256;

/// `FinishParams` of `linear_finish.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Finish {
    linear: Params,
    sums: u64,
    first: u32,
    panels: u32,
}

/// `WidenParams` of `linear_f8.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Widen {
    linear: Params,
    out: u64,
    first: u32,
    reserved: u32,
}

/// Bytes that the sums of so many rows, and of fewer, may take.
fn most_bytes(rows: usize) -> usize {
    SUMS.max(4 * rows * TILE)
}

/// Output features whose sums are in scratch memory at a time.
fn at_a_time(rows: usize) -> usize {
    most_bytes(rows) / (4 * rows * TILE) * TILE
}

/// Bytes of a row of widened weights.
fn wide_row(width: usize) -> usize {
    2 * width.next_multiple_of(BLOCK)
}

/// Output features whose widened weights are in scratch memory at a time.
fn wide_at_a_time(width: usize) -> usize {
    (WIDE / wide_row(width).max(1) / TILE).max(1) * TILE
}

/// Where things lie in scratch memory, behind x.
struct Places {
    sums: usize,
    wide: usize,
    workspace: usize,
    bytes: usize,
}

impl Places {
    fn new(copy: &Scratch, sum_bytes: usize, wide_bytes: usize) -> Places {
        let sums = copy.bytes.next_multiple_of(ALIGN);
        let wide = (sums + sum_bytes).next_multiple_of(ALIGN);
        let workspace = (wide + wide_bytes).next_multiple_of(ALIGN);
        Places { sums, wide, workspace, bytes: workspace + WORKSPACE }
    }
}

/// The most that a product asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    let rows = sizes.tokens.max(sizes.logit_rows);
    if rows <= FEW {
        return 0;
    }
    let wide_bytes = WIDE.max(TILE * wide_row(sizes.widest));
    Places::new(&Scratch::of_16bit(rows, sizes.widest), most_bytes(rows), wide_bytes).bytes
}

/// `round` is the kernel that brings x into the weights' type, with its module.
pub(crate) fn record(
    recorder: &mut CudaRecorder,
    round: (&'static str, &'static str),
    weight: &CudaWeight,
    mut params: Params,
) -> Result<()> {
    let (rows, all) = (params.rows as usize, weight.panels() * PANEL);
    let (narrow, row) = (weight.format() == WeightFormat::F8, wide_row(weight.cols()));
    let most = if narrow { at_a_time(rows).min(wide_at_a_time(weight.cols())) } else { at_a_time(rows) };
    // Equal parts, but for the last.
    let parts = all.div_ceil(most);
    let features = all.div_ceil(parts).next_multiple_of(TILE).min(all);
    let copy = Scratch::of_16bit(rows, weight.cols());
    let places = Places::new(&copy, 4 * rows * features, if narrow { features * row } else { 0 });
    let scratch = recorder.scratch(places.bytes)?;
    params.place_copy(scratch, &copy, weight);
    recorder.launch(round, [rows, 1, 1], THREADS, 0, &params)?;
    let halves = weight.format() == WeightFormat::Float(DType::F16);
    if !halves {
        // Rows of bf16 are rounded and nothing else.
        params.row_scales = 0;
    }
    for first in (0..all).step_by(features) {
        let features = features.min(all - first);
        let (sums, panel) = (scratch + places.sums as u64, (first / PANEL) as u32);
        let mut wide = weight.address() + (first * row) as u64;
        if narrow {
            wide = scratch + places.wide as u64;
            let grid = [features, (4 * weight.blocks()).div_ceil(THREADS), 1];
            let widen = Widen { linear: params, out: wide, first: panel, reserved: 0 };
            recorder.launch(("linear_f8", "linear_f8_widen"), grid, THREADS, 0, &widen)?;
        }
        recorder.matmul(Matmul {
            out: sums,
            x: params.copy,
            weight: wide,
            workspace: scratch + places.workspace as u64,
            rows: params.rows,
            features: features as u32,
            width: (row / 2) as u32,
            f16: u32::from(halves),
        });
        let grid = [rows, (features / 2).div_ceil(THREADS), 1];
        let finish = Finish { linear: params, sums, first: panel, panels: (features / PANEL) as u32 };
        recorder.launch(("linear_finish", "linear_finish"), grid, THREADS, 0, &finish)?;
    }
    Ok(())
}
