//! `rope_kv`.
use super::{check_apart, check_head, kv_flag};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::RopeKv;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &RopeKv<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "rope_kv";
    check_head(OP, op.k_cache)?;
    check_apart(OP, op.q, op.qkv)?;
    let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
    let heads = op.q.cols() / size;
    let mut call = Call::new(OP, &[wgsl::COMMON, wgsl::EXACT, wgsl::KV, wgsl::ROPE_KV]);
    call.flags.push(kv_flag(op.k_cache.dtype()));
    if op.k_cache.dtype().size() == 1 {
        call.flags.push("KV_BYTES");
        if !size.is_multiple_of(4) {
            call.flags.push("KV_HALVES");
        }
    }
    call.constants.push(("SIZE", size as u32));
    let live = recorder.live(&mut call, op.live)?;
    let qkv = recorder.bind(&mut call, 2, false, op.qkv)?;
    let positions = recorder.bind(&mut call, 3, false, op.positions)?;
    let slots = recorder.bind(&mut call, 4, false, op.slots)?;
    let q = recorder.bind(&mut call, 5, true, op.q)?;
    let k_cache = recorder.bind(&mut call, 6, true, op.k_cache)?;
    let v_cache = recorder.bind(&mut call, 7, true, op.v_cache)?;
    let (mut rotary, mut interleaved, mut table, mut table_stride, mut table_rows) = (0, 0, 0, 0, 1);
    if let Some(rope) = op.rope.as_ref().filter(|rope| rope.table.cols() > 0) {
        call.flags.push("ROPE");
        table = recorder.bind(&mut call, 8, false, rope.table)?;
        (table_stride, table_rows) = (rope.table.row_stride() as u32, rope.table.rows() as u32);
        (rotary, interleaved) = (rope.table.cols() as u32, u32::from(rope.interleaved));
    }
    let (mut normed, mut eps, mut q_norm, mut k_norm) = (0, 0.0f32, 0, 0);
    if let Some(norm) = &op.qk_norm {
        call.flags.push("NORM");
        (normed, eps) = (1, norm.eps);
        q_norm = recorder.bind(&mut call, 9, false, norm.q)?;
        k_norm = recorder.bind(&mut call, 10, false, norm.k)?;
    }
    let (mut k_scales, mut v_scales) = (0, 0);
    if let Some(scales) = &op.scales {
        k_scales = recorder.bind(&mut call, 11, true, scales.k)?;
        v_scales = recorder.bind(&mut call, 12, true, scales.v)?;
    }
    call.params = vec![
        op.q.rows() as u32,
        live,
        heads as u32,
        groups as u32,
        page_size as u32,
        op.k_cache.rows() as u32,
        rotary,
        interleaved,
        normed,
        eps.to_bits(),
        qkv,
        op.qkv.row_stride() as u32,
        q,
        op.q.row_stride() as u32,
        positions,
        slots,
        table,
        table_stride,
        table_rows,
        q_norm,
        k_norm,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
    ];
    call.grid(op.q.rows(), heads + 2 * groups);
    recorder.push(call);
    Ok(())
}
