//! A token drawn by weight, among those that top-k, top-p and min-p keep.
use super::blocks::{BLOCK, Block, Scan, Weights, load};
use crate::simd::{Kernel, LANES, Simd, store_up_to};
use anyfleet_tensor::SampleParams;
use anyfleet_tensor::sampling::{self, clean, fixed_point, rank_key};
use std::cmp::Reverse;

/// What a row's parameters keep.
pub(super) struct Limits {
    /// How many tokens; `None` for all.
    top_k: Option<usize>,
    /// Which share of the mass; `None` for all.
    top_p: Option<f32>,
    weights: Weights,
}

impl Limits {
    pub(super) fn new(params: &SampleParams, vocabulary: usize) -> Limits {
        let top_k = params.top_k as usize;
        let weights = Weights { inverse: 1.0 / params.temperature, least: sampling::min_p_weight(params.min_p) };
        Limits {
            top_k: (top_k != 0 && top_k < vocabulary).then_some(top_k),
            top_p: if params.top_p >= 1.0 { None } else { Some(params.top_p) },
            weights,
        }
    }

    /// The weights whose sums [`draw`] needs: those of the tokens it draws among, or all for top-p to take a share of;
    /// none after top-k, which leaves few tokens.
    pub(super) fn sums(&self) -> Option<Weights> {
        match (self.top_k, self.top_p) {
            (Some(_), _) => None,
            (None, Some(_)) => Some(Weights { least: 0, ..self.weights }),
            (None, None) => Some(self.weights),
        }
    }
}

/// A token with a weight.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// Its rank key.
    key: u64,
    weight: u64,
}

impl Candidate {
    fn block(self) -> usize {
        !(self.key as u32) as usize / BLOCK
    }
}

/// Draws a token, once the sums [`Limits::sums`] asks for were taken. Some logit is above minus infinity.
pub(super) fn draw(
    scan: &mut Scan<'_>,
    params: &SampleParams,
    limits: &Limits,
    candidates: &mut Vec<Candidate>,
) -> u32 {
    let mut cut = 0;
    if limits.top_k.is_some() || limits.top_p.is_some() {
        cut = lowest_kept(scan, params, limits, candidates);
        scan.blocks.iter_mut().for_each(|block| block.weight = 0);
        for kept in candidates.iter().filter(|c| c.key >= cut && c.weight >= limits.weights.least) {
            scan.blocks[kept.block()].weight += kept.weight;
        }
    }
    let mut left = sampling::draw(sampling::random_bits(params), scan.blocks.iter().map(|block| block.weight).sum());
    for (i, block) in scan.blocks.iter().enumerate() {
        if left >= block.weight {
            left -= block.weight;
            continue;
        }
        let start = i * BLOCK;
        let logits = &scan.logits[start..scan.logits.len().min(start + BLOCK)];
        let mut weights = [0.0; BLOCK];
        let out = &mut weights[..logits.len()];
        scan.workers.kernels.run(Exponentials { logits, out, max: scan.max, weights: limits.weights });
        for ((id, &logit), &e) in (start as u32..).zip(logits).zip(&weights) {
            let weight = fixed_point(e);
            if weight < limits.weights.least || rank_key(clean(logit), id) < cut {
                continue;
            }
            if left < weight {
                return id;
            }
            left -= weight;
        }
    }
    // Not reached: the highest token alone has a weight, and `draw` stays below the sum.
    scan.first_highest()
}

/// The lowest rank key that top-k and top-p keep. Leaves at least the tokens kept in `candidates`.
fn lowest_kept(scan: &mut Scan<'_>, params: &SampleParams, limits: &Limits, candidates: &mut Vec<Candidate>) -> u64 {
    let top_k = limits.top_k.unwrap_or(usize::MAX);
    let sum = |tokens: &[Candidate]| tokens.iter().map(|token| token.weight).sum::<u64>();
    let mass = |total| limits.top_p.map_or(u64::MAX, |p| sampling::top_p_mass(total, p));
    let mass_of_all = match limits.top_k {
        None => mass(scan.blocks.iter().map(|block| block.weight).sum()),
        Some(_) => u64::MAX,
    };

    // Mostly few tokens are enough: take those above a bar, and lower it while it was too high.
    let highest_of_blocks = [scan.nth_highest(top_k)];
    let by_temperature = [2.0, 4.0, 6.0, 8.0, 12.0, 20.0, f32::INFINITY].map(|d| scan.max - d * params.temperature);
    let bars = if top_k <= scan.blocks.len() { &highest_of_blocks[..] } else { &by_temperature };
    candidates.clear();
    let mut known = None;
    for &bar in bars {
        let (logits, blocks, max) = (scan.logits, &*scan.blocks, scan.max);
        scan.workers.kernels.run(Collect { logits, blocks, max, bar, known, weights: limits.weights, out: candidates });
        if candidates.len() >= top_k || sum(candidates) >= mass_of_all {
            break;
        }
        known = Some(bar);
    }

    let mut kept = highest(candidates, top_k);
    if limits.top_p.is_none() {
        return kept.iter().map(|token| token.key).min().unwrap_or(0);
    }
    let mut missing = if limits.top_k.is_some() { mass(sum(kept)) } else { mass_of_all };
    // The last token that is needed is in the higher half, if that has what is missing, or in the other.
    while kept.len() > 32 {
        let middle = kept.len() / 2;
        let weight = sum(highest(kept, middle));
        let (high, low) = kept.split_at_mut(middle);
        kept = if weight >= missing { high } else { low };
        missing = if weight >= missing { missing } else { missing - weight };
    }
    kept.sort_unstable_by_key(|token| Reverse(token.key));
    let last = kept.iter().find(|token| {
        missing = missing.saturating_sub(token.weight);
        missing == 0
    });
    last.or(kept.last()).map_or(0, |token| token.key)
}

/// Moves the `n` highest tokens to the front, in any order, and returns them.
fn highest(tokens: &mut [Candidate], n: usize) -> &mut [Candidate] {
    if n >= tokens.len() {
        return tokens;
    }
    if n > 0 {
        tokens.select_nth_unstable_by_key(n - 1, |token| Reverse(token.key));
    }
    &mut tokens[..n]
}

/// Adds to a list the tokens that have a weight and a logit not below the bar.
struct Collect<'a> {
    logits: &'a [f32],
    blocks: &'a [Block],
    max: f32,
    bar: f32,
    /// A higher bar, whose tokens the list has.
    known: Option<f32>,
    weights: Weights,
    out: &'a mut Vec<Candidate>,
}

impl Kernel for Collect<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (bar, max) = (s.splat(self.bar), s.splat(self.max));
        let (known, fresh) = (s.splat(self.known.unwrap_or(0.0)), if self.known.is_some() { 0 } else { u32::MAX });
        let (mut lanes, mut exponentials) = ([0.0; LANES], [0.0; LANES]);
        for (i, logits) in self.logits.chunks(BLOCK).enumerate() {
            if self.blocks[i].max < self.bar {
                continue;
            }
            for (j, logits) in logits.chunks(LANES).enumerate() {
                let v = load(s, logits);
                let below_known = s.gt_mask(known, v) | fresh;
                let mut hits = !s.gt_mask(bar, v) & below_known & ((1 << logits.len()) - 1);
                if hits == 0 {
                    continue;
                }
                // SAFETY: the arrays have sixteen elements.
                unsafe {
                    s.store(lanes.as_mut_ptr(), v);
                    s.store(exponentials.as_mut_ptr(), self.weights.exp(s, v, max));
                }
                while hits != 0 {
                    let lane = hits.trailing_zeros() as usize;
                    hits &= hits - 1;
                    let weight = fixed_point(exponentials[lane]);
                    if weight > 0 {
                        let id = i * BLOCK + j * LANES + lane;
                        self.out.push(Candidate { key: rank_key(clean(lanes[lane]), id as u32), weight });
                    }
                }
            }
        }
    }
}

/// [`Weights::exp`] of up to a block of logits.
struct Exponentials<'a> {
    logits: &'a [f32],
    out: &'a mut [f32],
    max: f32,
    weights: Weights,
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let max = s.splat(self.max);
        for (logits, out) in self.logits.chunks(LANES).zip(self.out.chunks_mut(LANES)) {
            let e = self.weights.exp(s, load(s, logits), max);
            // SAFETY: as many as there are logits.
            unsafe { store_up_to(s, out.as_mut_ptr(), e, out.len().min(logits.len())) };
        }
    }
}
