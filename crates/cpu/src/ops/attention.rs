//! `attention`: causal attention over pages.
//!
//! A task is a tile of consecutive queries of one sequence with all query heads of one key/value
//! head. It walks the keys in chunks of 64, aligned at position 0 of the sequence, and keeps a running
//! maximum and sum per row (online softmax, Milakov and Gimelshein 2018). Of a chunk, the keys are
//! transposed and the values widened once for all rows of the tile.
//!
//! Per row and chunk, whatever the tile, the pages and the other rows:
//! 1. score = scale * (q . k), summed over the head by fused multiply-adds in order; capped where there is a cap;
//! 2. m' = max(m, scores); p = exp(score - m'), exactly 0 for a key the row does not see;
//! 3. l = l * exp(m - m') + sum(p), the sum over 16 strided lanes and their tree;
//! 4. o = o * exp(m - m'), then o += p * v by fused multiply-adds over the keys it sees, in order.
//!
//! A sink joins m and l after the last chunk, as if it were one more with a value of zero: see [`Finish`].
//!
//! bf16 keys and values are multiplied by pairs, after rounding queries and weights: see [`pairs`]. Those kept
//! as bytes, or as floats of eight bits, are brought to bf16 as they are read; from there on nothing tells them apart.
//!
//! A key the row does not see therefore changes no bit, whatever lies in its memory, and neither does
//! a chunk without keys that it sees: those are skipped.
mod cached;
mod few;
mod floats;
mod pairs;
mod softmax;

use crate::CpuBackend;
use crate::panels::Squares;
use crate::plan::Context;
use crate::simd::F8;
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::{Attention, LatentAttention};
use anyfleet_tensor::{DType, Live, Result, SeqMeta};
use cached::{Cached, CachedRow};
use half::{bf16, f16};
use pairs::PairedCell;
use softmax::{Finish, Scoring};
use std::ops::Range;

pub(crate) struct AttentionOp {
    out: View,
    q: View,
    k_cache: View,
    v_cache: View,
    /// Of keys and of values, where the caches are bytes.
    scales: Option<[View; 2]>,
    seqs: View,
    table: View,
    /// Groups of query heads that a task has together, and the heads of each; as many as the caches have heads, but of
    /// latents, where all have one.
    groups: usize,
    group_heads: usize,
    /// Elements of a key and of a value, tokens per page, key/value heads.
    size: usize,
    value_size: usize,
    page_size: usize,
    kv_heads: usize,
    scoring: Scoring,
    /// Of each query head.
    sinks: Option<View>,
    window: Option<usize>,
    live: Live,
}

/// Keys per chunk.
const CHUNK: usize = 64;

/// Rows (queries times heads of a group) a tile of several queries has at most, and a tile of pairs.
const TILE_ROWS: usize = 48;
const TILE_ROWS_OF_PAIRS: usize = 128;

/// Most query heads over latents that a task has together: rows of a tile of the matrix unit. All of them could read the
/// latents once, but a step of one token would have one task.
const HEADS: usize = 16;

/// A task, the one after it, and whether the one before it asked for its first chunk.
#[derive(Clone, Copy)]
struct Walk<'a> {
    task: &'a Task,
    next: Option<&'a Task>,
    asked: bool,
}

/// Tasks a thread takes at a time at most.
const TASKS: usize = 4;

/// A tile: queries `first .. first + count` of a sequence, and a key/value head.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    seq: SeqMeta,
    group: usize,
    first: usize,
    count: usize,
}

impl AttentionOp {
    pub(crate) fn new(op: &Attention<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("attention", tensor);
        let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
        let scales = match &op.scales {
            Some(scales) => Some([view(scales.k)?, view(scales.v)?]),
            None => None,
        };
        let this = AttentionOp {
            out: view(op.out)?,
            q: view(op.q)?,
            k_cache: view(op.k_cache)?,
            v_cache: view(op.v_cache)?,
            scales,
            seqs: view(op.seqs)?,
            table: view(op.table)?,
            groups,
            group_heads: op.q.cols() / (groups * size),
            size,
            value_size: size,
            page_size,
            kv_heads: groups,
            scoring: Scoring { scale: op.scale, cap: op.softcap },
            sinks: op.sinks.map(view).transpose()?,
            window: op.window.map(|w| w as usize),
            live: op.live,
        };
        let inputs = [&this.q, &this.k_cache, &this.v_cache].into_iter();
        for input in inputs.chain(this.scales.iter().flatten()).chain(&this.sinks) {
            check_apart("attention", &this.out, input)?;
        }
        Ok(this)
    }

    /// Values are the first elements of keys.
    pub(crate) fn latent(op: &LatentAttention<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("latent_attention", tensor);
        let (heads, page_size, size) = (op.heads(), op.cache.dim(2), op.cache.dim(3));
        let together = (1..=HEADS.min(heads)).rev().find(|&n| heads.is_multiple_of(n)).unwrap_or(1);
        let (out, q, cache) = (view(op.out)?, view(op.q)?, view(op.cache)?);
        for input in [&q, &cache] {
            check_apart("latent_attention", &out, input)?;
        }
        Ok(AttentionOp {
            out,
            q,
            k_cache: cache.clone(),
            v_cache: cache,
            scales: None,
            seqs: view(op.seqs)?,
            table: view(op.table)?,
            groups: heads / together,
            group_heads: together,
            size,
            value_size: op.out.cols() / heads,
            page_size,
            kv_heads: 1,
            scoring: Scoring { scale: op.scale, cap: None },
            sinks: None,
            window: None,
            live: op.live,
        })
    }

    pub(crate) fn execute(&self, ctx: &Context, tasks: &mut Vec<Task>) {
        tasks.clear();
        if self.group_heads == 0 {
            return;
        }
        let most = match self.k_cache.dtype() {
            DType::BF16 | DType::I8 | DType::F8 => TILE_ROWS_OF_PAIRS,
            _ => TILE_ROWS,
        };
        let tile = (most / self.group_heads).max(1);
        for s in 0..ctx.live(self.live, self.seqs.rows()) {
            let seq = self.sequence(s);
            for first in (0..seq.rows as usize).step_by(tile) {
                let count = tile.min(seq.rows as usize - first);
                tasks.extend((0..self.groups).map(|group| Task { seq, group, first, count }));
            }
        }
        let tasks = &*tasks;
        let width = |left: usize| left.min(TASKS);
        ctx.each_share(tasks.len(), width, |piece| {
            let mut squares = None;
            for i in piece.items.clone() {
                let (last, follows) = (i + 1 == piece.items.end, i > piece.items.start || piece.follows);
                let next = if last && !piece.more { None } else { tasks.get(i + 1) };
                let walk = Walk { task: &tasks[i], next, asked: follows };
                match self.k_cache.dtype() {
                    DType::F32 => floats::tile::<f32>(self, ctx, walk),
                    DType::BF16 => self.tile_of_pairs::<bf16>(ctx, walk, &mut squares),
                    DType::I8 => self.tile_of_pairs::<i8>(ctx, walk, &mut squares),
                    DType::F8 => self.tile_of_pairs::<F8>(ctx, walk, &mut squares),
                    _ => floats::tile::<f16>(self, ctx, walk),
                }
            }
        });
    }

    fn sequence(&self, index: usize) -> SeqMeta {
        let words: [u32; 8] = std::array::from_fn(|i| self.seqs.u32_at(index * 8 + i));
        let seq: SeqMeta = bytemuck::cast(words);
        let end = seq.row_start as usize + seq.rows as usize;
        assert!(
            end <= self.q.rows() && seq.rows <= seq.context_len,
            "attention: sequence {index} has rows ..{end} of {} and {} tokens of context",
            self.q.rows(),
            seq.context_len
        );
        seq
    }

    /// A tile whose keys and values are multiplied by pairs.
    fn tile_of_pairs<C: PairedCell>(&self, ctx: &Context, walk: Walk<'_>, squares: &mut Option<Squares>) {
        if walk.task.count * self.group_heads > few::ROWS {
            *squares = None;
            return pairs::tile::<C>(self, ctx, walk);
        }
        if squares.is_none() {
            // SAFETY: only tiles of few rows use the matrix unit before it is dropped.
            *squares = unsafe { Squares::new(ctx.kernels) };
        }
        few::tile::<C>(self, ctx, walk, squares.as_ref());
    }

    /// Calls `work` with every chunk that the task sees: where it begins, where it is, and what comes after
    /// it, in the end the first chunk of `next`, for `work` to ask for.
    fn walk<C: Copy>(
        &self,
        ctx: &Context,
        Walk { task, next, asked }: Walk<'_>,
        mut work: impl FnMut(usize, &Cached<C>, &Cached<C>),
    ) {
        let chunk = |task: &Task, start: usize| self.cached(task, start, needed(self, task, start));
        let first = |task: &Task| visible(self, task, 0).start / CHUNK * CHUNK;
        let end = visible(self, task, task.count * self.group_heads - 1).end;
        let mut start = first(task);
        let mut cached = chunk(task, start);
        if !asked {
            self.ask(ctx, &cached);
        }
        while start < end {
            let later = match next {
                Some(next) if start + CHUNK >= end => chunk(next, first(next)),
                _ => chunk(task, start + CHUNK),
            };
            work(start, &cached, &later);
            (start, cached) = (start + CHUNK, later);
        }
    }

    /// The query head that row `r` of a tile stands for.
    fn query_head(&self, task: &Task, r: usize) -> usize {
        task.group * self.group_heads + r % self.group_heads
    }

    /// Its place in q.
    fn query(&self, task: &Task, r: usize) -> *const f32 {
        self.head(&self.q, self.size, task, r)
    }

    /// Its place in out.
    fn result(&self, task: &Task, r: usize) -> *mut f32 {
        self.head(&self.out, self.value_size, task, r)
    }

    fn head(&self, view: &View, size: usize, task: &Task, r: usize) -> *mut f32 {
        let row = task.seq.row_start as usize + task.first + r / self.group_heads;
        // SAFETY: it is below the number of query heads.
        unsafe { view.row::<f32>(row).add(self.query_head(task, r) * size) }
    }

    /// Its sink.
    fn sink(&self, task: &Task, r: usize) -> Option<f32> {
        self.sinks.as_ref().map(|sinks| sinks.f32_at(self.query_head(task, r)))
    }
}

/// Positions row `r` of a task sees.
fn visible(op: &AttentionOp, task: &Task, r: usize) -> Range<usize> {
    let Task { seq, first, .. } = task;
    let end = (seq.context_len - seq.rows) as usize + first + r / op.group_heads + 1;
    end.saturating_sub(op.window.unwrap_or(end))..end
}

/// Keys of the chunk at `start` that row `r` sees, counted from `start`.
fn visible_in(op: &AttentionOp, task: &Task, r: usize, start: usize) -> Range<usize> {
    let Range { start: low, end } = visible(op, task, r);
    low.max(start).min(start + CHUNK) - start..end.clamp(start, start + CHUNK) - start
}

/// Keys of the chunk at `start`, counted from there, that some row of the task sees: its rows in order see
/// ranges that move to the right without a gap.
fn needed(op: &AttentionOp, task: &Task, start: usize) -> Range<usize> {
    let last = task.count * op.group_heads - 1;
    visible_in(op, task, 0, start).start..visible_in(op, task, last, start).end
}

#[cfg(test)]
mod tests;
