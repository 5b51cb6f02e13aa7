//! `embed`.
use super::check_apart;
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::Embed;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Embed<'_, WgpuBackend>) -> Result<()> {
    // Without tokens that the device chose, the binding has the ids once more, and no entry names it.
    let sampled = op.sampled.unwrap_or(op.ids);
    check_apart("embed", op.out, op.ids)?;
    check_apart("embed", op.out, sampled)?;
    for part in op.weight.parts() {
        let mut call = Call::new("embed", &[wgsl::COMMON, wgsl::WEIGHT, wgsl::EMBED]);
        call.flags.push(op.weight.flag());
        let live = recorder.live(&mut call, op.live)?;
        call.bind_range(2, false, part.range());
        let ids = recorder.bind(&mut call, 3, false, op.ids)?;
        let out = recorder.bind(&mut call, 4, true, op.out)?;
        let place = recorder.bind(&mut call, 5, false, sampled)?;
        call.params = vec![
            op.out.rows() as u32,
            live,
            op.weight.cols() as u32,
            op.weight.steps() as u32,
            part.first_lane() as u32,
            part.lanes() as u32,
            op.weight.rows() as u32,
            u32::from(op.weight.gated()),
            part.multipliers() as u32,
            part.scales() as u32,
            ids,
            out,
            op.out.row_stride() as u32,
            place,
            op.sampled.map_or(0, |sampled| sampled.len() as u32),
            op.scale.to_bits(),
        ];
        call.grid(op.out.rows(), 1);
        recorder.push(call);
    }
    Ok(())
}
