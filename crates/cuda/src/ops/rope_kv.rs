//! `rope_kv`.
use super::{check_head, kv_type};
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::RopeKv;
use bytemuck::{Pod, Zeroable};

/// Heads of a block: `WARPS` of `rope_kv.cu`.
const HEADS: usize = 4;

/// `RopeKvParams` of `rope_kv.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q: u64,
    qkv: u64,
    k_cache: u64,
    v_cache: u64,
    k_scales: u64,
    v_scales: u64,
    positions: u64,
    slots: u64,
    table: u64,
    q_norm: u64,
    k_norm: u64,
    live: u64,
    rows: u32,
    heads: u32,
    groups: u32,
    size: u32,
    page_size: u32,
    pages: u32,
    kv: u32,
    rotary: u32,
    interleaved: u32,
    table_stride: u32,
    table_rows: u32,
    qkv_stride: u32,
    q_stride: u32,
    eps: f32,
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &RopeKv<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "rope_kv";
    check_head(OP, op.k_cache)?;
    let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
    let (rows, heads) = (op.q.rows(), op.q.cols() / size);
    // A table of no columns turns nothing.
    let rope = op.rope.as_ref().filter(|rope| rope.table.cols() > 0);
    let params = Params {
        q: recorder.address(op.q),
        qkv: recorder.address(op.qkv),
        k_cache: recorder.address(op.k_cache),
        v_cache: recorder.address(op.v_cache),
        k_scales: recorder.address_of(op.scales.as_ref().map(|scales| scales.k)),
        v_scales: recorder.address_of(op.scales.as_ref().map(|scales| scales.v)),
        positions: recorder.address(op.positions),
        slots: recorder.address(op.slots),
        table: recorder.address_of(rope.map(|rope| rope.table)),
        q_norm: recorder.address_of(op.qk_norm.as_ref().map(|norm| norm.q)),
        k_norm: recorder.address_of(op.qk_norm.as_ref().map(|norm| norm.k)),
        live: recorder.live(OP, op.live)?,
        rows: rows as u32,
        heads: heads as u32,
        groups: groups as u32,
        size: size as u32,
        page_size: page_size as u32,
        pages: op.k_cache.rows() as u32,
        kv: kv_type(op.k_cache.dtype()),
        rotary: rope.map_or(0, |rope| rope.table.cols() as u32),
        interleaved: rope.map_or(0, |rope| u32::from(rope.interleaved)),
        table_stride: rope.map_or(0, |rope| rope.table.row_stride() as u32),
        table_rows: rope.map_or(1, |rope| rope.table.rows() as u32),
        qkv_stride: op.qkv.row_stride() as u32,
        q_stride: op.q.row_stride() as u32,
        eps: op.qk_norm.as_ref().map_or(0.0, |norm| norm.eps),
    };
    recorder.launch((OP, OP), [rows, (heads + 2 * groups).div_ceil(HEADS), 1], 32 * HEADS, 0, &params)
}
