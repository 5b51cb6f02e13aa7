//! `grouped_linear` and `grouped_linear_act_mul`: the products of `linear` with a matrix for each expert.
//!
//! Which kernel runs is chosen by the capacity: by how many rows an expert has where they share out evenly. Few: a block
//! takes a panel or two of an expert that has rows, and all of these, mostly at once, so that its weights are read once.
//! Many: tiles, of which there are fewer than a whole one for each expert too many.
use super::act_mul;
use super::linear::{self, Few, Kernels, Product, THREADS, few, floats, large, small};
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::{ActMul, Activation, GroupedLinear, GroupedLinearActMul};
use anyfleet_tensor::{DType, Live, Result, StepSizes, Tensor, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// `GroupedParams` of `grouped_linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    linear: linear::Params,
    list: u64,
    offsets: u64,
    hits: u64,
    experts: u32,
    x_rows: u32,
}

const F32: Kernels = Kernels {
    module: "grouped_linear_float",
    few: &[few("grouped_f32_4", 4, 2)],
    tiles: &[floats("grouped_f32_small")],
};
const BF16: Kernels = Kernels {
    module: "grouped_linear_bf16",
    few: &[few("grouped_bf16_16", 16, 1), few("grouped_bf16_32", 32, 2)],
    tiles: &[large("grouped_bf16_large"), small("grouped_bf16_small")],
};
const F16: Kernels = Kernels {
    module: "grouped_linear_f16",
    few: &[few("grouped_f16_16", 16, 1), few("grouped_f16_32", 32, 2)],
    tiles: &[large("grouped_f16_large"), small("grouped_f16_small")],
};
const F8: Kernels = Kernels {
    module: "grouped_linear_f8",
    few: &[few("grouped_f8_16", 16, 1), few("grouped_f8_32", 32, 2)],
    tiles: &[large("grouped_f8_large"), small("grouped_f8_small")],
};
const Q8: Kernels = Kernels {
    module: "grouped_linear_bytes",
    few: &[few("grouped_q8_8", 8, 1), few("grouped_q8_16", 16, 1), few("grouped_q8_32", 32, 2)],
    tiles: &[large("grouped_q8_large"), small("grouped_q8_small")],
};
const Q4: Kernels = Kernels {
    module: "grouped_linear_bytes",
    few: &[few("grouped_q4_8", 8, 1), few("grouped_q4_16", 16, 1), few("grouped_q4_32", 32, 2)],
    tiles: &[large("grouped_q4_large"), small("grouped_q4_small")],
};
/// What rounds x where it is multiplied, from whole vectors.
const BF16_DIRECT: Few = few("grouped_bf16_8", 8, 1);
const F16_DIRECT: Few = few("grouped_f16_8", 8, 1);
const F8_DIRECT: Few = few("grouped_f8_8", 8, 1);

/// Rows of an expert, of an even share, that are few; of more, tiles of 64 have the better part full.
const FEW: usize = 16;

/// The most that a product asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    linear::most_bytes(sizes.grouped_rows, sizes.grouped_widest)
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &GroupedLinear<'_, CudaBackend>) -> Result<()> {
    product(recorder, "grouped_linear", op, None)
}

/// The fused form, or both operations where the weight is not kept so.
pub(crate) fn record_gated(recorder: &mut CudaRecorder, op: &GroupedLinearActMul<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "grouped_linear_act_mul";
    let GroupedLinearActMul { out, gate_up, activation, weight, offsets, .. } = *op;
    let plain = op.product();
    if weight.gated() {
        return product(recorder, OP, &GroupedLinear { out, ..plain }, Some(activation));
    }
    product(recorder, OP, &plain, None)?;
    let live = places(recorder, offsets);
    act_mul::record_live(recorder, &ActMul { out, gate_up, activation, live: Live::All }, live)
}

/// Where the number of places is: the last of `offsets`.
fn places(recorder: &mut CudaRecorder, offsets: &Tensor<CudaBackend>) -> u64 {
    recorder.address(offsets) + 4 * (offsets.len() as u64 - 1)
}

fn product(
    recorder: &mut CudaRecorder,
    name: &'static str,
    op: &GroupedLinear<'_, CudaBackend>,
    activation: Option<Activation>,
) -> Result<()> {
    let GroupedLinear { out, x, rows, weight, offsets, hits } = *op;
    let pairs = out.rows();
    // No row can be named where x has none.
    if pairs == 0 || weight.rows() == 0 || x.rows() == 0 {
        return Ok(());
    }
    let plain = Product { name, out, x, weight, bias: None, residual: None, activation, live: Live::All };
    let mut linear = linear::params(recorder, &plain)?;
    linear.live = places(recorder, offsets);
    let mut params = Params {
        linear,
        list: recorder.address_of(rows),
        offsets: recorder.address(offsets),
        hits: recorder.address(hits),
        experts: weight.stack() as u32,
        x_rows: x.rows() as u32,
    };
    let (kernels, direct, copy) = match weight.format() {
        WeightFormat::Float(DType::F32) => (&F32, None, None),
        WeightFormat::Float(DType::BF16) => (&BF16, Some(&BF16_DIRECT), Some("grouped_bf16_x")),
        WeightFormat::Float(_) => (&F16, Some(&F16_DIRECT), Some("grouped_f16_x")),
        WeightFormat::F8 => (&F8, Some(&F8_DIRECT), Some("grouped_f8_x")),
        WeightFormat::Q8 => (&Q8, None, Some("grouped_q8_x")),
        _ => (&Q4, None, Some("grouped_q4_x")),
    };
    // Experts that can have places, and how many each where these share out evenly.
    let hits = weight.stack().min(pairs);
    let share = pairs.div_ceil(hits);
    let grid = |few: &Few| [weight.panels().div_ceil(few.panels), hits, 1];
    // Twice the share is what few experts have more of.
    let fits = |few: &Few| 2 * share <= few.rows;
    if let Some(direct) = direct.filter(|few| fits(few) && linear.vectors == 1) {
        return recorder.launch((kernels.module, direct.name), grid(direct), THREADS, 0, &params);
    }
    if let Some(copy) = copy {
        params.linear.take_copy(recorder, weight, pairs)?;
        recorder.launch((kernels.module, copy), [pairs, 1, 1], THREADS, 0, &params)?;
    }
    if share <= FEW {
        let few = kernels.few.iter().find(|few| fits(few)).unwrap_or(&kernels.few[kernels.few.len() - 1]);
        return recorder.launch((kernels.module, few.name), grid(few), THREADS, 0, &params);
    }
    // Rows of tiles, if every expert's last one has a single row. Blocks next to each other have the same rows of x, and
    // those of an expert its matrix: both are in the caches when they are read again.
    let grid = |size: usize| [(weight.panels() * 16).div_ceil(size), (pairs + hits * (size - 1)) / size, 1];
    let processors = recorder.device.driver().description().processors as usize;
    let tile = kernels
        .tiles
        .iter()
        .find(|tile| share >= tile.size && grid(tile.size)[0] * pairs.div_ceil(tile.size) >= processors);
    let tile = tile.unwrap_or(&kernels.tiles[kernels.tiles.len() - 1]);
    recorder.launch((kernels.module, tile.name), grid(tile.size), tile.threads, tile.shared, &params)
}
