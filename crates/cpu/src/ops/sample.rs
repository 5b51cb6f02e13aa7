//! `sample`: log-probabilities of the model, and the next token.
//!
//! The definition of every step is in [`anyfleet_tensor::sampling`]; here is how it is computed
//! fast. The sum of exponentials is taken in f32 over blocks of 1024 logits (sixteen strided sums and
//! their tree), and over blocks in f64.
use crate::CpuBackend;
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, math};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::sampling::{self, clean, fixed_point, rank_key};
use anyfleet_tensor::{Adjust, Live, Result, SampleMode, SampleParams, TOP_LOGPROBS};
use std::cell::RefCell;
use std::cmp::Reverse;

pub(crate) struct SampleOp {
    ids: View,
    logprobs: View,
    top_ids: View,
    top_logprobs: View,
    logits: View,
    params: View,
    adjust: View,
    live: Live,
}

impl SampleOp {
    pub(crate) fn new(op: &Sample<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("sample", tensor);
        let this = SampleOp {
            ids: view(op.ids)?,
            logprobs: view(op.logprobs)?,
            top_ids: view(op.top_ids)?,
            top_logprobs: view(op.top_logprobs)?,
            logits: view(op.logits)?,
            params: view(op.params)?,
            adjust: view(op.adjust)?,
            live: op.live,
        };
        for out in [&this.ids, &this.logprobs, &this.top_ids, &this.top_logprobs] {
            for input in [&this.logits, &this.params, &this.adjust] {
                check_apart("sample", out, input)?;
            }
        }
        Ok(this)
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.logits.rows());
        ctx.each(rows, |row| ROW.with_borrow_mut(|state| self.row(ctx, row, state)));
    }

    fn row(&self, ctx: &Context, row: usize, state: &mut Row) {
        // SAFETY: inputs are not written meanwhile, and are any bits.
        let (logits, words) = unsafe { (self.logits.slice::<f32>(row), self.params.slice::<u32>(row)) };
        let params: &SampleParams = bytemuck::from_bytes(bytemuck::cast_slice(words));
        let model = state.model(ctx, logits);
        let id = if params.mode == SampleMode::Score as u32 {
            assert!((params.target as usize) < logits.len(), "sample: target {} of {}", params.target, logits.len());
            params.target
        } else {
            state.apply(params, (0..params.adjust_len).map(|i| self.entry(params.adjust_start as usize + i as usize)));
            let max = ctx.kernels.run(Max(&state.logits));
            match params.mode {
                _ if max == f32::NEG_INFINITY => model.top[0].1,
                mode if mode == SampleMode::Greedy as u32 => state.first_equal(max),
                mode if mode == SampleMode::Random as u32 => state.draw(ctx, params, max),
                mode => panic!("sample: mode {mode} of row {row}"),
            }
        };
        // SAFETY: each task has its own output rows.
        let (top_ids, top_logprobs) =
            unsafe { (self.top_ids.slice_mut::<u32>(row), self.top_logprobs.slice_mut::<f32>(row)) };
        for (i, (top_id, top_logprob)) in top_ids.iter_mut().zip(top_logprobs).enumerate() {
            let known = i < logits.len();
            let (logit, id) = model.top[i];
            *top_id = if known { id } else { u32::MAX };
            *top_logprob = if known { model.logprob(logit) } else { f32::NEG_INFINITY };
        }
        // SAFETY: as above.
        unsafe {
            *self.ids.row::<u32>(row) = id;
            *self.logprobs.row::<f32>(row) = model.logprob(clean(logits[id as usize]));
        }
    }

    fn entry(&self, index: usize) -> Adjust {
        assert!(index < self.adjust.rows(), "sample: adjust entry {index} of {}", self.adjust.rows());
        bytemuck::cast::<[u32; 4], Adjust>(std::array::from_fn(|i| self.adjust.u32_at(4 * index + i)))
    }
}

thread_local! {
    static ROW: RefCell<Row> = const { RefCell::new(Row { logits: Vec::new(), weights: Vec::new(), keys: Vec::new(), vocabulary: 0 }) };
}

/// Lists a thread keeps from row to row.
struct Row {
    /// Cleaned, later adjusted logits, padded with minus infinity to whole blocks of [`SCAN`].
    logits: Vec<f32>,
    /// `exp` of the exponents of the weights.
    weights: Vec<f32>,
    /// Rank keys of the tokens that can be drawn.
    keys: Vec<u64>,
    vocabulary: usize,
}

/// Log-probabilities of the unadjusted logits.
struct Model {
    max: f32,
    ln_sum: f64,
    /// Highest logits with their ids, in order.
    top: [(f32, u32); TOP_LOGPROBS],
}

impl Model {
    fn logprob(&self, logit: f32) -> f32 {
        let distance = if logit < self.max { logit - self.max } else { 0.0 };
        (f64::from(distance) - self.ln_sum) as f32
    }
}

/// Logits looked at together when the highest are searched.
const SCAN: usize = 64;

impl Row {
    /// Takes in a row of logits.
    fn model(&mut self, ctx: &Context, logits: &[f32]) -> Model {
        self.vocabulary = logits.len();
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&l| clean(l)));
        self.logits.resize(logits.len().next_multiple_of(SCAN), f32::NEG_INFINITY);
        let max = ctx.kernels.run(Max(&self.logits));
        let sum = if max == f32::NEG_INFINITY {
            logits.len() as f64
        } else {
            ctx.kernels.run(SumExp { logits: &self.logits, max })
        };
        Model { max, ln_sum: sampling::ln(sum), top: self.top(ctx) }
    }

    fn top(&self, ctx: &Context) -> [(f32, u32); TOP_LOGPROBS] {
        let mut top = [(f32::NEG_INFINITY, u32::MAX); TOP_LOGPROBS];
        let mut known = 0;
        for (block, logits) in self.logits.chunks_exact(SCAN).enumerate() {
            // Later ids lose among equals, so only a higher logit can enter a full list.
            if known == TOP_LOGPROBS && ctx.kernels.run(Max(logits)) <= top[TOP_LOGPROBS - 1].0 {
                continue;
            }
            for (i, &logit) in logits.iter().enumerate().take(self.vocabulary - block * SCAN) {
                if known == TOP_LOGPROBS && logit <= top[TOP_LOGPROBS - 1].0 {
                    continue;
                }
                known = (known + 1).min(TOP_LOGPROBS);
                let mut at = known - 1;
                while at > 0 && top[at - 1].0 < logit {
                    top[at] = top[at - 1];
                    at -= 1;
                }
                top[at] = (logit, (block * SCAN + i) as u32);
            }
        }
        top
    }

    fn apply(&mut self, params: &SampleParams, entries: impl Iterator<Item = Adjust>) {
        for entry in entries {
            if let Some(logit) = self.logits[..self.vocabulary].get_mut(entry.token as usize) {
                *logit = sampling::adjusted(*logit, &entry, params);
            }
        }
    }

    fn first_equal(&self, value: f32) -> u32 {
        self.logits.iter().position(|&l| l == value).unwrap_or(0) as u32
    }

    fn draw(&mut self, ctx: &Context, params: &SampleParams, max: f32) -> u32 {
        self.weights.resize(self.logits.len(), 0.0);
        let inverse = 1.0 / params.temperature;
        ctx.kernels.run(Exponentials { logits: &self.logits, out: &mut self.weights, max, inverse });
        let cut = self.cut(params);
        let least = sampling::min_p_weight(params.min_p);
        let weights = self.weights[..self.vocabulary].iter().zip(&self.logits).enumerate().map(|(id, (&e, &logit))| {
            let weight = fixed_point(e);
            let kept = weight >= least && (cut == 0 || rank_key(logit, id as u32) >= cut);
            if kept { weight } else { 0 }
        });
        let mut left = sampling::draw(sampling::random_bits(params), weights.clone().sum());
        for (id, weight) in weights.enumerate() {
            if left < weight {
                return id as u32;
            }
            left -= weight;
        }
        // Not reached: the highest token alone has a weight, and `draw` stays below the sum.
        self.first_equal(max)
    }

    /// The lowest rank key that top-k and top-p keep; 0 keeps all.
    fn cut(&mut self, params: &SampleParams) -> u64 {
        let top_k = if params.top_k == 0 { usize::MAX } else { params.top_k as usize };
        if top_k >= self.vocabulary && params.top_p >= 1.0 {
            return 0;
        }
        // Tokens without weight rank behind all others and cannot be drawn: leave them out.
        let weights = &self.weights;
        let weight = |key: u64| fixed_point(weights[!(key as u32) as usize]);
        let tokens = weights[..self.vocabulary].iter().zip(&self.logits).enumerate();
        self.keys.clear();
        self.keys.extend(
            tokens.filter(|(_, (e, _))| fixed_point(**e) > 0).map(|(id, (_, &logit))| rank_key(logit, id as u32)),
        );
        let keys = highest(&mut self.keys, top_k);
        if params.top_p >= 1.0 {
            return keys.iter().copied().min().unwrap_or(0);
        }
        let mut missing = sampling::top_p_mass(keys.iter().map(|&k| weight(k)).sum(), params.top_p);
        // Mostly a few hundred tokens are enough; sort no more than are looked at.
        let (mut start, mut size) = (0, 256);
        while start < keys.len() {
            let sorted = highest(&mut keys[start..], size);
            sorted.sort_unstable_by_key(|&k| Reverse(k));
            for &key in &*sorted {
                missing = missing.saturating_sub(weight(key));
                if missing == 0 {
                    return key;
                }
            }
            start += sorted.len();
            size *= 4;
        }
        keys.iter().copied().min().unwrap_or(0)
    }
}

/// Moves the `n` highest keys to the front, in any order, and returns them.
fn highest(keys: &mut [u64], n: usize) -> &mut [u64] {
    if n >= keys.len() {
        return keys;
    }
    if n > 0 {
        keys.select_nth_unstable_by_key(n - 1, |&k| Reverse(k));
    }
    &mut keys[..n]
}

/// The highest of a whole number of vectors without NaN.
struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut max = s.splat(f32::NEG_INFINITY);
        for chunk in self.0.chunks_exact(LANES) {
            // SAFETY: sixteen elements.
            max = s.max(unsafe { s.load(chunk.as_ptr()) }, max);
        }
        s.reduce_max(max)
    }
}

/// `l - max`, but 0 for the highest, also where they are infinite.
#[inline(always)]
fn distance<S: Simd>(s: S, logits: &[f32], max: S::V) -> S::V {
    debug_assert!(logits.len() == LANES);
    // SAFETY: sixteen elements.
    let logit = unsafe { s.load(logits.as_ptr()) };
    s.select_gt(max, logit, s.sub(logit, max), s.splat(0.0))
}

/// `sum exp(l - max)`; see the module's text for the order.
struct SumExp<'a> {
    logits: &'a [f32],
    max: f32,
}

impl Kernel for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let max = s.splat(self.max);
        let mut total = 0.0;
        for block in self.logits.chunks(1024) {
            let mut sum = s.splat(0.0);
            for chunk in block.chunks_exact(LANES) {
                sum = s.add(sum, math::exp(s, distance(s, chunk, max)));
            }
            total += f64::from(s.reduce_add(sum));
        }
        total
    }
}

/// `out = exp((l - max) * inverse)`.
struct Exponentials<'a> {
    logits: &'a [f32],
    out: &'a mut [f32],
    max: f32,
    inverse: f32,
}

impl Kernel for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (max, zero) = (s.splat(self.max), s.splat(0.0));
        for (chunk, out) in self.logits.chunks_exact(LANES).zip(self.out.chunks_exact_mut(LANES)) {
            let distance = distance(s, chunk, max);
            // The highest stay at 0 even if the inverse temperature is infinite.
            let exponent = s.select_gt(zero, distance, s.mul(distance, s.splat(self.inverse)), zero);
            // SAFETY: sixteen elements.
            unsafe { s.store(out.as_mut_ptr(), math::exp(s, exponent)) };
        }
    }
}
