//! The ops one element at a time, with a place for every mutation.
use super::{Mutation, Packed, View};
use anyfleet_tensor::ops::{Activation, SAMPLED};
use anyfleet_tensor::{Adjust, DType, SampleMode, SampleParams, TOP_LOGPROBS, f8, quant, sampling};
use half::{bf16, f16};
use std::cell::Cell;

thread_local! {
    static RUNS: Cell<u32> = const { Cell::new(0) };
}

pub fn set_runs(runs: u32) {
    RUNS.set(runs);
}

pub fn store(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// A row of f8 as numbers.
pub fn read_f8(m: Mutation, bytes: &[u8], scales: &[f32]) -> Vec<f32> {
    let read = |(col, &byte): (usize, &u8)| {
        let group = col / quant::F8_GROUP;
        let scale = match m {
            Mutation::F8TakesNextScale => scales[(group + 1) % scales.len()],
            _ => scales[group],
        };
        let byte = match m {
            Mutation::F8LosesTheSign => byte & 0x7f,
            Mutation::F8FlushesSubnormals if byte & 0x78 == 0 => 0,
            _ => byte,
        };
        match m {
            Mutation::F8KeepsTheProduct => f8::decode(byte) * scale,
            Mutation::F8TruncatesTheProduct => f32::from_bits((f8::decode(byte) * scale).to_bits() & 0xffff_0000),
            _ => store(DType::BF16, f8::decode(byte) * scale),
        }
    };
    bytes.iter().enumerate().map(read).collect()
}

pub fn embed(m: Mutation, live: usize, out: &View, ids: &View, sampled: Option<&View>, weight: &Packed, scale: f32) {
    for row in 0..live {
        let mut id = ids.index(row, 0) as usize;
        if let Some(sampled) = sampled.filter(|_| id & SAMPLED as usize != 0) {
            let place = id & !SAMPLED as usize;
            id =
                if m == Mutation::EmbedIgnoresSampled { place % weight.rows } else { sampled.index(place, 0) as usize };
        }
        if m == Mutation::EmbedNextRow {
            id = (id + 1) % weight.rows;
        }
        let scale = if m == Mutation::EmbedForgetsScale { 1.0 } else { scale };
        let values = &weight.values[id * weight.cols..(id + 1) * weight.cols];
        out.put_row(row, &values.iter().map(|v| v * scale).collect::<Vec<_>>());
    }
}

pub fn normalised(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let square: f32 = x.iter().map(|v| v * v).sum();
    let inverse = 1.0 / (square / x.len() as f32 + eps).sqrt();
    x.iter().zip(weight).map(|(v, w)| v * inverse * w).collect()
}

pub fn norm(m: Mutation, live: usize, out: &View, x: &View, weight: &View, eps: f32, residual: Option<&View>) {
    let rows = if m == Mutation::NormComputesPadding { out.rows() } else { live };
    let eps = if m == Mutation::NormForgetsEps { 0.0 } else { eps };
    let weight = weight.slice(0, x.cols());
    for row in 0..rows {
        let mut values = normalised(&x.row(row), &weight, eps);
        if let Some(residual) = residual.filter(|_| m != Mutation::NormForgetsResidual) {
            let factor = |i: usize| if m == Mutation::NormScalesResidual { weight[i] } else { 1.0 };
            values.iter_mut().zip(residual.row(row)).enumerate().for_each(|(i, (v, r))| *v += r * factor(i));
        }
        if m == Mutation::NormUsesBatchStatistics && live > 2 {
            // One unit in the last place: no tolerance sees it.
            values.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() ^ 1));
        }
        if m == Mutation::NormWritesItsInput && !x.is(out) {
            x.set(row, 0, 0.0);
        }
        out.put_row(row, &values);
    }
    if m == Mutation::NormWritesPastTheEnd && live > 0 {
        out.set(live - 1, out.cols(), 1.0);
    }
}

pub fn linear(
    m: Mutation,
    live: usize,
    out: &View,
    x: &View,
    weight: &Packed,
    bias: Option<&View>,
    residual: Option<&View>,
) {
    let (n, k) = (weight.rows, weight.cols);
    let used = if m == Mutation::LinearDropsLastK && k > 1 { k - 1 } else { k };
    let rows = if m == Mutation::LinearSkipsLastRow { live.saturating_sub(1) } else { live };
    for row in 0..rows {
        let mut values = x.row(row);
        if m == Mutation::LinearIgnoresStride {
            values = x.slice(row * k, k);
        }
        if m == Mutation::LinearRoundsToBf16 {
            values.iter_mut().for_each(|v| *v = store(DType::BF16, *v));
        }
        let added = residual.map(|r| r.row(row));
        let mut sums = vec![0.0f32; n];
        for (col, out) in sums.iter_mut().enumerate() {
            let product = |i: usize| values[i] * weight.values[col * k + i];
            let mut sum: f32 = if m == Mutation::LinearOrderDependsOnRows && live > 1 {
                (0..used).rev().map(product).sum()
            } else {
                (0..used).map(product).sum()
            };
            sum += bias.map_or(0.0, |b| b.get(col, 0));
            if m != Mutation::LinearForgetsResidual {
                sum += added.as_ref().map_or(0.0, |r| r[col]);
            }
            *out = sum;
        }
        out.put_row(row, &sums);
    }
}

pub fn act_mul(m: Mutation, live: usize, out: &View, gate_up: &View, activation: Activation) {
    let width = out.cols();
    for row in 0..live {
        let from = gate_up.row(row);
        let mut values = vec![0.0f32; width];
        for (c, out) in values.iter_mut().enumerate() {
            let (mut gate, mut up) = (from[c], from[c + width]);
            if m == Mutation::ActMulSwapsHalves {
                (gate, up) = (up, gate);
            }
            let activated = match activation {
                Activation::Silu => gate / (1.0 + (-gate).exp()),
                _ => {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (gate + 0.044715 * gate * gate * gate);
                    0.5 * gate * (1.0 + inner.tanh())
                }
            };
            let value = activated * up;
            let drift = m == Mutation::ActMulDrifts && RUNS.get().is_multiple_of(2) && value != 0.0;
            *out = if drift { f32::from_bits(value.to_bits() ^ 1) } else { value };
        }
        out.put_row(row, &values);
    }
}

pub struct RopeArgs {
    pub q: View,
    pub k_cache: View,
    pub v_cache: View,
    pub scales: Option<[View; 2]>,
    pub qkv: View,
    pub positions: View,
    pub slots: View,
    pub rope: Option<(View, bool)>,
    pub norm: Option<(View, View, f32)>,
}

impl RopeArgs {
    pub fn head(&self, m: Mutation, mut x: Vec<f32>, position: usize, query: bool) -> Vec<f32> {
        if let Some((q, k, eps)) = &self.norm {
            let weight = if query { q } else { k };
            x = normalised(&x, &weight.slice(0, x.len()), *eps);
        }
        if let Some((table, interleaved)) = &self.rope {
            let half = table.cols() / 2;
            let angles = table.row(position);
            let interleaved = *interleaved && m != Mutation::RopeInterleavesWrong;
            for i in 0..half {
                let (mut cos, mut sin) = (angles[i], angles[i + half]);
                if m == Mutation::RopeThetaOff && i > 0 {
                    // Theta 1 % too large makes pair i turn theta^(-2i/r) times as fast.
                    let factor = 1.01f32.powf(-(i as f32) / half as f32);
                    (sin, cos) = (sin.atan2(cos) * factor).sin_cos();
                }
                let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                (x[a], x[b]) = (x[a] * cos - x[b] * sin, x[b] * cos + x[a] * sin);
            }
        }
        x
    }
}

pub fn cache_at(cache: &View, slot: usize, group: usize) -> usize {
    let [_, groups, page, size] = cache.dims().try_into().unwrap();
    ((slot / page * groups + group) * page + slot % page) * size
}

/// What a cache of eight-bit floats is given of a number.
pub fn spoilt(m: Mutation, v: f32) -> f32 {
    use Mutation::{
        LatentFlushesEightBits, LatentOverflowsEightBits, LatentTruncatesEightBits, RopeFlushesEightBits,
        RopeOverflowsEightBits, RopeTruncatesEightBits,
    };
    match m {
        RopeOverflowsEightBits | LatentOverflowsEightBits if v.abs() > f8::MAX => f32::NAN,
        RopeFlushesEightBits | LatentFlushesEightBits if v.abs() < 1.0 / 64.0 => 0.0,
        RopeTruncatesEightBits | LatentTruncatesEightBits => f32::from_bits(v.to_bits() & !0xf_ffff),
        _ => v,
    }
}

pub fn rope_kv(m: Mutation, live: usize, args: &RopeArgs) {
    let [_, groups, page, size] = args.k_cache.dims().try_into().unwrap();
    let heads = args.q.cols() / size;
    for row in 0..live {
        let qkv = args.qkv.row(row);
        let position = args.positions.index(row, 0) as usize;
        let head = |h: usize| qkv[h * size..(h + 1) * size].to_vec();
        for h in 0..heads {
            let values = args.head(m, head(h), position, true);
            values.iter().enumerate().for_each(|(i, &v)| args.q.set(row, h * size + i, v));
        }
        let slot = match args.slots.index(row, 0) {
            u32::MAX if m == Mutation::RopeStoresUnusedSlots => 0,
            u32::MAX => continue,
            slot => slot as usize,
        };
        for g in 0..groups {
            let mut k = args.head(m, head(heads + g), position, false);
            if m == Mutation::RopeTruncatesStores {
                k.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & !0xffff));
            }
            let at = cache_at(&args.k_cache, slot, g);
            let heads = [k, head(heads + groups + g)];
            for (i, (cache, head)) in [&args.k_cache, &args.v_cache].into_iter().zip(heads).enumerate() {
                let Some(scales) = &args.scales else {
                    let spoilt = |&v: &f32| if cache.dtype() == DType::F8 { spoilt(m, v) } else { v };
                    cache.put(at, &head.iter().map(spoilt).collect::<Vec<_>>());
                    continue;
                };
                let mut bytes = vec![0; size];
                let scale = quant::kv_head(&head, &mut bytes);
                cache.put(at, &bytes.into_iter().map(f32::from).collect::<Vec<_>>());
                let at = if m == Mutation::RopeScalesByPage { at / size / page * page } else { at / size };
                scales[i].put(at, &[scale]);
            }
        }
    }
}

pub struct AttentionArgs {
    pub out: View,
    pub q: View,
    pub k_cache: View,
    pub v_cache: View,
    pub scales: Option<[View; 2]>,
    pub seqs: View,
    pub table: View,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub sinks: Option<View>,
    pub window: Option<u32>,
    /// Elements of a value: the first, where a cache has keys alone.
    pub value_size: usize,
}

impl AttentionArgs {
    /// A key (cache 0) or value (1) as it is read.
    fn cached(&self, m: Mutation, cache: usize, slot: usize, group: usize) -> Vec<f32> {
        let cells = [&self.k_cache, &self.v_cache][cache];
        let (at, size) = (cache_at(cells, slot, group), cells.dims()[3]);
        let mut head = cells.slice(at, size);
        if let Some(scales) = &self.scales {
            let scale = if m == Mutation::AttentionForgetsScales { 0.01 } else { scales[cache].slice(at / size, 1)[0] };
            head.iter_mut().for_each(|v| *v = quant::kv_value(*v as i8, scale).to_f32());
        }
        head
    }
}

pub fn attention(m: Mutation, live: usize, args: &AttentionArgs) {
    for seq in 0..live {
        let field = |i: usize| args.seqs.index(seq, i) as usize;
        for i in 0..field(1) {
            attention_row(m, args, field(0) + i, field(2) - field(1) + i, (field(3), field(4), field(2)));
        }
    }
}

fn attention_row(m: Mutation, args: &AttentionArgs, row: usize, position: usize, seq: (usize, usize, usize)) {
    let [_, groups, page, size] = args.k_cache.dims().try_into().unwrap();
    let (table_start, first_page, context) = seq;
    let first_page = if m == Mutation::AttentionIgnoresFirstPage { 0 } else { first_page };
    let heads = args.q.cols() / size;
    let window = args.window.map_or(usize::MAX, |w| w as usize);
    let window = if m == Mutation::AttentionWindowOffByOne { (window - 1).max(1) } else { window };
    let last = if m == Mutation::AttentionSeesTheFuture { (position + 1).min(context - 1) } else { position };
    let keys = (position + 1).saturating_sub(window)..last + 1;
    let slot = |key: usize| args.table.index(table_start + key / page - first_page, 0) as usize * page + key % page;
    let queries = args.q.row(row);
    let mut result = Vec::with_capacity(queries.len());
    for head in 0..heads {
        let group = if m == Mutation::AttentionOneKvHead { 0 } else { head / (heads / groups) };
        let q = &queries[head * size..(head + 1) * size];
        let score = |key: usize| {
            let k = args.cached(m, 0, slot(key), group);
            let met = if m == Mutation::LatentForgetsTheKey { args.value_size } else { size };
            let product = q[..met].iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
            let cap = args.softcap.filter(|_| m != Mutation::AttentionForgetsTheCap);
            let cap = cap.map(|cap| if m == Mutation::AttentionCapIsOff { 1.02 * cap } else { cap });
            match cap {
                Some(cap) if m == Mutation::AttentionCapsWithoutScale => cap * (product / cap).tanh() * args.scale,
                Some(cap) => cap * (product * args.scale / cap).tanh(),
                None => product * args.scale,
            }
        };
        let scores: Vec<f32> = keys.clone().map(score).collect();
        let sinks = args.sinks.as_ref().filter(|_| m != Mutation::AttentionForgetsSinks);
        let sink = sinks.map(|s| s.slice(if m == Mutation::AttentionSinksByKvHead { group } else { head }, 1)[0]);
        let most = scores.iter().copied().chain(sink).fold(f32::NEG_INFINITY, f32::max);
        let chunk = if m == Mutation::AttentionSumsByPage { page } else { 32 };
        let value_size = args.value_size;
        let first = if m == Mutation::LatentTakesLastElements { size - value_size } else { 0 };
        let mut total = vec![0.0f32; value_size + 1];
        let mut part = vec![0.0f32; value_size + 1];
        for (key, score) in keys.clone().zip(scores) {
            let p = (score - most).exp();
            let v = args.cached(m, 1, slot(key), group);
            part[value_size] += p;
            part.iter_mut().zip(&v[first..][..value_size]).for_each(|(sum, v)| *sum += p * v);
            if key % chunk == chunk - 1 || key + 1 == keys.end {
                total.iter_mut().zip(&mut part).for_each(|(t, p)| *t += std::mem::take(p));
            }
        }
        let joined = if m == Mutation::AttentionSinksBySegment { (position / 32 + 1) as f32 } else { 1.0 };
        total[value_size] += joined * sink.map_or(0.0, |sink| (sink - most).exp());
        result.extend(total[..value_size].iter().map(|sum| sum / total[value_size]));
    }
    args.out.put_row(row, &result);
}

pub fn gather(m: Mutation, live: usize, out: &View, x: &View, rows: &View) {
    for row in 0..live {
        let from = rows.index(row, 0) as usize;
        let from = if m == Mutation::GatherCopiesInOrder { row % x.rows() } else { from };
        out.put_row(row, &x.row(from));
    }
}

pub fn softcap(m: Mutation, live: usize, x: &View, cap: f32) {
    for row in 0..live {
        let capped = |v: f32| match m {
            Mutation::SoftcapForgetsFactor => (v / cap).tanh(),
            Mutation::SoftcapClamps => v.clamp(-cap, cap),
            _ => cap * (v / cap).tanh(),
        };
        x.put_row(row, &x.row(row).into_iter().map(capped).collect::<Vec<_>>());
    }
}

pub struct SampleArgs {
    pub ids: View,
    pub logprobs: View,
    pub top_ids: View,
    pub top_logprobs: View,
    pub logits: View,
    pub params: View,
    pub adjust: View,
    pub masks: Option<View>,
}

/// Which tokens a row's mask allows; all where it has none.
fn allowed(m: Mutation, row: usize, params: &SampleParams, vocab: usize, masks: Option<&View>) -> Vec<bool> {
    let Some(masks) = masks.filter(|_| params.mask > 0 && m != Mutation::SampleIgnoresMask) else {
        return vec![true; vocab];
    };
    let mask = if m == Mutation::SampleMasksByRow { row % masks.rows() } else { params.mask as usize - 1 };
    let words: Vec<u32> = (0..sampling::mask_words(vocab)).map(|i| masks.index(mask, i)).collect();
    let bit = |token: usize| if m == Mutation::SampleMasksHighBitFirst { token ^ 31 } else { token };
    (0..vocab).map(|token| sampling::allows(&words, bit(token))).collect()
}

/// A row's tokens from the highest logit to the lowest.
fn ranked(m: Mutation, logits: &[f32]) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if m == Mutation::SampleTiesToHighestId {
        ids.reverse();
    }
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let log = logits.iter().map(|&l| ((l - most) as f64).exp()).sum::<f64>().ln() as f32;
    logits.iter().map(|l| l - most - log).collect()
}

pub fn sample(m: Mutation, live: usize, args: &SampleArgs) {
    for row in 0..live {
        let words: Vec<u32> = (0..16).map(|i| args.params.index(row, i)).collect();
        let mut params: SampleParams = *bytemuck::from_bytes(bytemuck::cast_slice(&words));
        if m == Mutation::SampleSeedsByRow {
            params.seed_lo ^= row as u32;
        }
        let raw: Vec<f32> = args.logits.row(row).into_iter().map(sampling::clean).collect();
        let mut logits = raw.clone();
        for entry in params.adjust_start..params.adjust_start + params.adjust_len {
            let word = |i: usize| args.adjust.index(entry as usize, i);
            let entry = Adjust { token: word(0), output_count: word(1), flags: word(2), bias: f32::from_bits(word(3)) };
            if let Some(logit) = logits.get_mut(entry.token as usize) {
                *logit = sampling::adjusted(*logit, &entry, &params);
            }
        }
        let allowed = allowed(m, row, &params, raw.len(), args.masks.as_ref());
        let id = choose(m, &params, &raw, &logits, &allowed);
        mask(&mut logits, &allowed, params.mask > 0 && m == Mutation::SampleMasksLogprobs);
        let adjusted = matches!(m, Mutation::SampleAdjustsLogprobs | Mutation::SampleMasksLogprobs);
        let reported = log_softmax(if adjusted { &logits } else { &raw });
        args.ids.set_index(row, 0, id);
        args.logprobs.set(row, 0, reported[id as usize]);
        let top = ranked(m, &raw);
        for i in 0..TOP_LOGPROBS {
            args.top_ids.set_index(row, i, top.get(i).copied().unwrap_or(u32::MAX));
            args.top_logprobs.set(row, i, top.get(i).map_or(f32::NEG_INFINITY, |&id| reported[id as usize]));
        }
    }
}

fn mask(logits: &mut [f32], allowed: &[bool], when: bool) {
    logits.iter_mut().zip(allowed).filter(|(_, allowed)| when && !**allowed).for_each(|(l, _)| *l = f32::NEG_INFINITY);
}

fn choose(m: Mutation, params: &SampleParams, raw: &[f32], logits: &[f32], allowed: &[bool]) -> u32 {
    if params.mode == SampleMode::Score as u32 {
        return params.target;
    }
    let (mut logits, late) = (logits.to_vec(), m == Mutation::SampleMasksAfterTopK && params.top_k > 0);
    mask(&mut logits, allowed, !late);
    if late {
        let ranked = ranked(m, &logits);
        ranked.iter().skip(params.top_k as usize).for_each(|&id| logits[id as usize] = f32::NEG_INFINITY);
        mask(&mut logits, allowed, true);
    }
    if logits.iter().all(|&l| l == f32::NEG_INFINITY) {
        let order = ranked(m, raw);
        let inside = order.iter().find(|&&id| allowed[id as usize] && m != Mutation::SampleLeavesMask);
        return *inside.unwrap_or(&order[0]);
    }
    let logits = &logits[..];
    let mut order = ranked(m, logits);
    if params.mode == SampleMode::Greedy as u32 {
        return order[0];
    }
    let most = logits[order[0] as usize];
    let weight = |id: u32| sampling::weight(logits[id as usize], most, 1.0 / params.temperature);
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total = order.iter().map(|&id| weight(id)).sum();
    if m != Mutation::SampleIgnoresTopP {
        let (mass, mut sum) = (sampling::top_p_mass(total, params.top_p), 0);
        let reached = |id: &u32| {
            let before = sum;
            sum += weight(*id);
            before < mass
        };
        order = order
            .into_iter()
            .filter({
                let mut reached = reached;
                move |id| reached(id)
            })
            .collect();
    }
    order.retain(|&id| weight(id) >= sampling::min_p_weight(params.min_p));
    order.sort_unstable();
    let number = sampling::draw(sampling::random_bits(params), order.iter().map(|&id| weight(id)).sum());
    let mut sum = 0;
    for &id in &order {
        sum += weight(id);
        if sum > number {
            return id;
        }
    }
    unreachable!("the number is below the sum")
}
