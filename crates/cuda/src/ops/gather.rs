//! `gather`.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Gather;
use bytemuck::{Pod, Zeroable};

/// `GatherParams` of `gather.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    x: u64,
    index: u64,
    live: u64,
    rows: u32,
    width: u32,
    out_stride: u32,
    x_stride: u32,
    x_rows: u32,
    reserved: u32,
}

/// Threads of a block, four columns each.
const THREADS: usize = 256;

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Gather<'_, CudaBackend>) -> Result<()> {
    // No row can be named then.
    if op.x.is_empty() {
        return Ok(());
    }
    let params = Params {
        out: recorder.address(op.out),
        x: recorder.address(op.x),
        index: recorder.address(op.rows),
        live: recorder.live("gather", op.live)?,
        rows: op.out.rows() as u32,
        width: op.out.cols() as u32,
        out_stride: op.out.row_stride() as u32,
        x_stride: op.x.row_stride() as u32,
        x_rows: op.x.rows() as u32,
        reserved: 0,
    };
    let grid = [op.out.rows(), op.out.cols().div_ceil(4 * THREADS), 1];
    recorder.launch(("gather", "gather"), grid, THREADS, 0, &params)
}
