//! Attention over keys and values of f32 and f16: both products are chains of fused multiply-adds.
use super::cached::Cached;
use super::softmax::{Finish, Softmax};
use super::{AttentionOp, CHUNK, Task, Walk, needed, visible_in};
use crate::matmul::{self, Block, K_BLOCK, packed_k};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, Kernel, LANES, Simd, load_partial};
use std::ops::Range;

pub(super) fn tile<C: Cell>(op: &AttentionOp, ctx: &Context, walk: Walk<'_>) {
    let task = walk.task;
    let rows = task.count * op.group_heads;
    let (q_stride, width) = (packed_k(op.size), op.value_size.next_multiple_of(LANES));
    let sizes = [rows * q_stride, rows * K_BLOCK, rows * width, CHUNK * op.size, CHUNK * width, 2 * rows];
    with_scratch(sizes, |[q, scores, sums, keys, values, state]| {
        sums.fill(0.0);
        let (max, total) = state.split_at_mut(rows);
        max.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        let row_q = |r| op.query(task, r);
        // SAFETY: a head of q has `size` elements.
        unsafe { matmul::pack_rows(ctx.kernels, rows, op.size, row_q, q) };
        let mut tile = Tile { op, ctx, task, q, scores, sums, keys, values, max, total };
        op.walk::<C>(ctx, walk, |start, cached, later| {
            op.ask(ctx, later);
            tile.chunk(start, cached);
        });
        for r in 0..tile.max.len() {
            let out = op.result(task, r);
            let sums = tile.sums[r * width..].as_ptr();
            // SAFETY (of the kernel's promise): a result has `value_size` elements on both sides.
            let (max, total, sink) = (tile.max[r], tile.total[r], op.sink(task, r));
            ctx.kernels.run(Finish { out, sums, max, total, sink, len: op.value_size });
        }
    });
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
