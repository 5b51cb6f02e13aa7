//! `combine`.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::Combine;
use anyfleet_tensor::{Result, Tensor};
use bytemuck::{Pod, Zeroable};

/// `CombineParams` of `combine.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    x: u64,
    weights: u64,
    places: u64,
    residual: u64,
    live: u64,
    rows: u32,
    width: u32,
    per_token: u32,
    pairs: u32,
    out_stride: u32,
    x_stride: u32,
    residual_stride: u32,
    reserved: u32,
}

/// Threads of a block, four columns each.
const THREADS: usize = 256;

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Combine<'_, CudaBackend>) -> Result<()> {
    let params = Params {
        out: recorder.address(op.out),
        x: recorder.address(op.x),
        weights: recorder.address(op.weights),
        places: recorder.address(op.places),
        residual: recorder.address_of(op.residual),
        live: recorder.live("combine", op.live)?,
        rows: op.out.rows() as u32,
        width: op.out.cols() as u32,
        per_token: op.weights.cols() as u32,
        pairs: op.x.rows() as u32,
        out_stride: op.out.row_stride() as u32,
        x_stride: op.x.row_stride() as u32,
        residual_stride: op.residual.map_or(0, Tensor::row_stride) as u32,
        reserved: 0,
    };
    let grid = [op.out.rows(), op.out.cols().div_ceil(4 * THREADS), 1];
    recorder.launch(("combine", "combine"), grid, THREADS, 0, &params)
}
