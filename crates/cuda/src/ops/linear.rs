//! `linear` and `linear_act_mul`.
//!
//! Few rows: a block takes a panel or two of output features and up to as many rows as its kernel is named for, or a flat
//! tile. Many: tiles. Which kernel runs is chosen by the capacity; a row's sum is the same in all of them, to the bit.
use super::{function, linear_flat, linear_library, linear_warpgroup};
use crate::weight::{BLOCK, Q4_BLOCK};
use crate::{CudaBackend, CudaRecorder, CudaWeight};
use anyfleet_tensor::ops::{Activation, Linear, LinearActMul};
use anyfleet_tensor::{DType, Live, Result, StepSizes, Tensor, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// The most rows that are few; of f32 weights, which are multiplied by no matrix unit.
pub(crate) const FEW: usize = 64;
const FEW_FLOATS: usize = 32;
/// Parts of K that are summed by themselves: `SEGMENTS` of `linear.cuh`.
pub(crate) const SEGMENTS: usize = 8;
/// Bytes of a row's scales: `RowScales` of `linear.cuh`.
const ROW_SCALES: usize = 8;
/// Threads of all kernels but those of small tiles.
pub(crate) const THREADS: usize = 256;

/// `LinearParams` of `linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct Params {
    out: u64,
    x: u64,
    pub(crate) weight: u64,
    multipliers: u64,
    scales: u64,
    bias: u64,
    residual: u64,
    pub(crate) live: u64,
    pub(crate) copy: u64,
    pub(crate) rests: u64,
    pub(crate) row_scales: u64,
    pub(crate) part_sums: u64,
    pub(crate) ended: u64,
    pub(crate) rows: u32,
    width: u32,
    features: u32,
    pub(crate) panels: u32,
    pub(crate) blocks: u32,
    pub(crate) segment: u32,
    pub(crate) copy_bytes: u32,
    x_stride: u32,
    out_stride: u32,
    residual_stride: u32,
    layout: u32,
    function: u32,
    pub(crate) vectors: u32,
    groups: u32,
    panel_multipliers: u32,
    pub(crate) turned: u32,
    pub(crate) parts: u32,
    pub(crate) cut_tiles: u32,
}

/// A kernel for few rows: the most of a block, and the panels of one.
pub(crate) struct Few {
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    pub(crate) panels: usize,
}

/// A kernel for many rows: rows and output features of a tile, threads and bytes of shared memory.
pub(crate) struct Tile {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) threads: usize,
    pub(crate) shared: usize,
}

pub(crate) const fn few(name: &'static str, rows: usize, panels: usize) -> Few {
    Few { name, rows, panels }
}
/// `LargeTile` and `SmallTile` of `linear_tile.cuh`: three stages of lines of 128 bytes.
pub(crate) const fn large(name: &'static str) -> Tile {
    Tile { name, size: 128, threads: 256, shared: 3 * 256 * 128 }
}
pub(crate) const fn small(name: &'static str) -> Tile {
    Tile { name, size: 64, threads: 128, shared: 3 * 128 * 128 }
}
/// Of f32 weights.
pub(crate) const fn floats(name: &'static str) -> Tile {
    Tile { name, size: 64, threads: 256, shared: 0 }
}

/// The kernels of a format.
pub(crate) struct Kernels {
    pub(crate) module: &'static str,
    pub(crate) few: &'static [Few],
    /// The larger first.
    pub(crate) tiles: &'static [Tile],
}

impl Kernels {
    /// The kernel for `rows` rows that are few, and how many blocks have the same weights: where all rows do not fit one,
    /// others take these at the same time.
    pub(crate) fn few_of(&self, rows: usize) -> (&'static Few, usize) {
        let largest = &self.few[self.few.len() - 1];
        let few = self.few.iter().find(|few| rows <= few.rows).unwrap_or(largest);
        (few, rows.div_ceil(few.rows))
    }
}

const F32: Kernels =
    Kernels { module: "linear_float", few: &[few("linear_f32_8", 8, 2)], tiles: &[floats("linear_f32_small")] };
/// What rounds x where it is multiplied, from whole vectors.
const BF16_DIRECT: Kernels = Kernels { module: "linear_bf16", few: &[few("linear_bf16_8", 8, 1)], tiles: &[] };
const BF16: Kernels = Kernels {
    module: "linear_bf16",
    few: &[few("linear_bf16_16", 16, 1), few("linear_bf16_32", 32, 2)],
    tiles: &[large("linear_bf16_large"), small("linear_bf16_small")],
};
const F16_DIRECT: Kernels = Kernels { module: "linear_f16", few: &[few("linear_f16_8", 8, 1)], tiles: &[] };
const F16: Kernels = Kernels {
    module: "linear_f16",
    few: &[few("linear_f16_16", 16, 1), few("linear_f16_32", 32, 2)],
    tiles: &[large("linear_f16_large"), small("linear_f16_small")],
};
const F8_DIRECT: Kernels = Kernels { module: "linear_f8", few: &[few("linear_f8_8", 8, 1)], tiles: &[] };
const F8: Kernels = Kernels {
    module: "linear_f8",
    few: &[few("linear_f8_16", 16, 1), few("linear_f8_32", 32, 2)],
    tiles: &[large("linear_f8_large"), small("linear_f8_small")],
};
const Q8: Kernels = Kernels {
    module: "linear_bytes",
    few: &[few("linear_q8_8", 8, 1), few("linear_q8_16", 16, 1), few("linear_q8_32", 32, 2)],
    tiles: &[large("linear_q8_large"), small("linear_q8_small")],
};
const Q4: Kernels = Kernels {
    module: "linear_bytes",
    few: &[few("linear_q4_8", 8, 1), few("linear_q4_16", 16, 1), few("linear_q4_32", 32, 2)],
    tiles: &[large("linear_q4_large"), small("linear_q4_small")],
};

pub(crate) struct Product<'a> {
    pub(crate) name: &'static str,
    pub(crate) out: &'a Tensor<CudaBackend>,
    pub(crate) x: &'a Tensor<CudaBackend>,
    pub(crate) weight: &'a CudaWeight,
    pub(crate) bias: Option<&'a Tensor<CudaBackend>>,
    pub(crate) residual: Option<&'a Tensor<CudaBackend>>,
    pub(crate) activation: Option<Activation>,
    pub(crate) live: Live,
}

/// The most that a product asks of scratch memory, on a device of so many multiprocessors.
pub(crate) fn scratch_bytes(sizes: &StepSizes, processors: usize) -> usize {
    let rows = sizes.tokens.max(sizes.logit_rows);
    most_bytes(rows, sizes.widest).max(linear_flat::most_bytes(rows, sizes.widest, processors))
}

/// The most scratch memory of a product of these rows of x, whatever its weights are.
pub(crate) fn most_bytes(rows: usize, width: usize) -> usize {
    Scratch::of_bytes(rows, width).bytes.max(Scratch::of_16bit(rows, width).bytes)
}

/// Where what a kernel makes of x is in scratch memory.
pub(crate) struct Scratch {
    /// Bytes of a row.
    row: usize,
    rests: usize,
    row_scales: usize,
    pub(crate) bytes: usize,
}

impl Scratch {
    /// Of rows as they meet `weight`.
    pub(crate) fn of(weight: &CudaWeight, rows: usize) -> Scratch {
        let of = if takes_16bit(weight) { Scratch::of_16bit } else { Scratch::of_bytes };
        of(rows, weight.cols())
    }
    /// Rows of bf16, and of f16 with their scales.
    pub(crate) fn of_16bit(rows: usize, width: usize) -> Scratch {
        let row = width.next_multiple_of(64) * 2;
        Scratch { row, rests: 0, row_scales: rows * row, bytes: rows * (row + ROW_SCALES) }
    }
    /// Rows of whole blocks of q4, which are whole ones of q8, too.
    fn of_bytes(rows: usize, width: usize) -> Scratch {
        let row = width.next_multiple_of(Q4_BLOCK);
        Scratch { row, rests: rows * row, row_scales: 2 * rows * row, bytes: rows * (2 * row + ROW_SCALES) }
    }
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Linear<'_, CudaBackend>) -> Result<()> {
    let Linear { out, x, weight, bias, residual, live } = *op;
    product(recorder, &Product { name: "linear", out, x, weight, bias, residual, activation: None, live })
}

/// The fused form; false where the weight is not kept so.
pub(crate) fn record_gated(recorder: &mut CudaRecorder, op: &LinearActMul<'_, CudaBackend>) -> Result<bool> {
    if !op.weight.gated() {
        return Ok(false);
    }
    let LinearActMul { out, x, weight, bias, activation, live, .. } = *op;
    let activation = Some(activation);
    product(recorder, &Product { name: "linear_act_mul", out, x, weight, bias, residual: None, activation, live })?;
    Ok(true)
}

fn product(recorder: &mut CudaRecorder, op: &Product<'_>) -> Result<()> {
    let (weight, rows) = (op.weight, op.out.rows());
    if rows == 0 || weight.rows() == 0 {
        return Ok(());
    }
    let mut params = params(recorder, op)?;
    match weight.format() {
        WeightFormat::Float(DType::F32) => launch(recorder, &F32, FEW_FLOATS, params),
        format @ (WeightFormat::Float(_) | WeightFormat::F8) => {
            let (direct, kernels, x) = match format {
                WeightFormat::F8 => (&F8_DIRECT, &F8, "linear_f8_x"),
                WeightFormat::Float(DType::BF16) => (&BF16_DIRECT, &BF16, "linear_bf16_x"),
                _ => (&F16_DIRECT, &F16, "linear_f16_x"),
            };
            if rows <= direct.few[0].rows && params.vectors == 1 {
                return launch(recorder, direct, FEW, params);
            }
            if rows > FEW && recorder.device.driver().library().is_some() {
                return linear_library::record(recorder, (kernels.module, x), weight, params);
            }
            if let Some(flat) = linear_flat::Flat::of(recorder, kernels, weight, &params) {
                return flat.record(recorder, (kernels.module, x), weight, params);
            }
            params.take_copy(recorder, weight, rows)?;
            if linear_warpgroup::computes(recorder, format, &params) {
                return linear_warpgroup::record(recorder, (kernels.module, x), format, params);
            }
            recorder.launch((kernels.module, x), [rows, 1, 1], THREADS, 0, &params)?;
            launch(recorder, kernels, FEW, params)
        }
        format => {
            let (kernels, x) = if format == WeightFormat::Q8 { (&Q8, "linear_q8_x") } else { (&Q4, "linear_q4_x") };
            if let Some(flat) = linear_flat::Flat::of(recorder, kernels, weight, &params) {
                return flat.record(recorder, (kernels.module, x), weight, params);
            }
            params.take_copy(recorder, weight, rows)?;
            recorder.launch((kernels.module, x), [rows, 1, 1], THREADS, 0, &params)?;
            launch(recorder, kernels, FEW, params)
        }
    }
}

impl Params {
    /// Gives `rows` rows of x their place in scratch memory, in the form in which they meet `weight`.
    pub(crate) fn take_copy(&mut self, recorder: &mut CudaRecorder, weight: &CudaWeight, rows: usize) -> Result<()> {
        let scratch = Scratch::of(weight, rows);
        let at = recorder.scratch(scratch.bytes)?;
        self.place_copy(at, &scratch, weight);
        Ok(())
    }

    /// The same with the place, `at`.
    pub(crate) fn place_copy(&mut self, at: u64, scratch: &Scratch, weight: &CudaWeight) {
        self.copy = at;
        if !takes_16bit(weight) {
            self.rests = self.copy + scratch.rests as u64;
        }
        self.row_scales = self.copy + scratch.row_scales as u64;
        // The lines of bytes are as long as those of weights, in input features.
        self.copy_bytes = match weight.format() {
            WeightFormat::Float(_) | WeightFormat::F8 => scratch.row,
            WeightFormat::Q8 => weight.blocks() * BLOCK,
            _ => weight.blocks() * Q4_BLOCK,
        } as u32;
    }
}

/// Whether x is multiplied as numbers of sixteen bits, where it is not taken as it is; else as bytes.
fn takes_16bit(weight: &CudaWeight) -> bool {
    matches!(weight.format(), WeightFormat::Float(_) | WeightFormat::F8)
}

pub(crate) fn params(recorder: &mut CudaRecorder, op: &Product<'_>) -> Result<Params> {
    let weight = op.weight;
    recorder.weights.push(weight.clone());
    let (x, x_stride) = (recorder.address(op.x), op.x.row_stride());
    // Segments are of whole steps of 64 numbers, whatever a number's size.
    let step = match weight.format() {
        WeightFormat::Float(dtype) => 64 * dtype.size() / BLOCK,
        _ => 1,
    };
    let layout = match (weight.gated(), op.activation) {
        (false, _) => 0,
        (true, None) => 1,
        (true, Some(_)) => 2,
    };
    Ok(Params {
        out: recorder.address(op.out),
        x,
        weight: weight.address(),
        multipliers: weight.multipliers(),
        scales: weight.scales(),
        bias: recorder.address_of(op.bias),
        residual: recorder.address_of(op.residual),
        live: recorder.live(op.name, op.live)?,
        copy: 0,
        rests: 0,
        row_scales: 0,
        part_sums: 0,
        ended: 0,
        rows: op.out.rows() as u32,
        width: weight.cols() as u32,
        features: weight.rows() as u32,
        panels: weight.panels() as u32,
        blocks: weight.blocks() as u32,
        segment: ((weight.blocks() / step).div_ceil(SEGMENTS) * step) as u32,
        copy_bytes: 0,
        x_stride: x_stride as u32,
        out_stride: op.out.row_stride() as u32,
        residual_stride: op.residual.map_or(0, Tensor::row_stride) as u32,
        layout,
        function: op.activation.map_or(Ok(0), |activation| function(op.name, activation))?,
        vectors: u32::from(x.is_multiple_of(16) && x_stride.is_multiple_of(4) && weight.cols().is_multiple_of(4)),
        groups: 1,
        panel_multipliers: weight.panel_multipliers() as u32,
        turned: 0,
        parts: 1,
        cut_tiles: 0,
    })
}

fn launch(recorder: &mut CudaRecorder, kernels: &Kernels, most: usize, mut params: Params) -> Result<()> {
    let (kernel, grid, threads, shared) = choose(recorder, kernels, most, 1, &mut params);
    recorder.launch(kernel, grid, threads, shared, &params)
}

/// As [`launch`], for each of `heads` heads.
pub(super) fn launch_of_heads(
    recorder: &mut CudaRecorder,
    kernels: &Kernels,
    most: usize,
    heads: usize,
    mut params: super::head_linear::Params,
) -> Result<()> {
    let (kernel, grid, threads, shared) = choose(recorder, kernels, most, heads, &mut params.linear);
    recorder.launch(kernel, grid, threads, shared, &params)
}

/// The kernel for `params.rows` rows, its grid of `layers` layers, threads and bytes of shared memory.
fn choose(
    recorder: &CudaRecorder,
    kernels: &Kernels,
    most: usize,
    layers: usize,
    params: &mut Params,
) -> ((&'static str, &'static str), [usize; 3], usize, usize) {
    let (rows, panels) = (params.rows as usize, params.panels as usize);
    if rows <= most {
        let (few, groups) = kernels.few_of(rows);
        params.groups = groups as u32;
        let grid = [panels.div_ceil(few.panels) * groups, 1, layers];
        return ((kernels.module, few.name), grid, THREADS, 0);
    }
    // Blocks next to each other have the same weights.
    let grid = |tile: &Tile| [rows.div_ceil(tile.size), (panels * 16).div_ceil(tile.size), layers];
    let processors = recorder.device.driver().description().processors as usize;
    let fills = |tile: &&Tile| grid(tile).iter().product::<usize>() >= processors;
    let tile = kernels.tiles.iter().find(fills).unwrap_or(&kernels.tiles[kernels.tiles.len() - 1]);
    ((kernels.module, tile.name), grid(tile), tile.threads, tile.shared)
}
