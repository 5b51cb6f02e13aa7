//! `norm`.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Norm;
use bytemuck::{Pod, Zeroable};

/// `NormParams` of `norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    x: u64,
    weight: u64,
    live: u64,
    residual: u64,
    rows: u32,
    width: u32,
    out_stride: u32,
    x_stride: u32,
    eps: f32,
    residual_stride: u32,
}

/// Threads of a block: their number decides the order of a row's sum.
const THREADS: usize = 512;

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Norm<'_, CudaBackend>) -> Result<()> {
    let params = Params {
        out: recorder.address(op.out),
        x: recorder.address(op.x),
        weight: recorder.address(op.weight),
        live: recorder.live("norm", op.live)?,
        residual: recorder.address_of(op.residual),
        rows: op.out.rows() as u32,
        width: op.x.cols() as u32,
        out_stride: op.out.row_stride() as u32,
        x_stride: op.x.row_stride() as u32,
        eps: op.eps,
        residual_stride: op.residual.map_or(0, |residual| residual.row_stride() as u32),
    };
    recorder.launch(("norm", "norm"), [op.out.rows(), 1, 1], THREADS, 0, &params)
}
