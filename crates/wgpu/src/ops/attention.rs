//! `attention`.
use super::{check_apart, check_head, check_pairs, kv_flag};
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::ops::{Attention, KvScales, LatentAttention};
use anyfleet_tensor::{Live, Result, StepSizes, Tensor};

/// Keys of a segment: `SEGMENT` of the kernels.
const SEGMENT: usize = 256;
/// Query heads of a workgroup.
const HEADS: usize = 8;
/// Elements of these at most: 10 KiB, of 16 that WebGPU promises.
const QUERIES: usize = 2560;
/// Most rows whose segments are computed apart: more fill the device by themselves.
const SPLIT_ROWS: usize = 16;
/// Most bytes of what segments leave.
const RECORDS: usize = 32 << 20;

/// Bytes that the segments of `rows` rows leave: for each head its weighted values, maximum and sum.
fn record_bytes(rows: usize, heads: usize, size: usize, segments: usize) -> usize {
    rows * heads * segments * (size + 2) * 4
}

/// The most that [`record`] asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    let (rows, segments) = (sizes.tokens.min(SPLIT_ROWS), sizes.positions.div_ceil(SEGMENT));
    let heads = sizes.query_width / sizes.head_size.max(1);
    match segments {
        0 | 1 => 0,
        segments => record_bytes(rows, heads, sizes.head_size, segments).min(RECORDS),
    }
}

/// What both kinds of attention are.
struct Mixing<'a> {
    name: &'static str,
    out: &'a Tensor<WgpuBackend>,
    q: &'a Tensor<WgpuBackend>,
    k_cache: &'a Tensor<WgpuBackend>,
    /// None of latents: values are the first elements of keys.
    v_cache: Option<&'a Tensor<WgpuBackend>>,
    scales: Option<&'a KvScales<'a, WgpuBackend>>,
    sinks: Option<&'a Tensor<WgpuBackend>>,
    seqs: &'a Tensor<WgpuBackend>,
    table: &'a Tensor<WgpuBackend>,
    scale: f32,
    softcap: Option<f32>,
    window: Option<u32>,
    longest: usize,
    live: Live,
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Attention<'_, WgpuBackend>) -> Result<()> {
    let name = "attention";
    check_head(name, op.k_cache)?;
    let Attention { out, q, k_cache, v_cache, sinks, seqs, table, scale, softcap, window, longest, live, .. } = *op;
    let (v_cache, scales) = (Some(v_cache), op.scales.as_ref());
    let mixing =
        Mixing { name, out, q, k_cache, v_cache, scales, sinks, seqs, table, scale, softcap, window, longest, live };
    mix(recorder, &mixing)
}

pub(crate) fn record_latent(recorder: &mut WgpuRecorder, op: &LatentAttention<'_, WgpuBackend>) -> Result<()> {
    let name = "latent_attention";
    check_pairs(name, op.cache, op.out.cols() / op.heads())?;
    let LatentAttention { out, q, cache, seqs, table, scale, longest, live } = *op;
    let (k_cache, v_cache, scales, sinks, softcap, window) = (cache, None, None, None, None, None);
    let mixing =
        Mixing { name, out, q, k_cache, v_cache, scales, sinks, seqs, table, scale, softcap, window, longest, live };
    mix(recorder, &mixing)
}

fn mix(recorder: &mut WgpuRecorder, op: &Mixing<'_>) -> Result<()> {
    check_apart(op.name, op.out, op.q)?;
    let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
    let (rows, heads) = (op.q.rows(), op.q.cols() / size);
    let group_heads = heads / groups;
    if rows == 0 || group_heads == 0 || op.seqs.rows() == 0 || op.table.is_empty() {
        return Ok(());
    }
    let value_size = op.out.cols() / heads;
    // Queries of large heads fill the memory of a workgroup.
    let together = group_heads.min(HEADS).min((QUERIES / size).max(1));
    let batches = group_heads.div_ceil(together);
    let most = op.longest.min(op.table.len() * page_size).div_ceil(SEGMENT).max(1);
    let record_bytes = record_bytes(rows, heads, value_size, most);
    let split = rows <= SPLIT_ROWS && most > 1 && op.window.is_none() && record_bytes <= RECORDS;
    let segments = if split { most } else { 1 };
    let mut call = Call::new(op.name, &[wgsl::COMMON, wgsl::EXACT, wgsl::KV, wgsl::ATTENTION]);
    call.flags.push(kv_flag(op.k_cache.dtype()));
    if op.softcap.is_some() {
        call.parts.extend([wgsl::ACTIVATION, wgsl::TANH]);
        call.flags.push("SOFTCAP");
    }
    call.constants.extend([("SIZE", size as u32), ("VALUE_SIZE", value_size as u32), ("HEADS", together as u32)]);
    let live = recorder.live(&mut call, op.live)?;
    let q = recorder.bind(&mut call, 2, false, op.q)?;
    let k_cache = recorder.bind(&mut call, 3, false, op.k_cache)?;
    let v_cache = match op.v_cache {
        Some(v_cache) => recorder.bind(&mut call, 4, false, v_cache)?,
        None => {
            call.flags.push("LATENT");
            0
        }
    };
    let seqs = recorder.bind(&mut call, 5, false, op.seqs)?;
    let table = recorder.bind(&mut call, 6, false, op.table)?;
    let records = if split {
        call.flags.push("SPLIT");
        let range = recorder.context.scratch(record_bytes)?;
        call.bind_range(7, true, range.clone());
        Some(range)
    } else {
        None
    };
    let out = match records {
        Some(_) => 0,
        None => recorder.bind(&mut call, 7, true, op.out)?,
    };
    let (mut k_scales, mut v_scales) = (0, 0);
    if let Some(scales) = &op.scales {
        k_scales = recorder.bind(&mut call, 8, false, scales.k)?;
        v_scales = recorder.bind(&mut call, 9, false, scales.v)?;
    }
    let sinks = match op.sinks.filter(|_| !split) {
        Some(sinks) => {
            call.flags.push("SINKS");
            recorder.bind(&mut call, 10, false, sinks)?
        }
        None => 0,
    };
    call.params = vec![
        rows as u32,
        op.seqs.rows() as u32,
        live,
        groups as u32,
        group_heads as u32,
        batches as u32,
        page_size as u32,
        op.k_cache.rows() as u32,
        op.softcap.map_or(op.scale, |cap| op.scale / cap).to_bits(),
        op.window.unwrap_or(0),
        segments as u32,
        seqs,
        op.seqs.row_stride() as u32,
        table,
        op.table.len() as u32,
        q,
        op.q.row_stride() as u32,
        out,
        op.out.row_stride() as u32,
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        op.softcap.unwrap_or(0.0).to_bits(),
        sinks,
    ];
    call.grid(rows, groups * batches * segments);
    recorder.push(call);
    let Some(records) = records else { return Ok(()) };
    let mut merge = Call::new("attention_merge", &[wgsl::COMMON, wgsl::EXACT, wgsl::ATTENTION_MERGE]);
    merge.constants.push(("SIZE", value_size as u32));
    let live = recorder.live(&mut merge, op.live)?;
    let seqs = recorder.bind(&mut merge, 2, false, op.seqs)?;
    merge.bind_range(3, false, records);
    let out = recorder.bind(&mut merge, 4, true, op.out)?;
    let sinks = match op.sinks {
        Some(sinks) => {
            merge.flags.push("SINKS");
            recorder.bind(&mut merge, 5, false, sinks)?
        }
        None => 0,
    };
    merge.params = vec![
        rows as u32,
        op.seqs.rows() as u32,
        live,
        heads as u32,
        op.window.unwrap_or(0),
        segments as u32,
        seqs,
        op.seqs.row_stride() as u32,
        0,
        out,
        op.out.row_stride() as u32,
        sinks,
    ];
    merge.grid(rows, heads);
    recorder.push(merge);
    Ok(())
}
