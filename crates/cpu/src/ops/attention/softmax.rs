//! From products of queries and keys to weights, and from weighted sums to results.
use super::CHUNK;
use crate::simd::{Kernel, LANES, Simd, load_up_to, math, store_up_to};
use std::ops::Range;

/// How products of queries and keys become scores.
#[derive(Clone, Copy)]
pub(super) struct Scoring {
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
}

impl Scoring {
    /// Caps a row's products, whole vectors, where there is a cap; returns what is left to multiply them with.
    #[inline(always)]
    pub(super) fn cap_products<S: Simd>(self, s: S, products: &mut [f32]) -> f32 {
        let Some(cap) = self.cap else { return self.scale };
        let inner = s.splat(self.scale / cap);
        for vector in products.chunks_exact_mut(LANES) {
            let place = vector.as_mut_ptr();
            // SAFETY: a vector.
            unsafe { s.store(place, s.mul(math::tanh(s, s.mul(s.load(place), inner)), s.splat(cap))) };
        }
        1.0
    }
}

/// Steps 2 and 3 of the module's text, and the scaling of step 4.
pub(super) struct Softmax<'a> {
    /// `CHUNK` scores; becomes the weights.
    pub(super) scores: &'a mut [f32],
    /// Those that are not masked.
    pub(super) seen: Range<usize>,
    /// A whole number of vectors.
    pub(super) sums: &'a mut [f32],
    pub(super) scoring: Scoring,
    pub(super) max: &'a mut f32,
    pub(super) total: &'a mut f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let scale = s.splat(self.scoring.cap_products(s, self.scores));
        let scores = self.scores.as_mut_ptr();
        for i in (0..CHUNK).step_by(LANES) {
            // SAFETY: `CHUNK` scores.
            unsafe { s.store(scores.add(i), s.mul(s.load(scores.add(i)), scale)) };
        }
        self.scores[..self.seen.start].fill(f32::NEG_INFINITY);
        self.scores[self.seen.end..].fill(f32::NEG_INFINITY);
        let scores = self.scores.as_mut_ptr();
        let mut vectors = [s.splat(0.0); CHUNK / LANES];
        let mut max = s.splat(*self.max);
        for (i, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: as above.
            *vector = unsafe { s.load(scores.add(i * LANES)) };
            max = s.max(*vector, max);
        }
        let max = s.reduce_max(max);
        let mut total = s.splat(0.0);
        for (i, vector) in vectors.iter().enumerate() {
            let weight = math::exp(s, s.sub(*vector, s.splat(max)));
            total = s.add(total, weight);
            // SAFETY: `CHUNK` scores.
            unsafe { s.store(scores.add(i * LANES), weight) };
        }
        let shrink = math::exp(s, s.sub(s.splat(*self.max), s.splat(max)));
        for i in (0..self.sums.len()).step_by(LANES) {
            let sum = self.sums[i..].as_mut_ptr();
            // SAFETY: whole vectors.
            unsafe { s.store(sum, s.mul(s.load(sum), shrink)) };
        }
        *self.total = *self.total * s.reduce_max(shrink) + s.reduce_add(total);
        *self.max = max;
    }
}

/// `out = sums / total`, where the total is of all weights: a sink's too, which joins as a chunk would. Whoever makes the
/// value promises `len` elements at both pointers.
pub(super) struct Finish {
    pub(super) out: *mut f32,
    pub(super) sums: *const f32,
    pub(super) max: f32,
    pub(super) total: f32,
    pub(super) sink: Option<f32>,
    pub(super) len: usize,
}

impl Kernel for Finish {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut shrink, mut total) = (s.splat(1.0), s.splat(self.total));
        if let Some(sink) = self.sink {
            let max = s.splat(self.max.max(sink));
            shrink = math::exp(s, s.sub(s.splat(self.max), max));
            total = s.fma(total, shrink, math::exp(s, s.sub(s.splat(sink), max)));
        }
        for i in (0..self.len).step_by(LANES) {
            let left = self.len - i;
            // SAFETY: see the type.
            unsafe {
                let sums = s.mul(load_up_to(s, self.sums.add(i), left), shrink);
                store_up_to(s, self.out.add(i), s.div(sums, total), left);
            }
        }
    }
}
