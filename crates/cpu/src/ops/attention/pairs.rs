//! Attention over keys and values of bf16, of eight bits, or bytes with scales: both products by pairs, on the matrix unit where there is one.
//!
//! Queries and softmax weights are rounded to bf16. Of a chunk of 64 keys, keys become two panels of 32
//! output features, values a panel for each 32 elements of the head, both in the order of
//! [`panels`](crate::panels). A row's steps are those of the module above, with sums by pairs of elements
//! (scores) and by pairs of keys (values); the sum of the weights takes them as rounded.
use super::{AttentionOp, CHUNK, Cached, CachedRow, Finish, Scoring, Task, Walk, visible_in};
use crate::panels::pack::{Cells, PackPairs, store_pairs};
use crate::panels::{self, Form, Meanwhile, PANEL, Product};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{F8, Kernel, KernelSet, LANES, Simd, math};
use half::bf16;
use std::ops::Range;

const FORM: Form = Form::Pairs;
/// f32 of scratch a panel's block takes.
const BLOCK: usize = FORM.block_bytes() / 4;
/// Blocks of 32 keys in a chunk.
pub(super) const KEY_BLOCKS: usize = CHUNK / PANEL;

/// Rows in the order products read: groups of them, a block of 32 columns at a time, each as [`Cells`] says.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    base: *mut u8,
    /// Rows of a group, how they are packed, blocks.
    group: usize,
    cells: Cells,
    blocks: usize,
}

impl Rows {
    fn new(kernels: KernelSet, blocks: usize) -> Rows {
        let cells = Cells::of(kernels);
        Rows { base: std::ptr::null_mut(), group: panels::group_rows(kernels), cells, blocks }
    }
    /// Rows of f32, one after the other.
    pub(super) fn plain(base: *mut f32) -> Rows {
        Rows { base: base.cast(), group: 1, cells: Cells::F32, blocks: KEY_BLOCKS }
    }
    fn block_bytes(&self) -> usize {
        self.group * self.cells.row_bytes()
    }
    fn group_bytes(&self) -> usize {
        self.blocks * self.block_bytes()
    }
    /// f32 of scratch `rows` rows take.
    fn len(&self, rows: usize) -> usize {
        rows.div_ceil(self.group) * self.group_bytes() / 4
    }
    /// The place of a row in block `block`.
    fn at(&self, row: usize, block: usize) -> *mut u8 {
        let first = row / self.group * self.group_bytes() + block * self.block_bytes();
        self.base.wrapping_add(first + row % self.group * self.cells.row_bytes())
    }
}

/// Computes a tile; its last chunk is worked on while the first one of `next` comes from memory.
pub(super) fn tile<C: PairedCell>(op: &AttentionOp, ctx: &Context, walk: Walk<'_>) {
    let task = walk.task;
    let rows = task.count * op.group_heads;
    let (blocks, width) = (FORM.blocks(op.size), op.value_size.next_multiple_of(PANEL));
    let (q, weights) = (Rows::new(ctx.kernels, blocks), Rows::new(ctx.kernels, KEY_BLOCKS));
    let whole = rows.next_multiple_of(LANES);
    let sizes = [
        q.len(rows),
        weights.len(rows),
        whole * CHUNK,
        whole * width,
        CHUNK / PANEL * blocks * BLOCK,
        width / PANEL * KEY_BLOCKS * BLOCK,
        2 * rows,
    ];
    with_scratch(sizes, |[q_area, weights_area, scores, sums, keys, values, state]| {
        let (max, total) = state.split_at_mut(rows);
        sums.fill(0.0);
        max.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        let q = Rows { base: q_area.as_mut_ptr().cast(), ..q };
        let weights = Rows { base: weights_area.as_mut_ptr().cast(), ..weights };
        for r in 0..rows {
            let source = op.query(task, r);
            let (target, step, cells) = (q.at(r, 0), q.block_bytes(), q.cells);
            ctx.kernels.run(PackPairs { source, k: op.size, target, step, cells });
        }
        let mut tile = Tile { op, ctx, task, rows, q, weights, scores, sums, keys, values, max, total };
        op.walk::<C>(ctx, walk, |start, cached, later| {
            op.ask(ctx, later);
            tile.chunk(start, cached);
        });
        // SAFETY (of the kernel's promise): a result has `value_size` elements on both sides.
        ctx.kernels.run(FinishRows { op, task, sums: tile.sums, width, max: tile.max, total: tile.total });
    });
}

/// A task's scratch and running state; rows as in the module above.
struct Tile<'a> {
    op: &'a AttentionOp,
    ctx: &'a Context,
    task: &'a Task,
    rows: usize,
    q: Rows,
    weights: Rows,
    /// `[rows][CHUNK]`.
    scores: &'a mut [f32],
    /// `[rows][width]`: o of the module above.
    sums: &'a mut [f32],
    /// Two panels of 32 keys.
    keys: &'a mut [f32],
    /// A panel for each 32 elements of the head.
    values: &'a mut [f32],
    max: &'a mut [f32],
    total: &'a mut [f32],
}

impl Tile<'_> {
    fn chunk<C: PairedCell>(&mut self, start: usize, cached: &Cached<C>) {
        let (size, value_size, blocks) = (self.op.size, self.op.value_size, self.q.blocks);
        let width = value_size.next_multiple_of(PANEL);
        self.ctx.kernels.run(LoadKeys { rows: cached, size, target: self.keys.as_mut_ptr() });
        let (q, keys, scores) = (self.q, self.keys.as_ptr(), self.scores.as_mut_ptr());
        let scored = (0..CHUNK / PANEL).map(|panel| Product {
            w: keys.wrapping_add(panel * blocks * BLOCK).cast(),
            acc: scores.wrapping_add(panel * PANEL),
            acc_stride: CHUNK,
            ..self.product(q, false)
        });
        // SAFETY: queries, keys and scores have these shapes.
        unsafe { panels::multiply(self.ctx.kernels, scored) };
        let state = (&mut *self.scores, &mut *self.sums, &mut *self.max, &mut *self.total);
        self.ctx.kernels.run(WeighRows { op: self.op, task: self.task, start, weights: self.weights, state });
        self.ctx.kernels.run(LoadValues { rows: cached, size: value_size, target: self.values.as_mut_ptr() });
        let (weights, values, sums) = (self.weights, self.values.as_ptr(), self.sums.as_mut_ptr());
        let added = (0..width / PANEL).map(|panel| Product {
            w: values.wrapping_add(panel * KEY_BLOCKS * BLOCK).cast(),
            acc: sums.wrapping_add(panel * PANEL),
            acc_stride: width,
            ..self.product(weights, true)
        });
        // SAFETY: weights, values and sums have these shapes.
        unsafe { panels::multiply(self.ctx.kernels, added) };
    }

    fn product(&self, x: Rows, resume: bool) -> Product {
        Product {
            form: FORM,
            x: x.base,
            group_bytes: x.group_bytes(),
            rows: self.rows,
            sums: std::ptr::null(),
            sums_stride: 0,
            w: std::ptr::null(),
            regrouped: false,
            meanwhile: Meanwhile::Nothing,
            blocks: x.blocks,
            acc: std::ptr::null_mut(),
            acc_stride: 0,
            resume,
        }
    }
}

/// [`Weigh`] for every row of a tile.
struct WeighRows<'a> {
    op: &'a AttentionOp,
    task: &'a Task,
    /// Where the chunk begins.
    start: usize,
    weights: Rows,
    /// Scores, sums, maxima and totals, as in [`Tile`].
    state: (&'a mut [f32], &'a mut [f32], &'a mut [f32], &'a mut [f32]),
}

impl Kernel for WeighRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (scores, sums, max, total) = self.state;
        let width = self.op.value_size.next_multiple_of(PANEL);
        let states = scores.chunks_exact_mut(CHUNK).zip(sums.chunks_exact_mut(width)).zip(max).zip(total);
        for (row, (((scores, sums), max), total)) in states.enumerate() {
            let seen = visible_in(self.op, self.task, row, self.start);
            let (weights, scoring) = (self.weights, self.op.scoring);
            Weigh { scores, seen, weights, row, sums, scoring, max, total }.run(s);
        }
    }
}

/// [`Finish`] for every row of a tile.
struct FinishRows<'a> {
    op: &'a AttentionOp,
    task: &'a Task,
    /// `[rows][width]`.
    sums: &'a [f32],
    width: usize,
    /// `[rows]` each.
    max: &'a [f32],
    total: &'a [f32],
}

impl Kernel for FinishRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (r, ((sums, &max), &total)) in self.sums.chunks_exact(self.width).zip(self.max).zip(self.total).enumerate()
        {
            let (out, sink) = (self.op.result(self.task, r), self.op.sink(self.task, r));
            Finish { out, sums: sums.as_ptr(), max, total, sink, len: self.op.value_size }.run(s);
        }
    }
}

/// What a cache keeps and attention reads as pairs of bf16.
pub(super) trait PairedCell: bytemuck::Pod + Send + Sync {
    /// 32 elements as sixteen pairs.
    ///
    /// # Safety
    /// They are readable at `p`, and so is the scale where the cells have one.
    unsafe fn load_pairs<S: Simd>(s: S, p: *const Self, scale: *const f32) -> S::V;
}

impl PairedCell for bf16 {
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(s: S, p: *const bf16, _scale: *const f32) -> S::V {
        // SAFETY: the caller's promise. Pairs of bf16 pass through f32 registers as they are.
        unsafe { s.load(p.cast()) }
    }
}

impl PairedCell for i8 {
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(s: S, p: *const i8, scale: *const f32) -> S::V {
        // SAFETY: the caller's promise. The scale is a number or `f32::NAN`.
        unsafe {
            let (first, second) = s.load_pairs_i8(p);
            let scale = s.splat(*scale);
            s.join_pairs(s.mul(first, scale), s.mul(second, scale))
        }
    }
}

impl PairedCell for F8 {
    #[inline(always)]
    unsafe fn load_pairs<S: Simd>(s: S, p: *const F8, _scale: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { s.load_f8(p) }
    }
}

/// Elements from `at` on of a row of `len`, 32 at most, as sixteen pairs; zeros past its end, and for a row
/// that nobody needs.
///
/// # Safety
/// They are readable, and the scale.
#[inline(always)]
pub(super) unsafe fn load_row<S: Simd, C: PairedCell>(s: S, row: CachedRow<C>, at: usize, len: usize) -> S::V {
    if !row.is_needed() {
        return s.splat(0.0);
    }
    let mut cells = [C::zeroed(); PANEL];
    // SAFETY: the caller's promise.
    unsafe {
        let p = row.cells.add(at);
        if len - at >= PANEL {
            return C::load_pairs(s, p, row.scale);
        }
        cells.as_mut_ptr().copy_from_nonoverlapping(p, len - at);
        C::load_pairs(s, cells.as_ptr(), row.scale)
    }
}

/// Brings the keys of a chunk into two panels; keys that nobody needs are zero.
struct LoadKeys<'a, C> {
    rows: &'a Cached<C>,
    size: usize,
    target: *mut f32,
}

impl<C: PairedCell> Kernel for LoadKeys<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = FORM.blocks(self.size);
        for tile in 0..CHUNK / LANES {
            for block in 0..blocks {
                let mut square = [s.splat(0.0); LANES];
                for (i, vector) in square.iter_mut().enumerate() {
                    // SAFETY: a key has `size` elements.
                    *vector = unsafe { load_row(s, self.rows.key(tile * LANES + i), block * PANEL, self.size) };
                }
                s.transpose(&mut square);
                let place = (tile / 2 * blocks + block) * BLOCK + tile % 2 * (BLOCK / 2);
                for (pair, vector) in square.iter().enumerate() {
                    // SAFETY: the tile has sixteen vectors.
                    unsafe { s.store(self.target.add(place + pair * LANES), *vector) };
                }
            }
        }
    }
}

/// Brings the values of a chunk into panels of 32 elements; values that nobody needs are zero.
struct LoadValues<'a, C> {
    rows: &'a Cached<C>,
    /// Of a value.
    size: usize,
    target: *mut f32,
}

impl<C: PairedCell> Kernel for LoadValues<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for pair in 0..CHUNK / 2 {
            let rows = [self.rows.value(2 * pair), self.rows.value(2 * pair + 1)];
            let (block, line) = (pair / LANES, pair % LANES);
            for panel in 0..FORM.blocks(self.size) {
                // SAFETY: a value has `size` elements; the block has a line for each pair in both tiles.
                unsafe {
                    let first = load_row(s, rows[0], panel * PANEL, self.size);
                    let second = load_row(s, rows[1], panel * PANEL, self.size);
                    let (low, high) = s.zip_bf16(first, second);
                    let place = self.target.add((panel * KEY_BLOCKS + block) * BLOCK + line * LANES);
                    s.store(place, low);
                    s.store(place.add(BLOCK / 2), high);
                }
            }
        }
    }
}

/// Steps 2 and 3 of the module above, and the scaling of step 4.
pub(super) struct Weigh<'a> {
    /// `CHUNK` scores.
    pub(super) scores: &'a mut [f32],
    /// Those that are not masked.
    pub(super) seen: Range<usize>,
    /// Where the weights go.
    pub(super) weights: Rows,
    pub(super) row: usize,
    /// A whole number of vectors.
    pub(super) sums: &'a mut [f32],
    pub(super) scoring: Scoring,
    pub(super) max: &'a mut f32,
    pub(super) total: &'a mut f32,
}

impl Weigh<'_> {
    /// Stores sixteen weights from key `key` of the chunk on.
    ///
    /// # Safety
    /// The row has a column for each key of the chunk, and this task alone writes it.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, key: usize, v: S::V) {
        let place = self.weights.at(self.row, key / PANEL);
        // SAFETY: the caller's promise.
        unsafe { store_pairs(s, place, key % PANEL, self.weights.cells, v) };
    }
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.seen.is_empty() {
            // SAFETY: the row has a column for each key of the chunk.
            (0..CHUNK).step_by(LANES).for_each(|i| unsafe { self.store(s, i, s.splat(0.0)) });
            return;
        }
        // Vectors with keys that are seen; what is masked in them gets no weight.
        let vectors = self.seen.start / LANES..self.seen.end.div_ceil(LANES);
        let scale = s.splat(self.scoring.cap_products(s, &mut self.scores[vectors.start * LANES..vectors.end * LANES]));
        self.scores[vectors.start * LANES..self.seen.start].fill(f32::NEG_INFINITY);
        self.scores[self.seen.end..vectors.end * LANES].fill(f32::NEG_INFINITY);
        let scores = self.scores.as_mut_ptr();
        let mut max = s.splat(*self.max);
        for i in vectors.clone() {
            // SAFETY: `CHUNK` scores.
            unsafe {
                let score = s.mul(s.load(scores.add(i * LANES)), scale);
                s.store(scores.add(i * LANES), score);
                max = s.max(score, max);
            }
        }
        let max = s.reduce_max(max);
        let mut total = s.splat(0.0);
        for i in 0..CHUNK / LANES {
            let mut weight = s.splat(0.0);
            if vectors.contains(&i) {
                // SAFETY: as above.
                let score = unsafe { s.load(scores.add(i * LANES)) };
                weight = s.round_bf16(math::exp(s, s.sub(score, s.splat(max))));
                total = s.add(total, weight);
            }
            // SAFETY: as above.
            unsafe { self.store(s, i * LANES, weight) };
        }
        if max > *self.max {
            let shrink = math::exp(s, s.sub(s.splat(*self.max), s.splat(max)));
            for i in (0..self.sums.len()).step_by(LANES) {
                let sum = self.sums[i..].as_mut_ptr();
                // SAFETY: whole vectors.
                unsafe { s.store(sum, s.mul(s.load(sum), shrink)) };
            }
            *self.total *= s.reduce_max(shrink);
            *self.max = max;
        }
        *self.total += s.reduce_add(total);
    }
}
