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
mod few;
mod pairs;
mod softmax;

use crate::CpuBackend;
use crate::matmul::{self, Block, K_BLOCK, packed_k};
use crate::panels::Squares;
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, F8, Kernel, LANES, Simd, load_partial};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::{Attention, LatentAttention};
use anyfleet_tensor::{DType, Live, Result, SeqMeta};
use half::{bf16, f16};
use pairs::PairedCell;
use softmax::{Finish, Scoring, Softmax};
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
                    DType::F32 => self.tile::<f32>(ctx, walk),
                    DType::BF16 => self.tile_of_pairs::<bf16>(ctx, walk, &mut squares),
                    DType::I8 => self.tile_of_pairs::<i8>(ctx, walk, &mut squares),
                    DType::F8 => self.tile_of_pairs::<F8>(ctx, walk, &mut squares),
                    _ => self.tile::<f16>(ctx, walk),
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

    fn tile<C: Cell>(&self, ctx: &Context, walk: Walk<'_>) {
        let task = walk.task;
        let rows = task.count * self.group_heads;
        let (q_stride, width) = (packed_k(self.size), self.value_size.next_multiple_of(LANES));
        let sizes = [rows * q_stride, rows * K_BLOCK, rows * width, CHUNK * self.size, CHUNK * width, 2 * rows];
        with_scratch(sizes, |[q, scores, sums, keys, values, state]| {
            sums.fill(0.0);
            let (max, total) = state.split_at_mut(rows);
            max.fill(f32::NEG_INFINITY);
            total.fill(0.0);
            let row_q = |r| self.query(task, r);
            // SAFETY: a head of q has `size` elements.
            unsafe { matmul::pack_rows(ctx.kernels, rows, self.size, row_q, q) };
            let mut tile = Tile { op: self, ctx, task, q, scores, sums, keys, values, max, total };
            self.walk::<C>(ctx, walk, |start, cached, later| {
                self.ask(ctx, later);
                tile.chunk(start, cached);
            });
            for r in 0..tile.max.len() {
                let out = self.result(task, r);
                let sums = tile.sums[r * width..].as_ptr();
                // SAFETY (of the kernel's promise): a result has `value_size` elements on both sides.
                let (max, total, sink) = (tile.max[r], tile.total[r], self.sink(task, r));
                ctx.kernels.run(Finish { out, sums, max, total, sink, len: self.value_size });
            }
        });
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

    /// Asks for the cache lines of a chunk.
    fn ask<C: Copy>(&self, ctx: &Context, rows: &Cached<C>) {
        ctx.kernels.run(Prefetch { rows });
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

    /// Where the caches keep the `needed` tokens of the chunk at `start`.
    fn cached<C: Copy>(&self, task: &Task, start: usize, needed: Range<usize>) -> Cached<C> {
        let scales = self.scales.as_ref().map(|scales| scales.each_ref().map(|view| view.row::<f32>(0).cast_const()));
        let mut cached = Cached {
            cells: [&self.k_cache, &self.v_cache].map(|view| view.row::<C>(0).cast_const()),
            scales: scales.unwrap_or([std::ptr::null(); 2]),
            size: self.size,
            tokens: [NOT_NEEDED; CHUNK],
            needed: needed.clone(),
        };
        let mut i = needed.start;
        while i < needed.end {
            let (page, offset) = self.locate(task, start + i);
            let run = (self.page_size - offset).min(needed.end - i);
            // Head, and offset + j, are below the page's dimensions.
            let head = task.group * self.kv_heads / self.groups;
            let first = (page * self.kv_heads + head) * self.page_size + offset;
            cached.tokens[i..i + run].iter_mut().enumerate().for_each(|(j, token)| *token = first + j);
            i += run;
        }
        cached
    }

    /// The page that holds the token at `position`, and the token's offset in it.
    fn locate(&self, task: &Task, position: usize) -> (usize, usize) {
        let (index, offset) = (position / self.page_size, position % self.page_size);
        let first = task.seq.first_page as usize;
        assert!(index >= first, "attention: position {position} lies before the sequence's first page {first}");
        let page = self.table.u32_at(task.seq.table_start as usize + index - first) as usize;
        let pages = self.k_cache.rows();
        assert!(page < pages, "attention: page {page} of {pages}");
        (page, offset)
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

/// A task's scratch and running state. Row `r` is head `r % group_heads` of query `r / group_heads`.
struct Tile<'a> {
    op: &'a AttentionOp,
    ctx: &'a Context,
    task: &'a Task,
    /// Packed queries.
    q: &'a mut [f32],
    /// `[rows][K_BLOCK]`, of which the first `CHUNK` are used.
    scores: &'a mut [f32],
    /// `[rows][width]`: o above; `width` is a value's size rounded up to whole vectors.
    sums: &'a mut [f32],
    /// `[CHUNK / 16][size][16]`.
    keys: &'a mut [f32],
    /// `[width / 16][CHUNK][16]`.
    values: &'a mut [f32],
    max: &'a mut [f32],
    total: &'a mut [f32],
}

impl Tile<'_> {
    fn visible_in(&self, r: usize, start: usize) -> Range<usize> {
        visible_in(self.op, self.task, r, start)
    }

    fn chunk<C: Cell>(&mut self, start: usize, cached: &Cached<C>) {
        let (rows, needed) = (self.max.len(), needed(self.op, self.task, start));
        let (keys, values) = (self.keys.as_mut_ptr(), self.values.as_mut_ptr());
        let (size, value_size) = (self.op.size, self.op.value_size);
        self.ctx.kernels.run(Load { rows: cached, needed: needed.clone(), size, value_size, keys, values });
        for (first, count) in matmul::blocks(self.ctx.kernels, rows) {
            let block = first..first + count;
            if block.clone().all(|r| self.visible_in(r, start).is_empty()) {
                continue;
            }
            self.score(first, count, needed.clone());
            for r in block.clone() {
                self.softmax(r, self.visible_in(r, start));
            }
            let common = self.visible_in(first, start);
            if block.clone().all(|r| self.visible_in(r, start) == common) {
                self.accumulate(first, count, common);
            } else {
                for r in block {
                    self.accumulate(r, 1, self.visible_in(r, start));
                }
            }
        }
    }

    /// Scores of a block of rows against the panels of sixteen keys that hold `needed`.
    fn score(&mut self, first: usize, rows: usize, needed: Range<usize>) {
        let size = self.op.size;
        let panels = needed.start / LANES..needed.end.div_ceil(LANES);
        let block = Block {
            x: self.q[first * packed_k(size)..].as_ptr(),
            rows,
            w: self.keys[panels.start * size * LANES..].as_ptr(),
            panel_stride: size * LANES,
            panels: panels.len(),
            k: size,
            acc: self.scores[first * K_BLOCK + panels.start * LANES..].as_mut_ptr(),
            acc_stride: K_BLOCK,
            resume: false,
        };
        // SAFETY: queries, keys and scores have these shapes.
        unsafe { matmul::multiply(self.ctx.kernels, &block) };
    }

    /// Turns a row's scores into weights and scales what it has summed so far.
    fn softmax(&mut self, r: usize, seen: Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let width = self.op.value_size.next_multiple_of(LANES);
        let scores = &mut self.scores[r * K_BLOCK..][..CHUNK];
        self.ctx.kernels.run(Softmax {
            scores,
            seen,
            sums: &mut self.sums[r * width..][..width],
            scoring: self.op.scoring,
            max: &mut self.max[r],
            total: &mut self.total[r],
        });
    }

    /// Adds the weighted values of the keys `seen` to a block of rows.
    fn accumulate(&mut self, first: usize, rows: usize, seen: Range<usize>) {
        if seen.is_empty() {
            return;
        }
        let width = self.op.value_size.next_multiple_of(LANES);
        let block = Block {
            x: self.scores[first * K_BLOCK + seen.start..].as_ptr(),
            rows,
            w: self.values[seen.start * LANES..].as_ptr(),
            panel_stride: CHUNK * LANES,
            panels: width / LANES,
            k: seen.len(),
            acc: self.sums[first * width..].as_mut_ptr(),
            acc_stride: width,
            resume: true,
        };
        // SAFETY: weights, values and sums have these shapes.
        unsafe { matmul::multiply(self.ctx.kernels, &block) };
    }
}

/// Where the caches keep the tokens of a chunk.
struct Cached<C> {
    /// Keys and values.
    cells: [*const C; 2],
    /// Of bytes; null for other cells.
    scales: [*const f32; 2],
    size: usize,
    /// Their place in both caches, in heads; or [`NOT_NEEDED`].
    tokens: [usize; CHUNK],
    needed: Range<usize>,
}

const NOT_NEEDED: usize = usize::MAX;

impl<C> Cached<C> {
    #[inline(always)]
    fn key(&self, i: usize) -> CachedRow<C> {
        self.row(i, 0)
    }

    #[inline(always)]
    fn value(&self, i: usize) -> CachedRow<C> {
        self.row(i, 1)
    }

    #[inline(always)]
    fn row(&self, i: usize, cache: usize) -> CachedRow<C> {
        match self.tokens[i] {
            NOT_NEEDED => CachedRow { cells: std::ptr::null(), scale: std::ptr::null() },
            token => CachedRow {
                cells: self.cells[cache].wrapping_add(token * self.size),
                scale: self.scales[cache].wrapping_add(token),
            },
        }
    }

    /// Asks for part `part` of `parts` of sixteen tokens' keys (0) or values (1).
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, tile: usize, cache: usize, part: usize, parts: usize) {
        let tokens = &self.tokens[tile * LANES..][..LANES];
        let (bytes, first) = (self.size * size_of::<C>(), self.row(tile * LANES, cache));
        if first.is_needed() && tokens[LANES - 1] == tokens[0] + LANES - 1 {
            // One after the other in a page.
            let (start, end) = (LANES * bytes * part / parts, LANES * bytes * (part + 1) / parts);
            let cells = first.cells.cast::<u8>();
            (start / 64 * 64..end).step_by(64).for_each(|at| s.prefetch(cells.wrapping_add(at)));
        } else {
            for i in tile * LANES..(tile + 1) * LANES {
                let row = self.row(i, cache);
                if row.is_needed() {
                    let (start, end) = (bytes * part / parts, bytes * (part + 1) / parts);
                    let cells = row.cells.cast::<u8>();
                    (start..end).step_by(64).for_each(|at| s.prefetch(cells.wrapping_add(at)));
                }
            }
        }
        if !self.scales[cache].is_null() && part == 0 && first.is_needed() {
            s.prefetch(first.scale.cast());
        }
    }
}

/// Where the cache keeps one head of one token.
#[derive(Clone, Copy)]
struct CachedRow<C> {
    /// Null where it is not needed.
    cells: *const C,
    /// Of bytes; without meaning for other cells.
    scale: *const f32,
}

impl<C> CachedRow<C> {
    #[inline(always)]
    fn is_needed(&self) -> bool {
        !self.cells.is_null()
    }
}

/// Asks for a chunk's cache lines.
struct Prefetch<'a, C> {
    rows: &'a Cached<C>,
}

impl<C> Kernel for Prefetch<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for tile in 0..CHUNK / LANES {
            self.rows.ask(s, tile, 0, 0, 1);
            self.rows.ask(s, tile, 1, 0, 1);
        }
    }
}

/// Brings a chunk into the order the products read. Lanes of keys outside `needed` are left with
/// whatever they hold: their scores are masked, and their values are not visited.
struct Load<'a, C> {
    rows: &'a Cached<C>,
    needed: Range<usize>,
    size: usize,
    value_size: usize,
    keys: *mut f32,
    values: *mut f32,
}

impl<C: Cell> Kernel for Load<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Range { start, end } = self.needed;
        let whole = self.size / LANES * LANES;
        for panel in start / LANES..end.div_ceil(LANES) {
            let mut keys = [self.rows.key(start).cells; LANES];
            for (lane, key) in keys.iter_mut().enumerate() {
                *key = self.rows.key((panel * LANES + lane).clamp(start, end - 1)).cells;
            }
            // SAFETY: keys have `size` elements, and the panel has a vector for each.
            unsafe {
                let target = self.keys.add(panel * self.size * LANES);
                for i in (0..whole).step_by(LANES) {
                    let mut square = [s.splat(0.0); LANES];
                    for (lane, vector) in square.iter_mut().enumerate() {
                        *vector = C::load(s, keys[lane].add(i));
                    }
                    s.transpose(&mut square);
                    for (column, vector) in square.iter().enumerate() {
                        s.store(target.add((i + column) * LANES), *vector);
                    }
                }
                for i in whole..self.size {
                    for (lane, key) in keys.iter().enumerate() {
                        *target.add(i * LANES + lane) = (*key.add(i)).widen();
                    }
                }
            }
        }
        let whole = self.value_size / LANES * LANES;
        for position in start..end {
            let value = self.rows.value(position).cells;
            // SAFETY: values have `value_size` elements; the padding of the last panel becomes zero.
            unsafe {
                let target = self.values.add(position * LANES);
                for i in (0..whole).step_by(LANES) {
                    s.store(target.add(i * CHUNK), C::load(s, value.add(i)));
                }
                if whole < self.value_size {
                    s.store(target.add(whole * CHUNK), load_partial(s, value.add(whole), self.value_size - whole));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
