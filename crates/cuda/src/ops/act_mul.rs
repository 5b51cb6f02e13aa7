//! `act_mul`.
use super::function;
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::ActMul;
use bytemuck::{Pod, Zeroable};

/// `ActMulParams` of `act_mul.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    gate_up: u64,
    live: u64,
    rows: u32,
    width: u32,
    out_stride: u32,
    gate_up_stride: u32,
    function: u32,
    reserved: u32,
}

/// Threads of a block, four columns each.
const THREADS: usize = 256;

pub(crate) fn record(recorder: &mut CudaRecorder, op: &ActMul<'_, CudaBackend>) -> Result<()> {
    let live = recorder.live("act_mul", op.live)?;
    record_live(recorder, op, live)
}

/// Of as many rows as `live` points to, or of all where it is 0.
pub(crate) fn record_live(recorder: &mut CudaRecorder, op: &ActMul<'_, CudaBackend>, live: u64) -> Result<()> {
    let params = Params {
        out: recorder.address(op.out),
        gate_up: recorder.address(op.gate_up),
        live,
        rows: op.out.rows() as u32,
        width: op.out.cols() as u32,
        out_stride: op.out.row_stride() as u32,
        gate_up_stride: op.gate_up.row_stride() as u32,
        function: function("act_mul", op.activation)?,
        reserved: 0,
    };
    let grid = [op.out.rows(), op.out.cols().div_ceil(4 * THREADS), 1];
    recorder.launch(("act_mul", "act_mul"), grid, THREADS, 0, &params)
}
