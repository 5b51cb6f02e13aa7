//! Attention of a few rows over keys and values of bf16, of eight bits, or bytes with scales, as a step of decoding has them: a chunk's
//! keys and values go from the cache into registers, are used for all rows and forgotten.
//!
//! The sums are those of [`pairs`](super::pairs), in the same order.
#![expect(clippy::needless_range_loop, reason = "rows, blocks and pairs count places of several arrays")]
use super::pairs::{KEY_BLOCKS, PairedCell, Rows, Weigh, load_row};
use super::{AttentionOp, CHUNK, Cached, CachedRow, Finish, Scoring, Walk, visible_in};
use crate::panels::{Form, PANEL, ROW, Squares};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, LANES, Simd, load_up_to};
use half::bf16;
use std::ops::Range;

/// Most rows.
pub(super) const ROWS: usize = 4;

pub(super) fn tile<C: PairedCell>(op: &AttentionOp, ctx: &Context, walk: Walk<'_>, squares: Option<&Squares>) {
    let task = walk.task;
    let rows = task.count * op.group_heads;
    let (width, value_width) = (op.size.next_multiple_of(PANEL), op.value_size.next_multiple_of(PANEL));
    let turned = if squares.is_some() { Form::Pairs.blocks(op.size) * TILE } else { 0 };
    let (copy, products) = (turned * CHUNK / LANES, if turned > 0 { CHUNK / LANES * TILE } else { 0 });
    let sizes = [rows * width, rows * CHUNK, rows * CHUNK, rows * value_width, value_width, turned, copy, products];
    with_scratch(sizes, |[q, scores, weights, sums, zero, turned, copy, products]| {
        sums.fill(0.0);
        zero.fill(0.0);
        let (mut max, mut total) = ([f32::NEG_INFINITY; ROWS], [0.0; ROWS]);
        for (r, q) in q.chunks_exact_mut(width).enumerate() {
            ctx.kernels.run(Round { x: op.query(task, r), len: op.size, out: q });
        }
        // Keys of bf16 whose pages hold whole tiles stay where they are.
        let in_place = size_of::<C>() == 2 && op.page_size.is_multiple_of(LANES) && op.size.is_multiple_of(PANEL);
        let squares = squares.map(|unit| {
            ctx.kernels.run(Turn { q, width, target: turned });
            Unit { unit, queries: turned, in_place }
        });
        op.walk::<C>(ctx, walk, |start, cached, later| {
            let seen = std::array::from_fn(|r| visible_in(op, task, r.min(rows - 1), start));
            let chunk = Chunk {
                cached,
                later,
                size: op.size,
                value_size: op.value_size,
                scoring: op.scoring,
                seen: &seen,
                q,
                squares: squares.as_ref(),
                copy,
                products,
                scores,
                weights,
                sums,
                zero,
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
        for (r, sums) in sums.chunks_exact(value_width).enumerate() {
            let out = op.result(task, r);
            // SAFETY (of the kernel's promise): a result has `value_size` elements on both sides.
            let (max, total, sink) = (max[r], total[r], op.sink(task, r));
            ctx.kernels.run(Finish { out, sums: sums.as_ptr(), max, total, sink, len: op.value_size });
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

/// f32 of a tile.
const TILE: usize = LANES * LANES;

/// The matrix unit and the queries as it takes them.
struct Unit<'a> {
    unit: &'a Squares,
    /// `[blocks][pair][row]`: sixteen rows of pairs of bf16.
    queries: &'a [f32],
    /// It takes keys where they are.
    in_place: bool,
}

/// Makes queries `[rows][width]` what [`Unit`] has.
struct Turn<'a> {
    q: &'a [f32],
    width: usize,
    target: &'a mut [f32],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (block, target) in self.target.chunks_exact_mut(TILE).enumerate() {
            let mut square = [s.splat(0.0); LANES];
            for (row, q) in self.q.chunks_exact(self.width).enumerate() {
                // SAFETY: a row has `width` elements, a vector room for two of bf16.
                unsafe {
                    let place = target.as_mut_ptr().add(row * LANES).cast::<bf16>();
                    s.store_bf16(place, s.load(q.as_ptr().add(block * PANEL)));
                    s.store_bf16(place.add(LANES), s.load(q.as_ptr().add(block * PANEL + LANES)));
                    square[row] = s.load(place.cast());
                }
            }
            s.transpose(&mut square);
            for (target, vector) in target.chunks_exact_mut(LANES).zip(&square) {
                // SAFETY: a vector has room.
                unsafe { s.store(target.as_mut_ptr(), *vector) };
            }
        }
    }
}

/// A chunk of keys and values, and the state of the rows; `width` is a key's size rounded up to panels, `value_width` that of
/// a value.
struct Chunk<'a, C> {
    cached: &'a Cached<C>,
    /// Its keys are asked for while values are added; values are while keys of the same chunk are multiplied.
    later: &'a Cached<C>,
    size: usize,
    value_size: usize,
    scoring: Scoring,
    /// Keys each row sees.
    seen: &'a [Range<usize>; ROWS],
    /// `[rows][width]`.
    q: &'a [f32],
    squares: Option<&'a Unit<'a>>,
    /// Keys, and the products of queries with them: a tile for each sixteen.
    copy: &'a mut [f32],
    products: &'a mut [f32],
    /// `[rows][CHUNK]`.
    scores: &'a mut [f32],
    weights: &'a mut [f32],
    /// `[rows][value_width]`.
    sums: &'a mut [f32],
    /// `[value_width]`: a value of zeros.
    zero: &'a [f32],
    max: &'a mut [f32; ROWS],
    total: &'a mut [f32; ROWS],
}

struct Counted<'a, C, const R: usize>(Chunk<'a, C>);

impl<C: PairedCell, const R: usize> Kernel for Counted<'_, C, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Counted(mut chunk) = self;
        let width = chunk.value_size.next_multiple_of(PANEL);
        assert!(chunk.q.len() == R * chunk.size.next_multiple_of(PANEL) && chunk.sums.len() == R * width);
        assert!(chunk.scores.len() == R * CHUNK && chunk.weights.len() == R * CHUNK);
        // Scores of keys that nobody needs are masked.
        let tiles = chunk.cached.needed.start / LANES..chunk.cached.needed.end.div_ceil(LANES);
        match chunk.squares {
            Some(unit) => chunk.score_squares::<S, R>(s, unit, tiles),
            None => tiles.for_each(|tile| chunk.score::<S, R>(s, tile)),
        }
        let weights = Rows::plain(chunk.weights.as_mut_ptr());
        for r in 0..R {
            Weigh {
                scores: &mut chunk.scores[r * CHUNK..][..CHUNK],
                seen: chunk.seen[r].clone(),
                weights,
                row: r,
                sums: &mut chunk.sums[r * width..][..width],
                scoring: chunk.scoring,
                max: &mut chunk.max[r],
                total: &mut chunk.total[r],
            }
            .run(s);
        }
        for block in 0..KEY_BLOCKS {
            chunk.accumulate::<S, R>(s, block);
        }
    }
}

impl<C: PairedCell> Chunk<'_, C> {
    /// Scores of sixteen keys; their values are asked for.
    #[inline(always)]
    fn score<S: Simd, const R: usize>(&mut self, s: S, tile: usize) {
        let blocks = Form::Pairs.blocks(self.size);
        let mut keys = [self.cached.key(tile * LANES); LANES];
        for (i, key) in keys.iter_mut().enumerate() {
            *key = self.cached.key(tile * LANES + i);
        }
        let mut scores = [s.splat(0.0); R];
        // Two blocks at a time keep the adders busy.
        for block in (0..blocks / 2 * 2).step_by(2) {
            self.add_scores::<S, R, 2>(s, tile, &keys, block, &mut scores);
        }
        if blocks % 2 == 1 {
            self.add_scores::<S, R, 1>(s, tile, &keys, blocks - 1, &mut scores);
        }
        for (r, v) in scores.into_iter().enumerate() {
            // SAFETY: a row has `CHUNK` scores.
            unsafe { s.store(self.scores.as_mut_ptr().add(r * CHUNK + tile * LANES), v) };
        }
    }

    /// Scores of all keys on the matrix unit; values are asked for.
    #[inline(always)]
    fn score_squares<S: Simd, const R: usize>(&mut self, s: S, unit: &Unit<'_>, tiles: Range<usize>) {
        if tiles.is_empty() {
            return;
        }
        let blocks = Form::Pairs.blocks(self.size);
        let (mut keys, mut stride) = ([std::ptr::null(); CHUNK / LANES], 2 * self.size);
        for tile in tiles.clone() {
            if unit.in_place {
                let first = self.cached.needed.start.max(tile * LANES);
                let before = (first - tile * LANES) * self.size;
                keys[tile] = self.cached.key(first).cells.wrapping_sub(before).cast();
            } else {
                (keys[tile], stride) = (self.copy_keys(s, tile), blocks * ROW);
            }
        }
        for tile in 0..CHUNK / LANES {
            if !tiles.contains(&tile) {
                keys[tile] = keys[tiles.start];
            }
        }
        tiles.clone().for_each(|tile| self.cached.ask(s, tile, 1, 0, 2));
        let products = self.products.as_mut_ptr();
        // SAFETY: sixteen keys lie at each place, in a page or the copy; products have room.
        unsafe {
            let queries = unit.queries.as_ptr().cast();
            unit.unit.multiply(keys, stride, queries, blocks, products);
        }
        for tile in tiles {
            self.cached.ask(s, tile, 1, 1, 2);
            let mut square = [s.splat(0.0); LANES];
            for (i, vector) in square.iter_mut().enumerate() {
                // SAFETY: a tile has sixteen vectors.
                *vector = unsafe { s.load(products.add(tile * TILE + i * LANES)) };
            }
            s.transpose(&mut square);
            for (r, vector) in square.iter().enumerate().take(R) {
                // SAFETY: a row has `CHUNK` scores.
                unsafe { s.store(self.scores.as_mut_ptr().add(r * CHUNK + tile * LANES), *vector) };
            }
        }
    }

    /// Copies sixteen keys as rows of whole blocks of bf16.
    #[inline(always)]
    fn copy_keys<S: Simd>(&mut self, s: S, tile: usize) -> *const u8 {
        let blocks = Form::Pairs.blocks(self.size);
        let copy = self.copy[tile * blocks * TILE..][..blocks * TILE].as_mut_ptr();
        for i in 0..LANES {
            for block in 0..blocks {
                // SAFETY: a key has `size` elements, and room.
                unsafe {
                    let pairs = load_row(s, self.cached.key(tile * LANES + i), block * PANEL, self.size);
                    s.store(copy.add((i * blocks + block) * LANES), pairs);
                }
            }
        }
        copy.cast_const().cast()
    }

    /// Adds the products of `B` blocks to the scores of sixteen keys.
    #[inline(always)]
    fn add_scores<S: Simd, const R: usize, const B: usize>(
        &self,
        s: S,
        tile: usize,
        keys: &[CachedRow<C>; LANES],
        block: usize,
        scores: &mut [S::V; R],
    ) {
        let width = self.size.next_multiple_of(PANEL);
        let mut squares = [[s.splat(0.0); LANES]; B];
        for (b, square) in squares.iter_mut().enumerate() {
            self.cached.ask(s, tile, 1, block + b, Form::Pairs.blocks(self.size));
            for (vector, key) in square.iter_mut().zip(keys) {
                // SAFETY: a key has `size` elements.
                *vector = unsafe { load_row(s, *key, (block + b) * PANEL, self.size) };
            }
            s.transpose(square);
        }
        let (mut even, mut odd) = ([[s.splat(0.0); R]; B], [[s.splat(0.0); R]; B]);
        for pair in 0..LANES {
            for b in 0..B {
                let (k0, k1) = s.split_pairs(squares[b][pair]);
                for r in 0..R {
                    // SAFETY: the row has `width` elements.
                    let (q0, q1) = unsafe {
                        let q = self.q.as_ptr().add(r * width + (block + b) * PANEL + 2 * pair);
                        (*q, *q.add(1))
                    };
                    even[b][r] = s.fma(s.splat(q0), k0, even[b][r]);
                    odd[b][r] = s.fma(s.splat(q1), k1, odd[b][r]);
                }
            }
        }
        for b in 0..B {
            for r in 0..R {
                scores[r] = s.add(scores[r], s.add(even[b][r], odd[b][r]));
            }
        }
    }

    /// Adds the weighted values of 32 keys; the keys of as many later ones are asked for.
    #[inline(always)]
    fn accumulate<S: Simd, const R: usize>(&mut self, s: S, block: usize) {
        let panels = Form::Pairs.blocks(self.value_size);
        let needed = self.cached.needed.start.clamp(block * PANEL, (block + 1) * PANEL)
            ..self.cached.needed.end.clamp(block * PANEL, (block + 1) * PANEL);
        // Pairs that somebody needs: the others have no weight.
        let pairs = (needed.start - block * PANEL) / 2..(needed.end - block * PANEL).div_ceil(2);
        let zero = CachedRow { cells: self.zero.as_ptr().cast::<C>(), scale: self.zero.as_ptr() };
        let mut rows = [zero; PANEL];
        for i in needed {
            rows[i - block * PANEL] = self.cached.value(i);
        }
        for panel in 0..panels {
            for tile in 0..PANEL / LANES {
                self.later.ask(s, block * (PANEL / LANES) + tile, 0, panel, panels);
            }
            if !pairs.is_empty() {
                self.add_values::<S, R>(s, block, panel, &rows, pairs.clone());
            }
        }
    }

    #[inline(always)]
    fn add_values<S: Simd, const R: usize>(
        &mut self,
        s: S,
        block: usize,
        panel: usize,
        rows: &[CachedRow<C>; PANEL],
        pairs: Range<usize>,
    ) {
        let width = self.value_size.next_multiple_of(PANEL);
        // Of even and of odd keys, elements at even and at odd places.
        let (mut even, mut odd) = ([[s.splat(0.0); 2]; R], [[s.splat(0.0); 2]; R]);
        for pair in pairs {
            // SAFETY: a value has `value_size` elements.
            let (first, second) = unsafe {
                let first = load_row(s, rows[2 * pair], panel * PANEL, self.value_size);
                (s.split_pairs(first), s.split_pairs(load_row(s, rows[2 * pair + 1], panel * PANEL, self.value_size)))
            };
            for r in 0..R {
                // SAFETY: the row has a weight for each key.
                let (w0, w1) = unsafe {
                    let w = self.weights.as_ptr().add(r * CHUNK + block * PANEL + 2 * pair);
                    (s.splat(*w), s.splat(*w.add(1)))
                };
                even[r] = [s.fma(w0, first.0, even[r][0]), s.fma(w0, first.1, even[r][1])];
                odd[r] = [s.fma(w1, second.0, odd[r][0]), s.fma(w1, second.1, odd[r][1])];
            }
        }
        for r in 0..R {
            let (low, high) = s.zip(s.add(even[r][0], odd[r][0]), s.add(even[r][1], odd[r][1]));
            for (tile, v) in [low, high].into_iter().enumerate() {
                let sum = self.sums[r * width + panel * PANEL + tile * LANES..].as_mut_ptr();
                // SAFETY: the row has whole panels.
                unsafe { s.store(sum, s.add(s.load(sum), v)) };
            }
        }
    }
}
