//! `norm`.
use super::{check_apart, same_place};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Norm;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Norm<'_, WgpuBackend>) -> Result<()> {
    let mut call = Call::new("norm", &[wgsl::COMMON, wgsl::NORM]);
    let live = recorder.live(&mut call, op.live)?;
    let weight = recorder.bind(&mut call, 2, false, op.weight)?;
    let out = recorder.bind(&mut call, 3, true, op.out)?;
    check_apart("norm", op.out, op.weight)?;
    let x = if same_place(op.out, op.x) {
        call.flags.push("IN_PLACE");
        out
    } else {
        check_apart("norm", op.out, op.x)?;
        recorder.bind(&mut call, 4, false, op.x)?
    };
    let residual = match op.residual {
        Some(residual) if same_place(op.out, residual) => {
            call.flags.push("ADD");
            0
        }
        Some(residual) => {
            check_apart("norm", op.out, residual)?;
            call.flags.push("RESIDUAL");
            recorder.bind(&mut call, 5, false, residual)?
        }
        None => 0,
    };
    let residual_stride = op.residual.map_or(0, |residual| residual.row_stride() as u32);
    let width = op.x.cols() as u32;
    let (x_stride, out_stride) = (op.x.row_stride() as u32, op.out.row_stride() as u32);
    call.params = vec![
        op.out.rows() as u32,
        live,
        width,
        op.eps.to_bits(),
        x,
        x_stride,
        out,
        out_stride,
        weight,
        residual,
        residual_stride,
    ];
    call.grid(op.out.rows(), 1);
    recorder.push(call);
    Ok(())
}
