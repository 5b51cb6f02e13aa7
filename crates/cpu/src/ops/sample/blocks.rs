//! A row in blocks, and the passes over it.
use crate::plan::Context;
use crate::simd::{Kernel, KernelSet, LANES, Simd, math};
use anyfleet_tensor::sampling;
use std::sync::{Mutex, PoisonError};

/// Logits of a block: also the number whose exponentials are summed in f32.
pub(super) const BLOCK: usize = 1024;
/// Blocks of a task.
const PIECE: usize = 8;

/// What is known of a block of logits.
#[derive(Clone, Copy, Default)]
pub(super) struct Block {
    /// The highest.
    pub(super) max: f32,
    /// Of `exp(l - max)`, with the row's highest.
    pub(super) sum: f32,
    /// Sum of the weights that count.
    pub(super) weight: u64,
}

/// Who computes a row.
#[derive(Clone, Copy)]
pub(super) struct Workers<'a> {
    pub(super) kernels: KernelSet,
    /// All threads, not only the one that asks.
    pub(super) shared: Option<&'a Context>,
}

impl Workers<'_> {
    /// Calls `work` with pieces of a row and their blocks.
    fn each(self, logits: &[f32], blocks: &mut [Block], work: impl Fn(&[f32], &mut [Block]) + Send + Sync) {
        let Some(ctx) = self.shared.filter(|_| blocks.len() > PIECE) else { return work(logits, blocks) };
        let tasks = blocks.len().div_ceil(PIECE);
        let pieces = Mutex::new(logits.chunks(PIECE * BLOCK).zip(blocks.chunks_mut(PIECE)));
        ctx.each(tasks, |_| {
            let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            if let Some((logits, blocks)) = piece {
                work(logits, blocks);
            }
        });
    }
}

/// Memory of a [`Scan`].
pub(super) struct Space {
    blocks: Vec<Block>,
    /// The blocks' highest logits, to be ranked.
    maxima: Vec<f32>,
}

impl Space {
    pub(super) const fn new() -> Space {
        Space { blocks: Vec::new(), maxima: Vec::new() }
    }
}

/// A row and its blocks.
pub(super) struct Scan<'a> {
    pub(super) workers: Workers<'a>,
    /// As they come, not cleaned.
    pub(super) logits: &'a [f32],
    pub(super) blocks: &'a mut [Block],
    /// The highest cleaned logit.
    pub(super) max: f32,
    maxima: &'a mut Vec<f32>,
}

impl<'a> Scan<'a> {
    /// Finds what is highest.
    pub(super) fn new(workers: Workers<'a>, logits: &'a [f32], space: &'a mut Space) -> Self {
        let Space { blocks, maxima } = space;
        blocks.resize(logits.len().div_ceil(BLOCK), Block::default());
        workers.each(logits, blocks, |logits, blocks| workers.kernels.run(Highest { logits, blocks }));
        let max = blocks.iter().fold(f32::NEG_INFINITY, |max, block| if block.max > max { block.max } else { max });
        Scan { workers, logits, blocks, max: sampling::clean(max), maxima }
    }

    /// Sums the exponentials of blocks, and weights. Where nothing is above minus infinity, nothing is done.
    pub(super) fn exponentials(&mut self, sums: bool, weights: Option<Weights>) {
        let (max, kernels) = (self.max, self.workers.kernels);
        if max == f32::NEG_INFINITY || (!sums && weights.is_none()) {
            return;
        }
        self.workers.each(self.logits, self.blocks, |logits, blocks| {
            if sums {
                kernels.run(SumExp { logits, blocks, max });
            }
            if let Some(weights) = weights {
                kernels.run(SumWeights { logits, blocks, max, weights });
            }
        });
    }

    /// The first of the highest logits.
    pub(super) fn first_highest(&self) -> u32 {
        let block = self.blocks.iter().position(|block| block.max == self.max).unwrap_or(0) * BLOCK;
        (block + self.logits[block..].iter().position(|&l| l == self.max).unwrap_or(0)) as u32
    }

    /// The `n`th highest of the blocks' highest logits, so that at least `n` logits are not below it; minus
    /// infinity where there are fewer blocks.
    pub(super) fn nth_highest(&mut self, n: usize) -> f32 {
        if n > self.blocks.len() {
            return f32::NEG_INFINITY;
        }
        self.maxima.clear();
        self.maxima.extend(self.blocks.iter().map(|block| block.max));
        *self.maxima.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
    }
}

/// How a logit's weight follows from it.
#[derive(Clone, Copy)]
pub(super) struct Weights {
    /// Of the temperature.
    pub(super) inverse: f32,
    /// Lower weights count as 0.
    pub(super) least: u64,
}

impl Weights {
    /// `exp((l - max) * inverse)`, which [`sampling::fixed_point`] turns into weights.
    #[inline(always)]
    pub(super) fn exp<S: Simd>(self, s: S, logits: S::V, max: S::V) -> S::V {
        let (zero, distance) = (s.splat(0.0), distance(s, logits, max));
        // The highest stay at 0 even if the inverse temperature is infinite.
        let exponent = s.select_gt(zero, distance, s.mul(distance, s.splat(self.inverse)), zero);
        // Where it is 0, minus infinity became NaN.
        s.max(math::exp_to_one(s, exponent), zero)
    }
}

/// Up to sixteen logits without NaN, padded with minus infinity.
#[inline(always)]
pub(super) fn load<S: Simd>(s: S, logits: &[f32]) -> S::V {
    let none = s.splat(f32::NEG_INFINITY);
    if logits.len() >= LANES {
        // SAFETY: there are sixteen.
        return s.max(unsafe { s.load(logits.as_ptr()) }, none);
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    lanes[..logits.len()].copy_from_slice(logits);
    // SAFETY: the array has sixteen elements.
    s.max(unsafe { s.load(lanes.as_ptr()) }, none)
}

/// `l - max`, but 0 for the highest, also where they are infinite.
#[inline(always)]
fn distance<S: Simd>(s: S, logits: S::V, max: S::V) -> S::V {
    s.select_gt(max, logits, s.sub(logits, max), s.splat(0.0))
}

struct Highest<'a> {
    logits: &'a [f32],
    blocks: &'a mut [Block],
}

impl Kernel for Highest<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (logits, block) in self.logits.chunks(BLOCK).zip(self.blocks) {
            // Four chains, so that none waits for the one before.
            let mut max = [s.splat(f32::NEG_INFINITY); 4];
            let whole = logits.len() - logits.len() % (4 * LANES);
            for part in logits[..whole].chunks_exact(4 * LANES) {
                for i in 0..4 {
                    // SAFETY: sixteen elements. NaN is never higher.
                    max[i] = s.max(unsafe { s.load(part[i * LANES..].as_ptr()) }, max[i]);
                }
            }
            for logits in logits[whole..].chunks(LANES) {
                max[0] = s.max(load(s, logits), max[0]);
            }
            block.max = s.reduce_max(s.max(s.max(max[0], max[1]), s.max(max[2], max[3])));
        }
    }
}

/// Each block's `sum exp(l - max)`.
struct SumExp<'a> {
    logits: &'a [f32],
    blocks: &'a mut [Block],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = s.splat(self.max);
        for (logits, block) in self.logits.chunks(BLOCK).zip(self.blocks) {
            let mut sum = s.splat(0.0);
            let whole = logits.chunks_exact(LANES);
            let rest = whole.remainder();
            for logits in whole {
                sum = s.add(sum, math::exp_to_one(s, distance(s, load(s, logits), max)));
            }
            if !rest.is_empty() {
                sum = s.add(sum, math::exp_to_one(s, distance(s, load(s, rest), max)));
            }
            block.sum = s.reduce_add(sum);
        }
    }
}

/// Each block's sum of weights.
struct SumWeights<'a> {
    logits: &'a [f32],
    blocks: &'a mut [Block],
    max: f32,
    weights: Weights,
}

/// Bits of the parts of a weight, the highest first. A block's sum of one part, and of all before it in
/// the tree of lanes, is an integer of at most 24 bits (or 2^24): exact in f32.
const PARTS: [u32; 3] = [14, 13, 13];

impl Kernel for SumWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (weights, max) = (self.weights, s.splat(self.max));
        // At most 24 bits of this integer are not zero.
        let least = s.splat(weights.least as f32 / sampling::WEIGHT_ONE as f32);
        for (logits, block) in self.logits.chunks(BLOCK).zip(self.blocks) {
            let mut sums = [s.splat(0.0); PARTS.len()];
            let whole = logits.chunks_exact(LANES);
            let rest = whole.remainder();
            for logits in whole {
                add_weights(s, &mut sums, weights.exp(s, load(s, logits), max), least);
            }
            if !rest.is_empty() {
                add_weights(s, &mut sums, weights.exp(s, load(s, rest), max), least);
            }
            block.weight = 0;
            for (sum, bits) in sums.into_iter().zip(PARTS) {
                block.weight = (block.weight << bits) + s.reduce_add(sum) as u64;
            }
        }
    }
}

/// Adds the parts of weights, given by what [`sampling::fixed_point`] takes, unless below `least`.
#[inline(always)]
fn add_weights<S: Simd>(s: S, sums: &mut [S::V; PARTS.len()], e: S::V, least: S::V) {
    let mut rest = s.select_gt(least, e, s.splat(0.0), e);
    for i in 0..PARTS.len() {
        let shifted = s.mul(rest, s.splat((1 << PARTS[i]) as f32));
        let part = s.floor(shifted);
        sums[i] = s.add(sums[i], part);
        rest = s.sub(shifted, part);
    }
}
