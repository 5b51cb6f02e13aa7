//! `act_mul`.
use super::{check_apart, function};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::ActMul;

/// Columns of a workgroup: `THREADS` of the kernel.
const THREADS: usize = 128;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &ActMul<'_, WgpuBackend>) -> Result<()> {
    let live = op.live;
    record_live(recorder, op, |recorder, call| recorder.live(call, live))
}

/// With any word of the device that says how many rows there are.
pub(crate) fn record_live(
    recorder: &mut WgpuRecorder,
    op: &ActMul<'_, WgpuBackend>,
    live: impl FnOnce(&WgpuRecorder, &mut Call) -> Result<u32>,
) -> Result<()> {
    let mut call = Call::new("act_mul", &[wgsl::COMMON, wgsl::EXACT, wgsl::ACTIVATION, wgsl::ACT_MUL]);
    let live = live(recorder, &mut call)?;
    check_apart("act_mul", op.out, op.gate_up)?;
    let x = recorder.bind(&mut call, 2, false, op.gate_up)?;
    let out = recorder.bind(&mut call, 3, true, op.out)?;
    call.params = vec![
        op.out.rows() as u32,
        live,
        op.out.cols() as u32,
        function("act_mul", op.activation)?,
        x,
        op.gate_up.row_stride() as u32,
        out,
        op.out.row_stride() as u32,
    ];
    call.grid(op.out.rows(), op.out.cols().div_ceil(THREADS));
    recorder.push(call);
    Ok(())
}
