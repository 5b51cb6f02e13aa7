//! `softcap`.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Softcap;
use bytemuck::{Pod, Zeroable};

/// `SoftcapParams` of `softcap.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    x: u64,
    live: u64,
    rows: u32,
    width: u32,
    stride: u32,
    cap: f32,
}

/// Threads of a block, four columns each.
const THREADS: usize = 256;

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Softcap<'_, CudaBackend>) -> Result<()> {
    let params = Params {
        x: recorder.address(op.x),
        live: recorder.live("softcap", op.live)?,
        rows: op.x.rows() as u32,
        width: op.x.cols() as u32,
        stride: op.x.row_stride() as u32,
        cap: op.cap,
    };
    let grid = [op.x.rows(), op.x.cols().div_ceil(4 * THREADS), 1];
    recorder.launch(("softcap", "softcap"), grid, THREADS, 0, &params)
}
