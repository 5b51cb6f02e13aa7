//! `latent_kv`.
use super::kv_type;
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::LatentKv;
use bytemuck::{Pod, Zeroable};

/// Warps of a block: `WARPS` of `latent_kv.cu`.
const WARPS: usize = 4;

/// `LatentKvParams` of `latent_kv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: u64,
    queries: u64,
    kv: u64,
    cache: u64,
    positions: u64,
    slots: u64,
    table: u64,
    norm: u64,
    live: u64,
    rows: u32,
    heads: u32,
    query: u32,
    rank: u32,
    rotated: u32,
    page_size: u32,
    pages: u32,
    kind: u32,
    interleaved: u32,
    table_stride: u32,
    table_rows: u32,
    queries_stride: u32,
    kv_stride: u32,
    q_stride: u32,
    eps: f32,
    reserved: u32,
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &LatentKv<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "latent_kv";
    let (rows, size, rank) = (op.q.rows(), op.cache.dim(3), op.norm.len());
    let heads = op.q.cols() / size;
    let params = Params {
        q: recorder.address(op.q),
        queries: recorder.address(op.queries),
        kv: recorder.address(op.kv),
        cache: recorder.address(op.cache),
        positions: recorder.address(op.positions),
        slots: recorder.address(op.slots),
        table: recorder.address(op.rope.table),
        norm: recorder.address(op.norm),
        live: recorder.live(OP, op.live)?,
        rows: rows as u32,
        heads: heads as u32,
        query: (op.queries.cols() / heads.max(1)) as u32,
        rank: rank as u32,
        rotated: (size - rank) as u32,
        page_size: op.cache.dim(2) as u32,
        pages: op.cache.rows() as u32,
        kind: kv_type(op.cache.dtype()),
        interleaved: u32::from(op.rope.interleaved),
        table_stride: op.rope.table.row_stride() as u32,
        table_rows: op.rope.table.rows() as u32,
        queries_stride: op.queries.row_stride() as u32,
        kv_stride: op.kv.row_stride() as u32,
        q_stride: op.q.row_stride() as u32,
        eps: op.eps,
        reserved: 0,
    };
    recorder.launch((OP, OP), [rows, (heads + 1).div_ceil(WARPS), 1], 32 * WARPS, 0, &params)
}
