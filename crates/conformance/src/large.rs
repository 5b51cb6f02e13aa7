//! The large tier: shapes of 8B models, and places where 32-bit offsets end.
use crate::cases::act_mul::ActMulCase;
use crate::cases::attention::{AttentionCase, Length};
use crate::cases::embed::EmbedCase;
use crate::cases::grouped_linear::{GroupedLinearActMulCase, GroupedLinearCase};
use crate::cases::linear::{LinearCase, Residual};
use crate::cases::linear_act_mul::LinearActMulCase;
use crate::cases::norm::NormCase;
use crate::cases::rope_kv::RopeKvCase;
use crate::cases::sample::{Logits, SampleCase};
use crate::matrix::Spread;
use crate::property::ChunkIndependence;
use crate::suite::Cases;
use anyfleet_tensor::ops::Activation;
use anyfleet_tensor::{Backend, Caps, DType, Live, WeightFormat};

/// A little more than 4 GiB.
const FAR: u64 = (4 << 30) + (64 << 20);
/// Qwen's vocabulary.
const VOCAB: usize = 151_936;

/// One dtype combination, the narrowest floats the device has, and integers: the small tier covers the others.
pub(crate) fn cases<B: Backend>(caps: &Caps) -> Cases<B> {
    let kv = caps.kv.iter().filter(|d| d.is_float()).min_by_key(|d| d.size());
    let (Some(&activation), Some(&kv)) = (caps.activations.first(), kv) else { return Vec::new() };
    let Some(&weight) = caps.weights.iter().min_by_key(|w| w.bytes(1, 1)) else { return Vec::new() };
    let mut cases: Cases<B> = Vec::new();
    for rows in [1, 17, 512] {
        let sampled = if rows == 512 { 24 } else { 400 };
        let linear = LinearCase { sampled, ..LinearCase::plain(rows, 4096, 14_336, activation, weight) };
        let in_place = LinearCase { residual: Residual::InPlace, spread: Spread::Outliers, ..linear };
        cases.push(Box::new(in_place));
    }
    cases.push(Box::new(gate_up(activation, weight)));
    for (tokens, sampled) in [(1, 0), (8, 40), (512, 4)] {
        let (product, function) = (experts(tokens, sampled, activation, weight), Activation::Silu);
        cases.push(Box::new(GroupedLinearActMulCase { product, function, gated: true }));
    }
    // The vocabulary head, at the widths of an 8B model.
    let head = LinearCase { sampled: 400, f32_out: true, ..LinearCase::plain(3, VOCAB, 4096, activation, weight) };
    cases.push(Box::new(head.clone()));
    // Weights of fewer bits, through every path: one row, a few, many.
    let narrow = [WeightFormat::Q8, WeightFormat::Q4, WeightFormat::F8];
    for format in narrow.into_iter().filter(|format| caps.weights.contains(format)) {
        for (rows, sampled) in [(1, 0), (19, 200), (512, 40)] {
            let spread = Spread::Outliers;
            cases.push(Box::new(LinearCase {
                spread,
                sampled,
                ..LinearCase::plain(rows, 4096, 14_336, activation, format)
            }));
        }
        cases.push(Box::new(gate_up(activation, format)));
    }
    let wide = WeightFormat::Float(DType::F32);
    if caps.weights.contains(&wide) && wide != weight {
        // A matrix of more than 2 GiB.
        cases.push(Box::new(LinearCase { rows: 1, weight: wide, ..head }));
    }
    cases.push(Box::new(LinearCase { offset: FAR, ..LinearCase::plain(3, 515, 4096, activation, weight) }));
    let (padding, width, sampled, live) = (0, 1024, true, Live::All);
    let embed = EmbedCase { rows: 64, padding, vocab: VOCAB, width, activation, weight, scale: 1.0, sampled, live };
    cases.push(Box::new(embed));
    cases.push(Box::new(norm(activation)));
    cases.push(Box::new(act_mul(activation)));
    for logits in [Logits::Smooth, Logits::Ties] {
        let (mode, live) = (None, Live::LogitRows);
        let sample =
            SampleCase { rows: 8, padding: 2, vocab: VOCAB, logits, mode, adjusted: true, masked: false, live };
        cases.push(Box::new(SampleCase { masked: true, ..sample.clone() }));
        cases.push(Box::new(sample));
    }
    let long = AttentionCase {
        sequences: vec![Length { rows: 1, context: 32_768 }, Length { rows: 4, context: 32_001 }],
        sampled: 3,
        ..attention(activation, kv)
    };
    cases.push(Box::new(AttentionCase { window: Some(4096), drop_pages: true, ..long.clone() }));
    cases.push(Box::new(AttentionCase { softcap: Some(2.0), sinks: true, size: 256, ..long.clone() }));
    cases.push(Box::new(long));
    cases.push(Box::new(AttentionCase {
        sequences: vec![Length { rows: 512, context: 4096 }],
        sampled: 1,
        ..attention(activation, kv)
    }));
    cases.push(Box::new(AttentionCase {
        sequences: vec![Length { rows: 5, context: 300 }, Length { rows: 1, context: 77 }],
        offset: FAR,
        ..attention(activation, kv)
    }));
    let chunks = vec![Length { rows: 24, context: 5000 }, Length { rows: 3, context: 3001 }];
    cases.push(Box::new(ChunkIndependence(AttentionCase { sequences: chunks, ..attention(activation, kv) })));
    cases.push(Box::new(rope_kv(activation, kv)));
    for &kv in caps.kv.iter().filter(|d| d.size() == 1) {
        for (rows, context, offset) in [(1, 32_768, 0), (512, 4096, 0), (5, 300, FAR)] {
            let sequences = vec![Length { rows, context }];
            cases.push(Box::new(AttentionCase { sequences, sampled: 1, offset, ..attention(activation, kv) }));
        }
        cases.push(Box::new(rope_kv(activation, kv)));
    }
    cases
}

fn gate_up(activation: DType, weight: WeightFormat) -> LinearActMulCase {
    LinearActMulCase {
        rows: 16,
        padding: 0,
        width: 14_336,
        k: 4096,
        activation,
        weight,
        bias: false,
        function: Activation::Silu,
        spread: Spread::Outliers,
        live: Live::All,
        sampled: 100,
    }
}

/// The first product of a layer with 128 small experts, eight of them for each of `tokens` rows.
fn experts(tokens: usize, sampled: usize, activation: DType, weight: WeightFormat) -> GroupedLinearCase {
    let (pairs, padding, experts, uneven, n, k) = (8 * tokens, 0, 128, false, 768, 2048);
    let spread = Spread::Normal;
    GroupedLinearCase { pairs, padding, experts, uneven, tokens, n, k, activation, weight, spread, sampled }
}

fn norm(activation: DType) -> NormCase {
    let spread = Spread::Outliers;
    let (in_place, residual, live) = (false, Residual::None, Live::All);
    NormCase { rows: 512, padding: 0, width: 8192, activation, in_place, residual, spread, eps: 1e-5, live }
}

fn act_mul(activation: DType) -> ActMulCase {
    let (function, spread, live) = (Activation::Silu, Spread::Normal, Live::All);
    ActMulCase { rows: 512, padding: 0, width: 14_336, activation, function, spread, live }
}

/// Heads of an 8B model, no sequences.
fn attention(activation: DType, kv: DType) -> AttentionCase {
    AttentionCase {
        sequences: Vec::new(),
        padding: 0,
        heads: 32,
        groups: 8,
        size: 128,
        latent: None,
        page: 16,
        window: None,
        softcap: None,
        sinks: false,
        drop_pages: false,
        gaps: false,
        activation,
        kv,
        spread: Spread::Normal,
        sampled: 0,
        offset: 0,
    }
}

fn rope_kv(activation: DType, kv: DType) -> RopeKvCase {
    RopeKvCase {
        rows: 33,
        padding: 2,
        heads: 32,
        groups: 8,
        size: 128,
        rotary: 128,
        interleaved: false,
        qk_norm: true,
        page: 16,
        activation,
        kv,
        spread: Spread::Normal,
        live: Live::Tokens,
        offset: FAR,
    }
}
