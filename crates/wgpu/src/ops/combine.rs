//! `combine`.
use super::{check_apart, same_place};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Combine;

/// Columns of a workgroup: `THREADS` of the kernel.
const THREADS: usize = 128;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Combine<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "combine";
    let mut call = Call::new(OP, &[wgsl::COMMON, wgsl::COMBINE]);
    let live = recorder.live(&mut call, op.live)?;
    for input in [op.x, op.weights, op.places] {
        check_apart(OP, op.out, input)?;
    }
    let x = recorder.bind(&mut call, 2, false, op.x)?;
    let weights = recorder.bind(&mut call, 3, false, op.weights)?;
    let places = recorder.bind(&mut call, 4, false, op.places)?;
    let out = recorder.bind(&mut call, 5, true, op.out)?;
    let (mut residual, mut residual_stride) = (0, 0);
    if let Some(tensor) = op.residual {
        if same_place(op.out, tensor) {
            call.flags.push("IN_PLACE");
        } else {
            check_apart(OP, op.out, tensor)?;
            call.flags.push("RESIDUAL");
            residual = recorder.bind(&mut call, 6, false, tensor)?;
            residual_stride = tensor.row_stride() as u32;
        }
    }
    call.params = vec![
        op.out.rows() as u32,
        live,
        op.out.cols() as u32,
        op.weights.cols() as u32,
        x,
        op.x.row_stride() as u32,
        op.x.rows() as u32,
        out,
        op.out.row_stride() as u32,
        weights,
        places,
        residual,
        residual_stride,
    ];
    call.grid(op.out.rows(), op.out.cols().div_ceil(THREADS));
    recorder.push(call);
    Ok(())
}
