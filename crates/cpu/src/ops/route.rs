//! `route`: experts of each row, and the order of pairs.
use crate::CpuBackend;
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, LANES, Simd, load_up_to, math, store_up_to};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::{ExpertGroups, GroupScore, Route, Scoring};
use anyfleet_tensor::{Error, Live, Result};

pub(crate) struct RouteOp {
    weights: View,
    places: View,
    rows: View,
    offsets: View,
    hits: View,
    logits: View,
    bias: Option<View>,
    scoring: Scoring,
    groups: Option<ExpertGroups>,
    renormalise: bool,
    scale: f32,
    live: Live,
}

/// The least that weights are divided by.
const LEAST: f32 = 1e-20;

impl RouteOp {
    pub(crate) fn new(op: &Route<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("route", tensor);
        let Route { routing, scoring, groups, renormalise, scale, live, .. } = *op;
        if !matches!(scoring, Scoring::Softmax | Scoring::Sigmoid) {
            let reason = format!("route: scoring {scoring:?} is not supported; use another backend");
            return Err(Error::Device { device: "cpu".into(), reason });
        }
        let (logits, bias) = (view(op.logits)?, op.bias.map(view).transpose()?);
        let (weights, places, rows) = (view(&routing.weights)?, view(&routing.places)?, view(&routing.rows)?);
        let (offsets, hits) = (view(&routing.offsets)?, view(&routing.hits)?);
        for out in [&weights, &places, &rows, &offsets, &hits] {
            check_apart("route", out, &logits)?;
        }
        Ok(RouteOp { weights, places, rows, offsets, hits, logits, bias, scoring, groups, renormalise, scale, live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.logits.rows());
        let experts = self.logits.cols();
        // An exponential costs about as much as touching eight elements, and a choice as two.
        ctx.split(rows, (8 + 2 * self.weights.cols()) * experts, |range| {
            let groups = self.groups.map_or(0, |groups| groups.count);
            with_scratch([experts, experts, groups], |[scores, keys, groups]| {
                range.for_each(|row| self.choose(ctx, row, scores, keys, groups));
            });
        });
        self.sort(rows);
    }

    /// Chooses the experts of a row and writes their numbers to where their places will be.
    fn choose(&self, ctx: &Context, row: usize, scores: &mut [f32], keys: &mut [f32], groups: &mut [f32]) {
        let (per_token, experts) = (self.weights.cols(), self.logits.cols());
        // SAFETY: inputs are not written meanwhile; a row's weights and places belong to its task.
        let (logits, weights, places, bias) = unsafe {
            let bias = self.bias.as_ref().map(|bias| std::slice::from_raw_parts(bias.flat::<f32>(), experts));
            (self.logits.slice::<f32>(row), self.weights.slice_mut::<f32>(row), self.places.slice_mut::<u32>(row), bias)
        };
        let sum = ctx.kernels.run(Scores { logits, scores, scoring: self.scoring });
        let added = self.groups.is_some_and(|groups| groups.score == GroupScore::TwoHighest);
        let by_score = bias.is_some() || self.scoring == Scoring::Sigmoid || added;
        for (i, key) in keys.iter_mut().enumerate() {
            // Scores of softmax are not divided yet.
            let score = if sum > 0.0 { scores[i] / sum } else { scores[i] };
            *key = if by_score { score + bias.map_or(0.0, |bias| bias[i]) } else { logits[i] };
            // What is not a number is the least, and marks what was chosen.
            if key.is_nan() {
                *key = f32::NEG_INFINITY;
            }
        }
        if let Some(of) = &self.groups {
            keep_groups(of, keys, groups);
        }
        let mut chosen_sum = 0.0;
        for (weight, place) in weights.iter_mut().zip(&mut *places) {
            let best = best(keys);
            keys[best] = f32::NAN;
            *place = best as u32;
            *weight = scores[best];
            chosen_sum += scores[best];
        }
        let divisor = match (self.renormalise, self.scoring) {
            (true, _) => chosen_sum.max(LEAST),
            (false, Scoring::Softmax) => sum,
            (false, _) => 1.0,
        };
        debug_assert!(places.len() == per_token);
        weights.iter_mut().for_each(|weight| *weight = *weight / divisor * self.scale);
    }

    /// Sorts pairs by expert, and those of an expert by row: a count, and one pass in the order of rows.
    fn sort(&self, rows: usize) {
        let (per_token, experts) = (self.weights.cols(), self.logits.cols());
        // SAFETY: nothing else runs; lists have these lengths and no gaps.
        let (places, order, offsets, hits) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.places.flat::<u32>().cast_mut(), rows * per_token),
                std::slice::from_raw_parts_mut(self.rows.flat::<u32>().cast_mut(), rows * per_token),
                std::slice::from_raw_parts_mut(self.offsets.flat::<u32>().cast_mut(), experts + 1),
                std::slice::from_raw_parts_mut(self.hits.flat::<u32>().cast_mut(), self.hits.rows()),
            )
        };
        offsets.fill(0);
        places.iter().for_each(|&expert| offsets[expert as usize + 1] += 1);
        let mut count = 0;
        for expert in 0..experts {
            if offsets[expert + 1] > 0 {
                count += 1;
                hits[count] = expert as u32;
            }
            offsets[expert + 1] += offsets[expert];
        }
        hits[0] = count as u32;
        // Each expert's first free place moves on to where the next one's begin.
        for (i, place) in places.iter_mut().enumerate() {
            let next = &mut offsets[*place as usize];
            *place = *next;
            order[*next as usize] = (i / per_token) as u32;
            *next += 1;
        }
        offsets.copy_within(0..experts, 1);
        offsets[0] = 0;
    }
}

/// Marks experts of other groups than the best as chosen; `scores` has room for all groups.
fn keep_groups(groups: &ExpertGroups, keys: &mut [f32], scores: &mut [f32]) {
    let size = keys.len() / groups.count;
    for (score, keys) in scores.iter_mut().zip(keys.chunks_exact(size)) {
        let (mut most, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &key in keys {
            if key > most {
                (most, second) = (key, most);
            } else if key > second {
                second = key;
            }
        }
        *score = match groups.score {
            GroupScore::TwoHighest if size > 1 => most + second,
            _ => most,
        };
        if score.is_nan() {
            *score = f32::NEG_INFINITY;
        }
    }
    for _ in 0..groups.kept {
        let best = best(scores);
        scores[best] = f32::NAN;
    }
    for (score, keys) in scores.iter().zip(keys.chunks_exact_mut(size)) {
        if !score.is_nan() {
            keys.fill(f32::NAN);
        }
    }
}

/// The first of the largest numbers, of which there is one.
fn best(keys: &[f32]) -> usize {
    let mut found = None;
    for (i, &key) in keys.iter().enumerate() {
        if !key.is_nan() && found.is_none_or(|(_, most)| key > most) {
            found = Some((i, key));
        }
    }
    found.map_or(0, |(i, _)| i)
}

/// Scores of a row: `e^(x - max)` of softmax, whose sum it returns, or the logistic function, and zero.
struct Scores<'a> {
    logits: &'a [f32],
    scores: &'a mut [f32],
    scoring: Scoring,
}

impl Kernel for Scores<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Scores { logits, scores, scoring } = self;
        let len = logits.len().min(scores.len());
        let low = s.splat(f32::NEG_INFINITY);
        let mut most = low;
        for start in (0..len).step_by(LANES) {
            // SAFETY: `len - start` elements are left; lanes past them are zero, which the maximum must not see.
            let v = unsafe { load_up_to(s, logits.as_ptr().add(start), len - start) };
            most = if len - start >= LANES { s.max(v, most) } else { most };
        }
        let mut most = s.reduce_max(most);
        for &logit in &logits[len - len % LANES..len] {
            most = if logit > most { logit } else { most };
        }
        let mut sum = s.splat(0.0);
        for start in (0..len).step_by(LANES) {
            let left = len - start;
            // SAFETY: `left` elements are left of both.
            unsafe {
                let v = load_up_to(s, logits.as_ptr().add(start), left);
                let score = match scoring {
                    Scoring::Softmax => math::exp(s, s.sub(v, s.splat(most))),
                    _ => math::times_sigmoid(s, s.splat(1.0), v),
                };
                store_up_to(s, scores.as_mut_ptr().add(start), score, left);
                sum = s.add(sum, load_up_to(s, scores.as_ptr().add(start), left));
            }
        }
        if scoring == Scoring::Softmax { s.reduce_add(sum) } else { 0.0 }
    }
}
