//! `embed`.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::Embed;
use anyfleet_tensor::{DType, Error, Result, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// `EmbedParams` of `embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    ids: u64,
    sampled: u64,
    weight: u64,
    multipliers: u64,
    scales: u64,
    live: u64,
    rows: u32,
    width: u32,
    out_stride: u32,
    features: u32,
    blocks: u32,
    format: u32,
    sampled_count: u32,
    scale: f32,
}

/// The number that `embed.cu` knows a format by.
fn number(format: WeightFormat) -> u32 {
    match format {
        WeightFormat::Float(DType::F32) => 0,
        WeightFormat::Float(DType::BF16) => 1,
        WeightFormat::Float(_) => 2,
        WeightFormat::Q8 => 3,
        WeightFormat::F8 => 5,
        _ => 4,
    }
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Embed<'_, CudaBackend>) -> Result<()> {
    let weight = op.weight;
    if weight.gated() || weight.rows() == 0 {
        return Err(Error::Shape {
            op: "embed",
            what: "rows are read of matrices that have some, without gates between them",
            details: format!("{} x {}, gated {}", weight.rows(), weight.cols(), weight.gated()),
            remedy: "load it as a matrix that is not gated",
        });
    }
    recorder.weights.push(weight.clone());
    let params = Params {
        out: recorder.address(op.out),
        ids: recorder.address(op.ids),
        sampled: op.sampled.filter(|sampled| !sampled.is_empty()).map_or(0, |sampled| recorder.address(sampled)),
        weight: weight.address(),
        multipliers: weight.multipliers(),
        scales: weight.scales(),
        live: recorder.live("embed", op.live)?,
        rows: op.out.rows() as u32,
        width: weight.cols() as u32,
        out_stride: op.out.row_stride() as u32,
        features: weight.rows() as u32,
        blocks: weight.blocks() as u32,
        format: number(weight.format()),
        sampled_count: op.sampled.map_or(0, |sampled| sampled.len() as u32),
        scale: op.scale,
    };
    recorder.launch(("embed", "embed"), [op.out.rows(), 1, 1], 256, 0, &params)
}
