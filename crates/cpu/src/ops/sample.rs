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

#[cfg(test)]
mod tests {
    use crate::CpuBackend;
    use crate::ops::testing::*;
    use anyfleet_tensor::ops::Sample;
    use anyfleet_tensor::sampling::{self, clean};
    use anyfleet_tensor::{Adjust, DType, Live, SampleMode, SampleParams, Tensor};
    use std::cmp::Reverse;

    #[derive(Debug, PartialEq, Clone)]
    struct Row {
        id: u32,
        logprob: f32,
        top: Vec<(u32, f32)>,
    }

    fn run(device: &CpuBackend, logits: &[f32], params: &[SampleParams], adjust: &[Adjust], live: usize) -> Vec<Row> {
        let (rows, vocabulary) = (params.len(), logits.len() / params.len());
        let new = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape).unwrap();
        let (ids, top_ids) = (new(DType::U32, &[rows]), new(DType::U32, &[rows, 20]));
        let logprobs = tensor(device, &vec![POISON; rows], &[rows]);
        let top_logprobs = new(DType::F32, &[rows, 20]);
        bind(device, live as u32, |enc| {
            enc.sample(Sample {
                ids: &ids,
                logprobs: &logprobs,
                top_ids: &top_ids,
                top_logprobs: &top_logprobs,
                logits: &columns_of(device, logits, rows, vocabulary),
                params: &tensor_u32(device, bytemuck::cast_slice(params), &[rows, 16]),
                adjust: &tensor_u32(device, bytemuck::cast_slice(adjust), &[adjust.len(), 4]),
                live: Live::LogitRows,
            })
        });
        let (ids, logprobs) = (read_u32(device, &ids), read(device, &logprobs));
        assert!(logprobs[live..].iter().all(|&v| v == POISON));
        let (top_ids, top) = (read_u32(device, &top_ids), read(device, &top_logprobs));
        (0..live)
            .map(|r| Row {
                id: ids[r],
                logprob: logprobs[r],
                top: (r * 20..r * 20 + 20).map(|i| (top_ids[i], top[i])).collect(),
            })
            .collect()
    }

    /// The definition of `anyfleet_tensor::sampling`, step by step.
    fn naive(logits: &[f32], params: &SampleParams, adjust: &[Adjust]) -> u32 {
        let mut adjusted: Vec<f32> = logits.iter().map(|&l| clean(l)).collect();
        for entry in &adjust[params.adjust_start as usize..][..params.adjust_len as usize] {
            adjusted[entry.token as usize] = sampling::adjusted(adjusted[entry.token as usize], entry, params);
        }
        let by_rank = |values: &[f32]| {
            let mut ids: Vec<usize> = (0..values.len()).collect();
            ids.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
            ids
        };
        let ranked = by_rank(&adjusted);
        let max = adjusted[ranked[0]];
        if max == f32::NEG_INFINITY {
            return by_rank(&logits.iter().map(|&l| clean(l)).collect::<Vec<_>>())[0] as u32;
        }
        if params.mode == SampleMode::Greedy as u32 {
            return ranked[0] as u32;
        }
        let weight = |id: usize| sampling::weight(adjusted[id], max, 1.0 / params.temperature);
        let k = if params.top_k == 0 { ranked.len() } else { ranked.len().min(params.top_k as usize) };
        let mut kept = ranked[..k].to_vec();
        if params.top_p < 1.0 {
            let mass = sampling::top_p_mass(kept.iter().map(|&id| weight(id)).sum(), params.top_p);
            let mut reached = 0;
            let enough = kept.iter().position(|&id| {
                reached += weight(id);
                reached >= mass
            });
            kept.truncate(enough.map_or(k, |i| i + 1));
        }
        kept.retain(|&id| weight(id) >= sampling::min_p_weight(params.min_p));
        kept.sort_unstable();
        let mut left = sampling::draw(sampling::random_bits(params), kept.iter().map(|&id| weight(id)).sum());
        for id in kept {
            if left < weight(id) {
                return id as u32;
            }
            left -= weight(id);
        }
        unreachable!("a draw lies below the sum of weights")
    }

    fn logprobs(logits: &[f32]) -> Vec<f64> {
        let max = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
        let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        logits.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
    }

    /// Sharp, flat, tied and tiny temperatures with all truncations.
    fn variety() -> Vec<SampleParams> {
        let random =
            SampleParams { mode: SampleMode::Random as u32, seed_lo: 9, seed_hi: 7, ..SampleParams::default() };
        let mut all = vec![SampleParams::default(), random];
        for (i, (temperature, top_k, top_p, min_p)) in [
            (1.0, 5, 1.0, 0.0),
            (1.0, 1, 1.0, 0.0),
            (3.0, 0, 0.9, 0.0),
            (0.7, 0, 0.3, 0.0),
            (50.0, 0, 0.99, 0.0),
            (1.0, 0, 0.0, 0.0),
            (1.5, 40, 0.8, 0.05),
            (1.0, 0, 1.0, 0.2),
            (1e-30, 0, 1.0, 0.0),
            (1.0, u32::MAX, 1.0, 1.0),
        ]
        .into_iter()
        .enumerate()
        {
            for position in 0..4 {
                all.push(SampleParams { temperature, top_k, top_p, min_p, position, choice: i as u32, ..random });
            }
        }
        all
    }

    #[test]
    fn agrees_with_the_naive_twin() {
        for vocabulary in [1, 3, 20, 64, 333, 5000] {
            let entries: Vec<Adjust> = (0..vocabulary as u32)
                .step_by(3)
                .map(|token| Adjust {
                    token,
                    output_count: token % 4,
                    flags: token % 3,
                    bias: (token % 5) as f32 * 0.3,
                })
                .collect();
            let mut all = variety();
            for (i, params) in all.iter_mut().enumerate() {
                if i % 2 == 1 {
                    (params.adjust_start, params.adjust_len) = (0, entries.len() as u32);
                    (params.repetition_penalty, params.frequency_penalty) = (1.3, 0.2);
                    params.presence_penalty = -0.1;
                }
            }
            let source = random(11, all.len() * vocabulary);
            // A third of the logits are rounded so that there are ties.
            let logits: Vec<f32> =
                source.iter().enumerate().map(|(i, v)| if i % 3 == 0 { (v * 4.0).round() } else { v * 5.0 }).collect();
            let mut first = None;
            for device in devices() {
                let rows = run(&device, &logits, &all, &entries, all.len());
                for ((row, params), logits) in rows.iter().zip(&all).zip(logits.chunks(vocabulary)) {
                    let want = logprobs(logits);
                    assert_eq!(row.id, naive(logits, params, &entries), "{params:?} of {vocabulary}");
                    assert!((f64::from(row.logprob) - want[row.id as usize]).abs() < 1e-5);
                    let mut ids: Vec<u32> = (0..vocabulary as u32).collect();
                    ids.sort_by_key(|&id| Reverse(sampling::rank_key(clean(logits[id as usize]), id)));
                    for (i, &(id, logprob)) in row.top.iter().enumerate() {
                        match ids.get(i) {
                            Some(&want_id) => {
                                assert_eq!(id, want_id);
                                assert!((f64::from(logprob) - want[id as usize]).abs() < 1e-5);
                            }
                            None => assert_eq!((id, logprob), (u32::MAX, f32::NEG_INFINITY)),
                        }
                    }
                }
                assert_eq!(first.get_or_insert(rows.clone()), &rows);
            }
        }
    }

    #[test]
    fn odd_logits_and_modes() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let ban = |token| Adjust { token, flags: Adjust::BANNED, ..Adjust::default() };
        let bans = [ban(0), ban(1), ban(2), ban(99)];
        let banned = SampleParams { adjust_len: 4, ..SampleParams::default() };
        let random = SampleParams { mode: SampleMode::Random as u32, ..SampleParams::default() };
        let score = SampleParams { mode: SampleMode::Score as u32, target: 2, ..SampleParams::default() };
        let cases = [
            ([1.0, nan, 2.0], SampleParams::default(), 2, logprobs(&[1.0, 2.0])[1]),
            ([nan, nan, nan], SampleParams::default(), 0, -(3f64.ln())),
            ([-inf, -inf, -inf], random, 0, -(3f64.ln())),
            ([0.0, inf, 5.0], random, 1, 0.0),
            ([3.0, 7.0, 7.0], SampleParams::default(), 1, logprobs(&[3.0, 7.0, 7.0])[1]),
            ([3.0, 7.0, 7.0], banned, 1, logprobs(&[3.0, 7.0, 7.0])[1]),
            ([3.0, 7.0, 1.0], SampleParams { mode: 1, ..banned }, 1, logprobs(&[3.0, 7.0, 1.0])[1]),
            ([3.0, -inf, 7.0], SampleParams { adjust_start: 2, adjust_len: 1, ..random }, 0, logprobs(&[3.0, 7.0])[0]),
            ([-0.0, 0.0, -1.0], SampleParams::default(), 0, logprobs(&[0.0, 0.0, -1.0])[0]),
            ([3.0, 7.0, 1.0], score, 2, logprobs(&[3.0, 7.0, 1.0])[2]),
        ];
        let logits: Vec<f32> = cases.iter().flat_map(|c| c.0).collect();
        let params: Vec<SampleParams> = cases.iter().map(|c| c.1).collect();
        for device in devices() {
            let rows = run(&device, &logits, &params, &bans, cases.len() - 1);
            for (row, (logits, params, id, logprob)) in rows.iter().zip(&cases) {
                assert_eq!(row.id, *id, "{logits:?} {params:?}");
                assert!((f64::from(row.logprob) - logprob).abs() < 1e-6, "{logits:?} {params:?}: {}", row.logprob);
            }
            assert_eq!(run(&device, &logits, &params, &bans, 0), []);
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let want: Vec<f64> = logprobs(&logits).iter().map(|l| l.exp()).collect();
        let draws = 4000;
        let params: Vec<SampleParams> = (0..draws)
            .map(|position| SampleParams {
                mode: SampleMode::Random as u32,
                seed_lo: 5,
                position,
                ..SampleParams::default()
            })
            .collect();
        let rows = run(&devices()[0], &logits.repeat(draws as usize), &params, &[], draws as usize);
        for (id, p) in want.iter().enumerate() {
            let share = rows.iter().filter(|r| r.id == id as u32).count() as f64 / f64::from(draws);
            // Four standard deviations.
            assert!((share - p).abs() < 4.0 * (p * (1.0 - p) / f64::from(draws)).sqrt(), "{id}: {share}, expected {p}");
        }
    }
}
