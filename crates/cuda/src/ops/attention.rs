//! `attention`.
use super::check_head;
use crate::warpgroups::Warpgroups;
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::{Attention, KvScales, LatentAttention};
use anyfleet_tensor::{DType, Error, Live, Result, StepSizes, Tensor};
use bytemuck::{Pod, Zeroable};

/// Keys of a chunk and of a segment: `CHUNK` and `SEGMENT` of `attention.cuh`.
const CHUNK: usize = 64;
const SEGMENT: usize = 256;
/// Rows of a tile: of few rows a sequence, of many, and of many with the largest heads.
const NARROW: usize = 16;
const WIDE: usize = 64;
const WIDE_OF_LARGE: usize = 32;
/// Most rows whose segments different blocks may have: more fill the device by themselves.
const SPLIT_ROWS: usize = 64;
/// Most blocks that share a tile's segments.
const SPLITS: usize = 64;
/// Blocks for a multiprocessor, so that copies of some come while others compute.
const BLOCKS: usize = 4;
/// Most bytes of what segments leave.
const RECORDS: usize = 256 << 20;

/// Most elements that a block of `attention_merge` combines.
const MERGED: usize = 256;

/// `AttentionParams` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    q: u64,
    k_cache: u64,
    v_cache: u64,
    k_scales: u64,
    v_scales: u64,
    seqs: u64,
    table: u64,
    live: u64,
    records: u64,
    sinks: u64,
    rows: u32,
    sequences: u32,
    groups: u32,
    group_heads: u32,
    size: u32,
    page_size: u32,
    pages: u32,
    table_len: u32,
    seqs_stride: u32,
    q_stride: u32,
    out_stride: u32,
    window: u32,
    slots: u32,
    scale: f32,
    whole: u32,
    softcap: f32,
    value_size: u32,
    reserved: u32,
}

/// Bytes that the segments of `rows` rows leave: for each head its weighted values, maximum and sum.
fn record_bytes(rows: usize, heads: usize, size: usize, segments: usize) -> usize {
    rows * heads * segments * (size + 2) * 4
}

/// The most that [`record`] asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    let (rows, segments) = (sizes.tokens.min(SPLIT_ROWS), sizes.positions.div_ceil(SEGMENT));
    // Records of many small heads are larger than those of few large ones.
    let heads = sizes.query_width / sizes.head_size.max(1);
    match segments {
        0 | 1 => 0,
        segments => record_bytes(rows, heads, sizes.head_size, segments).min(RECORDS),
    }
}

/// The module and kernel of a head size and a type of cache, the rows of its tiles, and its shared memory.
fn kernel(dtype: DType, size: usize, wide: bool) -> ((&'static str, &'static str), usize, usize) {
    const MATRIX: [[[&str; 3]; 2]; 3] = [
        [
            ["attention_bf16_narrow_64", "attention_bf16_narrow_128", "attention_bf16_narrow_256"],
            ["attention_bf16_wide_64", "attention_bf16_wide_128", "attention_bf16_wide_256"],
        ],
        [
            ["attention_i8_narrow_64", "attention_i8_narrow_128", "attention_i8_narrow_256"],
            ["attention_i8_wide_64", "attention_i8_wide_128", "attention_i8_wide_256"],
        ],
        [
            ["attention_f8_narrow_64", "attention_f8_narrow_128", "attention_f8_narrow_256"],
            ["attention_f8_wide_64", "attention_f8_wide_128", "attention_f8_wide_256"],
        ],
    ];
    const FLOAT: [[&str; 3]; 2] = [
        ["attention_f16_64", "attention_f16_128", "attention_f16_256"],
        ["attention_f32_64", "attention_f32_128", "attention_f32_256"],
    ];
    let (class, columns) = match size {
        0..=64 => (0, 64),
        65..=128 => (1, 128),
        _ => (2, 256),
    };
    if !matches!(dtype, DType::BF16 | DType::I8 | DType::F8) {
        let shared = 4 * (NARROW * columns + CHUNK * (columns + 4) + NARROW * CHUNK);
        let of_f32 = dtype == DType::F32;
        let module = if of_f32 { "attention_f32" } else { "attention_f16" };
        return ((module, FLOAT[usize::from(of_f32)][class]), NARROW, shared);
    }
    let tile = match (wide, class) {
        (false, _) => NARROW,
        (true, 2) => WIDE_OF_LARGE,
        (true, _) => WIDE,
    };
    let (kind, module) = match dtype {
        DType::I8 => (1, "attention_i8"),
        DType::F8 => (2, "attention_f8"),
        _ => (0, "attention_bf16"),
    };
    let (row, weights) = (2 * (columns + 8), 2 * (CHUNK + 8));
    // Keys and values, or one tile of them and both as bytes.
    let cells = CHUNK * if dtype.size() == 1 { row + 2 * (columns + 16) } else { 2 * row };
    ((module, MATRIX[kind][usize::from(wide)][class]), tile, tile * (row + weights) + cells)
}

/// Tiles of at most `tile` rows that sequences with `tokens` tokens in all may have, of `heads` rows each.
fn tiles(tokens: usize, sequences: usize, heads: usize, tile: usize) -> usize {
    // Each sequence with a token has less than one tile that is not full.
    let sequences = sequences.min(tokens);
    ((tokens * heads + sequences * (tile - 1)) / tile).min(tokens * heads.div_ceil(tile))
}

/// Segments that a row may see, of a table with room for `held` tokens.
fn slots(longest: usize, held: usize, window: Option<u32>) -> usize {
    let tokens = match window {
        None => longest.min(held),
        // It begins and ends within segments, and the table may have the pages from its first on.
        Some(window) => longest.min(held.min(window as usize) + SEGMENT - 1),
    };
    tokens.div_ceil(SEGMENT).max(1)
}

/// What both kinds of attention are.
struct Mixing<'a> {
    op: &'static str,
    out: &'a Tensor<CudaBackend>,
    q: &'a Tensor<CudaBackend>,
    /// Of latents the same twice.
    caches: [&'a Tensor<CudaBackend>; 2],
    scales: Option<&'a KvScales<'a, CudaBackend>>,
    sinks: Option<&'a Tensor<CudaBackend>>,
    seqs: &'a Tensor<CudaBackend>,
    table: &'a Tensor<CudaBackend>,
    scale: f32,
    softcap: Option<f32>,
    window: Option<u32>,
    longest: usize,
    live: Live,
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Attention<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "attention";
    check_head(OP, op.k_cache)?;
    let Attention { out, q, k_cache, v_cache, sinks, seqs, table, scale, softcap, window, longest, live, .. } = *op;
    let (caches, scales) = ([k_cache, v_cache], op.scales.as_ref());
    let mixing = Mixing { op: OP, out, q, caches, scales, sinks, seqs, table, scale, softcap, window, longest, live };
    let by_warpgroups = recorder.device.driver().warpgroups() != Warpgroups::Never;
    mix(recorder, &mixing, |dtype, size, wide| {
        let chosen = (by_warpgroups && wide && dtype == DType::BF16).then(|| warpgroup_kernel(size)).flatten();
        chosen.unwrap_or_else(|| kernel(dtype, size, wide))
    })
}

/// As [`kernel`], for many rows by a warpgroup, which has no registers for the largest heads.
fn warpgroup_kernel(size: usize) -> Option<Choice> {
    let (name, columns) = match size {
        0..=64 => ("attention_bf16_warpgroup_64", 64),
        65..=128 => ("attention_bf16_warpgroup_128", 128),
        _ => return None,
    };
    // Queries, keys and values, and what may be lost before a multiple of a block of lines.
    Some((("attention_warpgroup", name), WIDE, (WIDE + 2 * CHUNK) * columns * 2 + 1024))
}

/// Elements of keys and of values: `D` and `V` of `latent_attention_bf16.cu`.
const LATENT: (usize, usize) = (576, 512);

pub(crate) fn record_latent(recorder: &mut CudaRecorder, op: &LatentAttention<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "latent_attention";
    let LatentAttention { out, q, cache, seqs, table, scale, longest, live } = *op;
    let (size, value_size) = (cache.dim(3), out.cols() / op.heads());
    let is_even = size.is_multiple_of(2) && value_size.is_multiple_of(2);
    if !is_even || size > LATENT.0 || value_size > LATENT.1 {
        let (most, most_values) = LATENT;
        return Err(Error::Shape {
            op: OP,
            what: "keys and values must be of even sizes that fit the kernel",
            details: format!("{size} and {value_size}, at most {most} and {most_values}"),
            remedy: "use another device for this model",
        });
    }
    let (caches, scales, sinks, softcap, window) = ([cache; 2], None, None, None, None);
    let mixing = Mixing { op: OP, out, q, caches, scales, sinks, seqs, table, scale, softcap, window, longest, live };
    mix(recorder, &mixing, |dtype, _, _| latent_kernel(dtype))
}

/// As [`kernel`], of latents.
fn latent_kernel(dtype: DType) -> Choice {
    // A slice of the largest keys of floats: `SLICE` of `attention_float.cuh`.
    const SLICE: usize = 192;
    let name = match dtype {
        DType::BF16 => "latent_attention_bf16",
        DType::F16 => "latent_attention_f16",
        DType::F8 => "latent_attention_f8",
        _ => "latent_attention_f32",
    };
    let shared = match dtype {
        // Queries, weights, and keys that stay while they are values; bytes lie in the rows that they become.
        DType::BF16 | DType::F8 => NARROW * 2 * (LATENT.0 + 8 + CHUNK + 8) + CHUNK * 2 * (LATENT.0 + 8),
        _ => 4 * (NARROW * LATENT.0 + CHUNK * (SLICE + 4) + NARROW * CHUNK),
    };
    ((name, name), NARROW, shared)
}

/// The module and kernel of a type of cache and a size of head, for few rows or many; rows of a tile; shared memory.
type Choice = ((&'static str, &'static str), usize, usize);

fn mix(recorder: &mut CudaRecorder, op: &Mixing<'_>, kernel: impl Fn(DType, usize, bool) -> Choice) -> Result<()> {
    const THREADS: usize = 128;
    let cache = op.caches[0];
    let (groups, page_size, size) = (cache.dim(1), cache.dim(2), cache.dim(3));
    let (rows, sequences, heads) = (op.q.rows(), op.seqs.rows(), op.q.cols() / size);
    let group_heads = heads / groups;
    let empty = cache.is_empty() || op.table.is_empty();
    if rows == 0 || group_heads == 0 || sequences == 0 || empty {
        return Ok(());
    }
    let value_size = op.out.cols() / heads;
    // Tiles of sixteen rows read the caches more often and have more blocks.
    let wide = rows > SPLIT_ROWS && rows * group_heads > 2 * NARROW * sequences.min(rows);
    let (kernel, tile, shared) = kernel(cache.dtype(), size, wide);
    let tiles = tiles(rows, sequences, group_heads, tile);
    let slots = slots(op.longest, op.table.len() * page_size, op.window);
    let record_bytes = record_bytes(rows, heads, value_size, slots);
    let wanted = BLOCKS * recorder.device.driver().description().processors as usize;
    let splits = match rows <= SPLIT_ROWS && record_bytes <= RECORDS {
        true => wanted.div_ceil(tiles * groups).clamp(1, slots.min(SPLITS)),
        false => 1,
    };
    let cells = op.caches.map(|cache| recorder.address(cache));
    let whole = (size * cache.dtype().size()).is_multiple_of(16) && cells.iter().all(|at| at.is_multiple_of(16));
    let params = Params {
        out: recorder.address(op.out),
        q: recorder.address(op.q),
        k_cache: cells[0],
        v_cache: cells[1],
        k_scales: recorder.address_of(op.scales.as_ref().map(|scales| scales.k)),
        v_scales: recorder.address_of(op.scales.as_ref().map(|scales| scales.v)),
        seqs: recorder.address(op.seqs),
        table: recorder.address(op.table),
        live: recorder.live(op.op, op.live)?,
        records: if splits > 1 { recorder.scratch(record_bytes)? } else { 0 },
        sinks: recorder.address_of(op.sinks),
        rows: rows as u32,
        sequences: sequences as u32,
        groups: groups as u32,
        group_heads: group_heads as u32,
        size: size as u32,
        page_size: page_size as u32,
        pages: cache.rows() as u32,
        table_len: op.table.len() as u32,
        seqs_stride: op.seqs.row_stride() as u32,
        q_stride: op.q.row_stride() as u32,
        out_stride: op.out.row_stride() as u32,
        window: op.window.unwrap_or(0),
        slots: slots as u32,
        scale: op.softcap.map_or(op.scale, |cap| op.scale / cap),
        whole: u32::from(whole),
        softcap: op.softcap.unwrap_or(0.0),
        value_size: value_size as u32,
        reserved: 0,
    };
    recorder.launch(kernel, [tiles, groups, splits], THREADS, shared, &params)?;
    if splits == 1 {
        return Ok(());
    }
    let threads = value_size.next_multiple_of(32).min(MERGED);
    let grid = [rows, heads, value_size.div_ceil(threads)];
    recorder.launch(("attention_merge", "attention_merge"), grid, threads, 0, &params)
}
