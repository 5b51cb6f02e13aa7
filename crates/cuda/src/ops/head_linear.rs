//! `head_linear`: the products of `linear` with a matrix for each head, a layer of the grid.
use super::linear::{self, Kernels, Product, THREADS, few, floats, launch_of_heads, most_bytes, small};
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::HeadLinear;
use anyfleet_tensor::{DType, Result, StepSizes, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// `HeadParams` of `head_linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Params {
    pub(super) linear: linear::Params,
    x_head: u32,
    out_head: u32,
}

const F32: Kernels =
    Kernels { module: "head_linear_float", few: &[few("head_f32_8", 8, 2)], tiles: &[floats("head_f32_small")] };
/// What rounds x where it is multiplied, from whole vectors.
const BF16_DIRECT: Kernels = Kernels { module: "head_linear_bf16", few: &[few("head_bf16_8", 8, 1)], tiles: &[] };
const BF16: Kernels =
    Kernels { module: "head_linear_bf16", few: &[few("head_bf16_32", 32, 2)], tiles: &[small("head_bf16_small")] };
const F16_DIRECT: Kernels = Kernels { module: "head_linear_f16", few: &[few("head_f16_8", 8, 1)], tiles: &[] };
const F16: Kernels =
    Kernels { module: "head_linear_f16", few: &[few("head_f16_32", 32, 2)], tiles: &[small("head_f16_small")] };
const F8_DIRECT: Kernels = Kernels { module: "head_linear_f8", few: &[few("head_f8_8", 8, 1)], tiles: &[] };
const F8: Kernels =
    Kernels { module: "head_linear_f8", few: &[few("head_f8_32", 32, 2)], tiles: &[small("head_f8_small")] };
const Q8: Kernels = Kernels {
    module: "head_linear_bytes",
    few: &[few("head_q8_8", 8, 1), few("head_q8_32", 32, 2)],
    tiles: &[small("head_q8_small")],
};
const Q4: Kernels = Kernels {
    module: "head_linear_bytes",
    few: &[few("head_q4_8", 8, 1), few("head_q4_32", 32, 1)],
    tiles: &[small("head_q4_small")],
};

/// The most rows that are few: of more, tiles are full.
const FEW: usize = 32;

/// The most that a product asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    most_bytes(sizes.head_rows, sizes.head_widest)
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &HeadLinear<'_, CudaBackend>) -> Result<()> {
    let HeadLinear { out, x, weight, live } = *op;
    let (rows, heads) = (out.rows(), weight.stack());
    if rows == 0 || weight.rows() == 0 {
        return Ok(());
    }
    let (x_head, out_head) = op.strides();
    let product = Product { name: "head_linear", out, x, weight, bias: None, residual: None, activation: None, live };
    let mut linear = linear::params(recorder, &product)?;
    linear.vectors &= u32::from(x_head.is_multiple_of(4));
    let (kernels, direct, copy) = match weight.format() {
        WeightFormat::Float(DType::F32) => (&F32, None, None),
        WeightFormat::Float(DType::BF16) => (&BF16, Some(&BF16_DIRECT), Some("head_bf16_x")),
        WeightFormat::Float(_) => (&F16, Some(&F16_DIRECT), Some("head_f16_x")),
        WeightFormat::F8 => (&F8, Some(&F8_DIRECT), Some("head_f8_x")),
        WeightFormat::Q8 => (&Q8, None, Some("head_q8_x")),
        _ => (&Q4, None, Some("head_q4_x")),
    };
    let direct = direct.filter(|direct| rows <= direct.few[0].rows && linear.vectors == 1);
    if let Some(copy) = copy.filter(|_| direct.is_none()) {
        linear.take_copy(recorder, weight, rows * heads)?;
        let params = Params { linear, x_head: x_head as u32, out_head: out_head as u32 };
        recorder.launch((kernels.module, copy), [rows, 1, heads], THREADS, 0, &params)?;
    }
    let params = Params { linear, x_head: x_head as u32, out_head: out_head as u32 };
    launch_of_heads(recorder, direct.unwrap_or(kernels), FEW, heads, params)
}
