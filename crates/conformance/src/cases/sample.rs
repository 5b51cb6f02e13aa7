//! Log-probabilities and the choice of a token.
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::number::{UNIT_F32, encode_u32};
use crate::operand::{Role, Spec};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::sampling::{
    WEIGHT_ONE, adjusted, allows, clean, draw, mask_words, min_p_weight, random_bits, rank_key, top_p_mass, weight,
};
use anyfleet_tensor::{Adjust, Backend, DType, Encoder, Live, Result, SampleMode, SampleParams, TOP_LOGPROBS};

/// Shape of the drawn logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// Normal, deviation 4: a model's.
    Smooth,
    /// Multiples of 1/4: many equal ones.
    Ties,
    /// Whole numbers of 0 to 3: sets end amid hundreds of equal ones.
    Plateaus,
    /// Normal, with NaN, infinities below, zeros of both signs and a few in the tens of thousands.
    Odd,
    /// Two tokens have weight. Whether top-p keeps the lower one is decided by the last unit of its weight, and the random
    /// number chooses it where it is kept.
    Edge,
}

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct SampleCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Shape of the logits.
    pub logits: Logits,
    /// All rows in this mode; `None` mixes them.
    pub mode: Option<SampleMode>,
    /// With penalties, biases and bans.
    pub adjusted: bool,
    /// Most rows have a mask: of one token, of half of them, of all, or of none.
    pub masked: bool,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    logits: Vec<f32>,
    params: Vec<SampleParams>,
    adjust: Vec<Adjust>,
    /// [`mask_words`] each.
    masks: Vec<u32>,
}

/// What the op reports of one row.
struct Chosen {
    id: u32,
    logprob: Want,
    top: Vec<(u32, Want)>,
}

impl SampleCase {
    fn draw_logits(&self, rng: &mut Rng) -> Vec<f32> {
        let odd = [f32::NAN, f32::NEG_INFINITY, 0.0, -0.0, -3e4, 2e4];
        (0..self.rows * self.vocab)
            .map(|_| {
                let value = 4.0 * rng.normal();
                match self.logits {
                    Logits::Smooth => value,
                    Logits::Ties => (value * 4.0).round() / 4.0,
                    Logits::Plateaus => (value / 2.0).round().clamp(0.0, 3.0),
                    Logits::Odd if rng.chance(0.05) => rng.pick(&odd),
                    Logits::Odd => value,
                    Logits::Edge => value - 1000.0,
                }
            })
            .collect()
    }

    fn draw_params(&self, rng: &mut Rng, row: usize, adjust: &mut Vec<Adjust>, masks: &mut Vec<u32>) -> SampleParams {
        let modes = [SampleMode::Random, SampleMode::Greedy, SampleMode::Random, SampleMode::Score];
        let mode = self.mode.unwrap_or(modes[row % modes.len()]);
        let (adjust_start, adjust_len) = if self.adjusted { self.draw_adjust(rng, row, adjust) } else { (0, 0) };
        let mask = if self.masked { self.draw_mask(rng, masks) } else { 0 };
        let bits = rng.bits();
        SampleParams {
            mode: mode as u32,
            target: rng.below(self.vocab) as u32,
            temperature: rng.pick(&[1.0, 0.7, 0.01, 2.0, 1.3]),
            top_k: rng.pick(&[0, 0, 1, 5, 40, self.vocab as u32 / 3, self.vocab as u32, u32::MAX]),
            top_p: rng.pick(&[1.0, 1.0, 0.9, 0.5, 0.05, 0.0]),
            min_p: rng.pick(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            seed_lo: bits as u32,
            seed_hi: (bits >> 32) as u32,
            choice: rng.below(4) as u32,
            position: rng.below(40_000) as u32,
            adjust_start,
            adjust_len,
            repetition_penalty: rng.pick(&[1.0, 1.3, 0.8]),
            frequency_penalty: rng.pick(&[0.0, 0.4, -0.6]),
            presence_penalty: rng.pick(&[0.0, 1.5, -0.3]),
            mask,
        }
    }

    /// Makes a row one of [`Logits::Edge`]; the lower token is kept in every second.
    fn bring_to_edge(&self, rng: &mut Rng, row: usize, logits: &mut [f32], params: &mut SampleParams) {
        let kept = row.is_multiple_of(2);
        // What top-p asks for is the weight of the higher token to the unit, or one unit more.
        let (low, top_p) = loop {
            let top_p = 1.0 - (1024 + rng.below(4096)) as f32 / (1 << 24) as f32;
            let low = (1.0 / f64::from(top_p) - 1.0).ln() as f32;
            let low = f32::from_bits(low.to_bits() + rng.below(17) as u32 - 8);
            let excess = top_p_mass(WEIGHT_ONE + weight(low, 0.0, 1.0), top_p).checked_sub(WEIGHT_ONE);
            if excess == Some(u64::from(kept)) {
                break (low, top_p);
            }
        };
        // The lower token comes first in the order of the draw.
        let high = 1 + rng.below(self.vocab - 1);
        logits[high] = 0.0;
        logits[rng.below(high)] = low;
        (params.temperature, params.top_k, params.top_p, params.min_p) = (1.0, 0, top_p, 0.0);
        let weight = weight(low, 0.0, 1.0);
        while draw(random_bits(params), WEIGHT_ONE + weight) >= weight {
            let bits = rng.bits();
            (params.seed_lo, params.seed_hi) = (bits as u32, (bits >> 32) as u32);
        }
    }

    /// Appends the entries of one row, and some that belong to none.
    fn draw_adjust(&self, rng: &mut Rng, row: usize, adjust: &mut Vec<Adjust>) -> (u32, u32) {
        let foreign = Adjust { token: 0, output_count: 3, flags: Adjust::BANNED, bias: 100.0 };
        adjust.extend((0..rng.below(3)).map(|_| foreign));
        let start = adjust.len();
        let ban_all = row % 7 == 5 && self.vocab <= 1000;
        let chance = rng.pick(&[0.0, 0.02, 0.3]);
        for token in 0..self.vocab as u32 {
            if !ban_all && !rng.chance(chance) {
                continue;
            }
            let banned = if ban_all || rng.chance(0.1) { Adjust::BANNED } else { 0 };
            let prompt = if rng.chance(0.5) { Adjust::IN_PROMPT } else { 0 };
            let bias = rng.pick(&[0.0, 0.0, 2.5, -1.25, 100.0, -100.0]);
            adjust.push(Adjust { token, output_count: rng.below(4) as u32, flags: banned | prompt, bias });
        }
        if rng.chance(0.3) {
            adjust.push(Adjust { token: self.vocab as u32 + 3, bias: 100.0, ..Adjust::default() });
        }
        (start as u32, (adjust.len() - start) as u32)
    }

    /// Appends the mask of a row, with bits past the vocabulary, and some that belong to no row. Returns what the row's
    /// parameters say of it.
    fn draw_mask(&self, rng: &mut Rng, masks: &mut Vec<u32>) -> u32 {
        let words = mask_words(self.vocab);
        masks.extend((0..rng.below(2) * words).map(|i| if i % 2 == 0 { u32::MAX } else { 0 }));
        if rng.chance(0.2) {
            return 0;
        }
        let start = masks.len();
        let kind = rng.pick(&[0, 1, 1, 2, 2, 2, 3, 4]);
        masks.extend((0..words).map(|_| match kind {
            0 | 1 => 0,
            2 => rng.bits() as u32,
            3 => rng.bits() as u32 & rng.bits() as u32 & rng.bits() as u32,
            _ => u32::MAX,
        }));
        if kind == 1 {
            let token = rng.below(self.vocab);
            masks[start + token / 32] |= 1 << (token % 32);
        }
        if !self.vocab.is_multiple_of(32) {
            masks[start + words - 1] ^= (rng.bits() as u32) << (self.vocab % 32);
        }
        (start / words) as u32 + 1
    }

    /// The definition in [`anyfleet_tensor::sampling`], by sorting.
    fn reference(&self, host: &Host, row: usize) -> Chosen {
        let params = &host.params[row];
        let raw: Vec<f32> = host.logits[row * self.vocab..][..self.vocab].iter().map(|&l| clean(l)).collect();
        let most = raw.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let log_sum = raw.iter().map(|&l| (l as f64 - most).exp()).sum::<f64>().ln();
        let logprob = |id: usize| match raw[id] {
            f32::NEG_INFINITY => Want::Exact(f64::NEG_INFINITY),
            l => {
                let below = l as f64 - most;
                Want::Near { value: below - log_sum, scale: 1.0 + below.abs() + log_sum }
            }
        };
        let mut order: Vec<u32> = (0..self.vocab as u32).collect();
        order.sort_unstable_by_key(|&id| std::cmp::Reverse(rank_key(raw[id as usize], id)));
        let mut top: Vec<(u32, Want)> = order.iter().take(TOP_LOGPROBS).map(|&id| (id, logprob(id as usize))).collect();
        top.resize(TOP_LOGPROBS, (u32::MAX, Want::Exact(f64::NEG_INFINITY)));
        let id = match params.mode {
            mode if mode == SampleMode::Score as u32 => params.target,
            mode => self.choose(host, params, &raw, mode == SampleMode::Greedy as u32),
        };
        Chosen { id, logprob: logprob(id as usize), top }
    }

    fn choose(&self, host: &Host, params: &SampleParams, raw: &[f32], greedy: bool) -> u32 {
        let mut logits = raw.to_vec();
        for entry in &host.adjust[params.adjust_start as usize..][..params.adjust_len as usize] {
            if let Some(logit) = logits.get_mut(entry.token as usize) {
                *logit = adjusted(*logit, entry, params);
            }
        }
        let words = mask_words(self.vocab);
        let mask = params.mask.checked_sub(1).map(|at| &host.masks[at as usize * words..][..words]);
        let allowed = |id: usize| mask.is_none_or(|mask| allows(mask, id));
        logits.iter_mut().enumerate().filter(|(id, _)| !allowed(*id)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
        let banned = logits.iter().all(|&l| l == f32::NEG_INFINITY);
        let ranked_by = if banned { raw } else { &logits };
        let mut order: Vec<u32> = (0..self.vocab as u32).collect();
        if banned && order.iter().any(|&id| allowed(id as usize)) {
            order.retain(|&id| allowed(id as usize));
        }
        order.sort_unstable_by_key(|&id| std::cmp::Reverse(rank_key(ranked_by[id as usize], id)));
        if greedy || banned {
            return order[0];
        }
        let (most, inverse) = (logits[order[0] as usize], 1.0 / params.temperature);
        let weigh = |id: &u32| weight(logits[*id as usize], most, inverse);
        if params.top_k > 0 {
            order.truncate(params.top_k as usize);
        }
        let mass = top_p_mass(order.iter().map(weigh).sum(), params.top_p);
        let mut sum = 0;
        let kept = order.iter().position(|id| {
            sum += weigh(id);
            sum >= mass
        });
        order.truncate(kept.map_or(order.len(), |last| last + 1));
        order.retain(|id| weigh(id) >= min_p_weight(params.min_p));
        order.sort_unstable();
        let number = draw(random_bits(params), order.iter().map(weigh).sum());
        let mut sum = 0;
        let chosen = order.iter().find(|id| {
            sum += weigh(id);
            sum > number
        });
        *chosen.expect("a number below the sum of weights is reached")
    }
}

impl OpCase for SampleCase {
    const OP: &'static str = "sample";
    type Host = Host;

    fn types(&self) -> Types {
        Types::LOGITS
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn padding(&self) -> usize {
        self.padding
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let mut logits = self.draw_logits(rng);
        // A row needs one finite logit for its log-probabilities to mean anything.
        if self.logits != Logits::Edge {
            logits.iter_mut().step_by(self.vocab).for_each(|l| *l = 0.5);
        }
        let mut adjust = Vec::new();
        let mut masks = Vec::new();
        let mut params: Vec<_> =
            (0..self.rows).map(|row| self.draw_params(rng, row, &mut adjust, &mut masks)).collect();
        if self.logits == Logits::Edge {
            for (row, (logits, params)) in logits.chunks_exact_mut(self.vocab).zip(&mut params).enumerate() {
                self.bring_to_edge(rng, row, logits, params);
            }
        }
        Host { logits, params, adjust, masks }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let rows = selection.capacity();
        let logits = selection.gather(&host.logits, self.vocab);
        let logits = stage.input("logits", DType::F32, &[rows, self.vocab], &logits)?;
        let params = selection.gather(&host.params, 1);
        let spec = Spec {
            name: "params",
            role: Role::Input,
            dtype: DType::U32,
            shape: &[rows, 16],
            data: bytemuck::cast_slice(&params),
        };
        let params = stage.operand(spec)?;
        let entries: &[u32] = bytemuck::cast_slice(&host.adjust);
        let shape = [host.adjust.len() + 1, 4];
        let data = encode_u32(entries);
        let adjust =
            stage.operand(Spec { name: "adjust", role: Role::Input, dtype: DType::U32, shape: &shape, data: &data })?;
        let words = mask_words(self.vocab);
        let masks = match self.masked {
            true => Some(stage.indices("masks", &[host.masks.len() / words + 1, words], &host.masks)?),
            false => None,
        };
        let ids = stage.output("ids", DType::U32, &[rows])?;
        let logprobs = stage.output("logprobs", DType::F32, &[rows])?;
        let top_ids = stage.output("top_ids", DType::U32, &[rows, TOP_LOGPROBS])?;
        let top_logprobs = stage.output("top_logprobs", DType::F32, &[rows, TOP_LOGPROBS])?;
        let live = live_of(self.live, selection.padding);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.sample(Sample {
                ids: &ids,
                logprobs: &logprobs,
                top_ids: &top_ids,
                top_logprobs: &top_logprobs,
                logits: &logits,
                params: &params,
                adjust: &adjust,
                masks: masks.as_ref(),
                live,
            });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let chosen: Vec<Chosen> = selection.rows.iter().map(|&row| self.reference(host, row)).collect();
        let id = |id: u32| Want::Exact(id as f64);
        vec![
            Expected::dense(chosen.iter().map(|c| vec![id(c.id)])),
            Expected::dense(chosen.iter().map(|c| vec![c.logprob])),
            Expected::dense(chosen.iter().map(|c| c.top.iter().map(|t| id(t.0)).collect())),
            Expected::dense(chosen.iter().map(|c| c.top.iter().map(|t| t.1).collect())),
        ]
    }

    fn pieces(&self, _host: &Host, _row: usize, position: usize) -> Vec<Piece> {
        (0..4).map(|output| Piece::row(output, position)).collect()
    }

    fn tolerance(&self) -> Tolerance {
        let arithmetic = UNIT_F32 * (8.0 + 0.25 * (self.vocab as f64).sqrt());
        Tolerance {
            nmse: arithmetic.powi(2),
            arithmetic,
            reason: "ids follow from an exact definition; log-probabilities from an f32 sum over the vocabulary",
        }
    }
}
