//! `gather`.
use super::check_apart;
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Gather;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Gather<'_, WgpuBackend>) -> Result<()> {
    let mut call = Call::new("gather", &[wgsl::COMMON, wgsl::GATHER]);
    let live = recorder.live(&mut call, op.live)?;
    check_apart("gather", op.out, op.x)?;
    check_apart("gather", op.out, op.rows)?;
    let x = recorder.bind(&mut call, 2, false, op.x)?;
    let index = recorder.bind(&mut call, 3, false, op.rows)?;
    let out = recorder.bind(&mut call, 4, true, op.out)?;
    call.params = vec![
        op.out.rows() as u32,
        live,
        op.x.cols() as u32,
        x,
        op.x.row_stride() as u32,
        op.x.rows() as u32,
        out,
        op.out.row_stride() as u32,
        index,
    ];
    call.grid(op.out.rows(), 1);
    recorder.push(call);
    Ok(())
}
