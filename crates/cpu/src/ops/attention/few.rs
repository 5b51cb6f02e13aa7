//! Attention of a few rows over keys and values of bf16 or bytes, as a step of decoding has them: a chunk's
//! keys and values go from the cache into registers, are used for all rows and forgotten.
//!
//! The sums are those of [`pairs`](super::pairs), in the same order.
use super::pairs::{PairedCell, Rows, Weigh, load_row};
use super::{AttentionOp, CHUNK, Cached, Finish, Task, visible_in};
use crate::panels::{Form, PANEL};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, LANES, Simd, load_up_to};
use std::ops::Range;

/// Most rows.
pub(super) const ROWS: usize = 4;

pub(super) fn tile<C: PairedCell>(op: &AttentionOp, ctx: &Context, task: &Task, next: Option<&Task>) {
    let rows = task.count * op.group_heads;
    let width = op.size.next_multiple_of(PANEL);
    with_scratch([rows * width, rows * CHUNK, rows * CHUNK, rows * width], |[q, scores, weights, sums]| {
        sums.fill(0.0);
        let (mut max, mut total) = ([f32::NEG_INFINITY; ROWS], [0.0; ROWS]);
        for (r, q) in q.chunks_exact_mut(width).enumerate() {
            ctx.kernels.run(Round { x: op.head::<f32>(&op.q, task, r), len: op.size, out: q });
        }
        op.walk::<C>(ctx, task, next, |start, cached, later| {
            let seen = std::array::from_fn(|r| visible_in(op, task, r.min(rows - 1), start));
            let chunk = Chunk {
                cached,
                later,
                size: op.size,
                scale: op.scale,
                seen: &seen,
                q,
                scores,
                weights,
                sums,
                max: &mut max,
                total: &mut total,
            };
            match rows {
                1 => ctx.kernels.run(Counted::<C, 1>(chunk)),
                2 => ctx.kernels.run(Counted::<C, 2>(chunk)),
                3 => ctx.kernels.run(Counted::<C, 3>(chunk)),
                _ => ctx.kernels.run(Counted::<C, ROWS>(chunk)),
            }
        });
        for (r, sums) in sums.chunks_exact(width).enumerate() {
            let out = op.head::<f32>(&op.out, task, r);
            // SAFETY (of the kernel's promise): a head has `size` elements on both sides.
            ctx.kernels.run(Finish { out, sums: sums.as_ptr(), total: total[r], len: op.size });
        }
    });
}

/// Rounds `len` elements to bf16, kept as f32, and fills up with zeros. Whoever makes the value promises
/// `len` elements.
struct Round<'a> {
    x: *const f32,
    len: usize,
    /// Whole vectors.
    out: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.chunks_exact_mut(LANES).enumerate() {
            // SAFETY: see the type; `out` has a vector.
            unsafe {
                let v = load_up_to(s, self.x.wrapping_add(i * LANES), self.len.saturating_sub(i * LANES));
                s.store(out.as_mut_ptr(), s.round_bf16(v));
            }
        }
    }
}

/// A chunk of keys and values, and the state of the rows; `width` is the head size rounded up to panels.
struct Chunk<'a, C> {
    cached: &'a Cached<C>,
    /// What is asked for meanwhile, line by line.
    later: &'a Cached<C>,
    size: usize,
    scale: f32,
    /// Keys each row sees.
    seen: &'a [Range<usize>; ROWS],
    /// `[rows][width]`.
    q: &'a [f32],
    /// `[rows][CHUNK]`.
    scores: &'a mut [f32],
    weights: &'a mut [f32],
    /// `[rows][width]`.
    sums: &'a mut [f32],
    max: &'a mut [f32; ROWS],
    total: &'a mut [f32; ROWS],
}

struct Counted<'a, C, const R: usize>(Chunk<'a, C>);

impl<C: PairedCell, const R: usize> Kernel for Counted<'_, C, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Counted(mut chunk) = self;
        let width = chunk.size.next_multiple_of(PANEL);
        assert!(chunk.q.len() == R * width && chunk.sums.len() == R * width && chunk.scores.len() == R * CHUNK);
        assert!(chunk.weights.len() == R * CHUNK);
        for tile in 0..CHUNK / LANES {
            chunk.score::<S, R>(s, tile);
        }
        let weights = Rows::plain(chunk.weights.as_mut_ptr());
        for r in 0..R {
            Weigh {
                scores: &mut chunk.scores[r * CHUNK..][..CHUNK],
                seen: chunk.seen[r].clone(),
                weights,
                row: r,
                sums: &mut chunk.sums[r * width..][..width],
                scale: chunk.scale,
                max: &mut chunk.max[r],
                total: &mut chunk.total[r],
            }
            .run(s);
        }
        for panel in 0..width / PANEL {
            chunk.accumulate::<S, R>(s, panel);
        }
    }
}

impl<C: PairedCell> Chunk<'_, C> {
    /// Scores of sixteen keys.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, s: S, tile: usize) {
        let width = self.size.next_multiple_of(PANEL);
        let (keys, later) = (&self.cached[tile * LANES..][..LANES], &self.later[tile * LANES..][..LANES]);
        let mut scores = [s.splat(0.0); R];
        // Scores of keys that nobody needs are masked.
        if keys.iter().any(|key| key.0.is_needed()) {
            for block in 0..Form::Pairs.blocks(self.size) {
                let mut square = [s.splat(0.0); LANES];
                for (vector, key) in square.iter_mut().zip(keys) {
                    // SAFETY: a key has `size` elements.
                    *vector = unsafe { load_row(s, key.0, block * PANEL, self.size) };
                }
                s.transpose(&mut square);
                let (mut even, mut odd) = ([s.splat(0.0); R], [s.splat(0.0); R]);
                let at = block * PANEL * size_of::<C>();
                for (pair, keys) in square.iter().enumerate() {
                    let (key, value) = &later[pair];
                    if key.is_needed() && at.is_multiple_of(64) {
                        key.ask(s, at);
                        value.ask(s, at);
                    }
                    let (k0, k1) = s.split_pairs(*keys);
                    for r in 0..R {
                        // SAFETY: the row has `width` elements.
                        let (q0, q1) = unsafe {
                            let q = self.q.as_ptr().add(r * width + block * PANEL + 2 * pair);
                            (*q, *q.add(1))
                        };
                        even[r] = s.fma(s.splat(q0), k0, even[r]);
                        odd[r] = s.fma(s.splat(q1), k1, odd[r]);
                    }
                }
                for r in 0..R {
                    scores[r] = s.add(scores[r], s.add(even[r], odd[r]));
                }
            }
        }
        for (r, v) in scores.into_iter().enumerate() {
            // SAFETY: a row has `CHUNK` scores.
            unsafe { s.store(self.scores.as_mut_ptr().add(r * CHUNK + tile * LANES), v) };
        }
    }

    /// Adds the weighted values' elements of panel `panel`.
    #[inline(always)]
    fn accumulate<S: Simd, const R: usize>(&mut self, s: S, panel: usize) {
        let width = self.size.next_multiple_of(PANEL);
        for (block, rows) in self.cached.chunks_exact(PANEL).enumerate() {
            let (mut even, mut odd) = ([[s.splat(0.0); 2]; R], [[s.splat(0.0); 2]; R]);
            for (pair, rows) in rows.chunks_exact(2).enumerate() {
                // What nobody needs has no weight.
                if !rows[0].1.is_needed() && !rows[1].1.is_needed() {
                    continue;
                }
                // SAFETY: a value has `size` elements.
                let (low, high) = unsafe {
                    let first = load_row(s, rows[0].1, panel * PANEL, self.size);
                    s.zip_bf16(first, load_row(s, rows[1].1, panel * PANEL, self.size))
                };
                let (low, high) = (s.split_pairs(low), s.split_pairs(high));
                for r in 0..R {
                    // SAFETY: the row has a weight for each key.
                    let (w0, w1) = unsafe {
                        let w = self.weights.as_ptr().add(r * CHUNK + block * PANEL + 2 * pair);
                        (s.splat(*w), s.splat(*w.add(1)))
                    };
                    for (tile, values) in [low, high].into_iter().enumerate() {
                        even[r][tile] = s.fma(w0, values.0, even[r][tile]);
                        odd[r][tile] = s.fma(w1, values.1, odd[r][tile]);
                    }
                }
            }
            for r in 0..R {
                for tile in 0..2 {
                    let sum = self.sums[r * width + panel * PANEL + tile * LANES..].as_mut_ptr();
                    // SAFETY: the row has whole panels.
                    unsafe { s.store(sum, s.add(s.load(sum), s.add(even[r][tile], odd[r][tile]))) };
                }
            }
        }
    }
}
