//! `softcap`.
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Softcap;

/// Columns of a workgroup: `THREADS` of the kernel.
const THREADS: usize = 128;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Softcap<'_, WgpuBackend>) -> Result<()> {
    let parts = [wgsl::COMMON, wgsl::EXACT, wgsl::ACTIVATION, wgsl::TANH, wgsl::SOFTCAP];
    let mut call = Call::new("softcap", &parts);
    let live = recorder.live(&mut call, op.live)?;
    let x = recorder.bind(&mut call, 2, true, op.x)?;
    call.params = vec![
        op.x.rows() as u32,
        live,
        op.x.cols() as u32,
        op.cap.to_bits(),
        (1.0 / op.cap).to_bits(),
        x,
        op.x.row_stride() as u32,
    ];
    call.grid(op.x.rows(), op.x.cols().div_ceil(THREADS));
    recorder.push(call);
    Ok(())
}
