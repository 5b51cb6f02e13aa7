//! `latent_kv`.
use super::{check_apart, kv_flag};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::LatentKv;

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &LatentKv<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "latent_kv";
    super::check_pairs(OP, op.cache, op.norm.len())?;
    for out in [op.q, op.cache] {
        [op.queries, op.kv].into_iter().try_for_each(|input| check_apart(OP, out, input))?;
    }
    let (rank, size) = (op.norm.len(), op.cache.dim(3));
    let heads = op.q.cols() / size;
    let mut call = Call::new(OP, &[wgsl::COMMON, wgsl::KV, wgsl::LATENT_KV]);
    call.flags.push(kv_flag(op.cache.dtype()));
    if op.cache.dtype().size() == 1 && !size.is_multiple_of(4) {
        call.flags.push("KV_HALVES");
    }
    call.constants.extend([("RANK", rank as u32), ("ROTATED", (size - rank) as u32)]);
    let live = recorder.live(&mut call, op.live)?;
    let queries = recorder.bind(&mut call, 2, false, op.queries)?;
    let kv = recorder.bind(&mut call, 3, false, op.kv)?;
    let positions = recorder.bind(&mut call, 4, false, op.positions)?;
    let slots = recorder.bind(&mut call, 5, false, op.slots)?;
    let q = recorder.bind(&mut call, 6, true, op.q)?;
    let cache = recorder.bind(&mut call, 7, true, op.cache)?;
    let table = recorder.bind(&mut call, 8, false, op.rope.table)?;
    let norm = recorder.bind(&mut call, 9, false, op.norm)?;
    call.params = vec![
        op.q.rows() as u32,
        live,
        heads as u32,
        (op.queries.cols() / heads.max(1)) as u32,
        op.cache.dim(2) as u32,
        op.cache.rows() as u32,
        u32::from(op.rope.interleaved),
        op.eps.to_bits(),
        queries,
        op.queries.row_stride() as u32,
        kv,
        op.kv.row_stride() as u32,
        q,
        op.q.row_stride() as u32,
        positions,
        slots,
        table,
        op.rope.table.row_stride() as u32,
        op.rope.table.rows() as u32,
        norm,
        cache,
    ];
    call.grid(op.q.rows(), heads + 1);
    recorder.push(call);
    Ok(())
}
