//! Small shapes of the operations that keep and read keys and values.
use super::Cases;
use super::small::{live_for, with_rows};
use crate::cases::attention::{AttentionCase, Length};
use crate::cases::latent_attention::LatentAttentionCase;
use crate::cases::latent_kv::LatentKvCase;
use crate::cases::rope_kv::RopeKvCase;
use crate::matrix::Spread;
use crate::property::ChunkIndependence;
use crate::rng::Rng;
use anyfleet_tensor::{Backend, DType, Live};

/// Heads, key/value heads and head size: ratios 1, 3, 4 and 8 over the sizes in use and odd ones.
const HEADS: [(usize, usize, usize); 10] = [
    (1, 1, 8),
    (6, 2, 8),
    (4, 1, 64),
    (9, 3, 64),
    (6, 3, 22),
    (8, 1, 80),
    (4, 4, 80),
    (8, 2, 128),
    (3, 1, 128),
    (4, 1, 256),
];
const PAGES: [usize; 4] = [1, 3, 16, 64];

/// What case `i` of a store draws from.
fn spreads(kv: DType, i: usize) -> [Spread; 2] {
    match (kv, i % 2) {
        // Values of 1e5 do not fit f16, and what a store makes of them is not specified.
        (DType::F16, _) => [Spread::Normal, Spread::Outliers],
        // Magnitudes below the smallest normal one, and above the largest.
        (DType::F8, 0) => [Spread::Normal; 2],
        (DType::F8, _) => [Spread::Mixed, Spread::Extreme],
        _ => [Spread::Outliers, Spread::Extreme],
    }
}

pub(super) fn rope_kv<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, (heads, groups, size)) in HEADS.into_iter().cycle().take(14).enumerate() {
        let padding = [0, 3, 0, 1][i % 4];
        let case = RopeKvCase {
            rows: [1, 5, 33, 0, 17][i % 5],
            padding,
            heads,
            groups,
            size,
            rotary: [size, size / 2, size, 0, size / 4 * 2][i % 5],
            interleaved: i % 3 == 1,
            qk_norm: i % 2 == 1,
            page: PAGES[i % 4],
            activation,
            kv,
            spread: rng.pick(&spreads(kv, i)),
            live: live_for(rng, padding, Live::Tokens),
            offset: 0,
        };
        with_rows(cases, case);
    }
}

fn lengths(rng: &mut Rng, count: usize, most: usize) -> Vec<Length> {
    let draw = |_| {
        let context = rng.range(1, most);
        let rows = match rng.below(4) {
            0 => context.min(20),
            1 => rng.range(1, context.min(20)),
            _ => 1,
        };
        Length { rows, context }
    };
    (0..count).map(draw).collect()
}

pub(super) fn attention<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, case) in attention_cases(rng, activation, kv).into_iter().enumerate() {
        if (3..12).contains(&i) {
            cases.push(Box::new(ChunkIndependence(case.clone())));
        }
        cases.push(Box::new(case));
    }
    attention_options(cases, rng, activation, kv);
}

pub(super) fn attention_cases(rng: &mut Rng, activation: DType, kv: DType) -> Vec<AttentionCase> {
    let fixed = [
        vec![],
        // More than 256 keys at once, no window: kernels sum keys in parts of such sizes.
        vec![Length { rows: 1, context: 515 }],
        vec![Length { rows: 1, context: 1 }],
        vec![Length { rows: 80, context: 80 }],
        vec![Length { rows: 17, context: 100 }, Length { rows: 0, context: 0 }, Length { rows: 1, context: 290 }],
        vec![Length { rows: 3, context: 300 }, Length { rows: 1, context: 257 }, Length { rows: 40, context: 40 }],
    ];
    let case = |i: usize| {
        let (heads, groups, size) = HEADS[i % HEADS.len()];
        let sequences = fixed.get(i).cloned().unwrap_or_else(|| lengths(rng, 1 + i % 5, 200));
        let window = [None, None, Some(1), Some(7), None, Some(64), Some(100)][i % 7];
        AttentionCase {
            padding: [0, 2][i % 2],
            sequences,
            heads,
            groups,
            size,
            latent: None,
            page: PAGES[(i + i / 4) % 4],
            window,
            softcap: None,
            sinks: false,
            drop_pages: window.is_some() && rng.chance(0.7),
            gaps: rng.chance(0.5),
            activation,
            kv,
            spread: rng.pick(&[Spread::Normal, Spread::Normal, Spread::Outliers]),
            sampled: 0,
            offset: 0,
        }
    };
    (0..18).map(case).collect()
}

/// Caps that bend scores a little and much, and sinks, with few rows and many, segments apart and not.
fn attention_options<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for i in 0..12 {
        let (heads, groups, size) = if i % 3 == 0 { (4, 1, 256) } else { rng.pick(&HEADS) };
        let sequences = match i {
            0 => vec![Length { rows: 1, context: 600 }],
            1 => vec![Length { rows: 70, context: 300 }, Length { rows: 2, context: 33 }],
            2 => vec![Length { rows: 5, context: 515 }, Length { rows: 1, context: 1 }],
            _ => lengths(rng, 1 + i % 4, 300),
        };
        let window = [None, None, Some(300), Some(33), None][i % 5];
        let case = AttentionCase {
            padding: i % 3,
            sequences,
            heads,
            groups,
            size,
            latent: None,
            page: rng.pick(&PAGES),
            window,
            softcap: [Some(2.0), Some(0.25), None, Some(50.0)][i % 4],
            // Alone, with a cap, and a cap alone.
            sinks: i % 4 == 2 || i % 3 != 1,
            // The third begins within a segment of keys and ends in the one after the next.
            drop_pages: window.is_some() && (i == 2 || rng.chance(0.7)),
            gaps: rng.chance(0.5),
            activation,
            kv,
            spread: rng.pick(&[Spread::Normal, Spread::Normal, Spread::Outliers]),
            sampled: 0,
            offset: 0,
        };
        if i < 6 {
            cases.push(Box::new(ChunkIndependence(case.clone())));
        }
        cases.push(Box::new(case));
    }
}

/// Heads, elements of a latent, and rotated ones: the published shape and odd ones, one of them in halves of words as bytes.
const LATENTS: [(usize, usize, usize); 7] =
    [(16, 512, 64), (1, 6, 2), (5, 20, 10), (3, 80, 16), (20, 64, 8), (7, 24, 12), (33, 128, 32)];

pub(super) fn latent_kv<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    // The last has more than a warp keeps.
    for (i, (heads, rank, rotary)) in LATENTS.into_iter().chain([(2, 700, 8)]).enumerate() {
        let padding = [0, 3, 0, 1][i % 4];
        let case = LatentKvCase {
            rows: [3, 1, 5, 0, 33, 17][i % 6],
            padding,
            heads,
            plain: [128, 0, 7, 16][i % 4],
            rank,
            rotary,
            interleaved: i % 2 == 0,
            page: PAGES[i % 4],
            activation,
            kv,
            spread: rng.pick(&spreads(kv, i)),
            live: live_for(rng, padding, Live::Tokens),
        };
        with_rows(cases, case);
    }
}

pub(super) fn latent_attention<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, case) in latent_attention_cases(rng, activation, kv).into_iter().enumerate() {
        if (2..6).contains(&i) {
            cases.push(Box::new(ChunkIndependence(case.clone())));
        }
        cases.push(Box::new(LatentAttentionCase(case)));
    }
}

pub(super) fn latent_attention_cases(rng: &mut Rng, activation: DType, kv: DType) -> Vec<AttentionCase> {
    let fixed = [
        vec![Length { rows: 2, context: 70 }, Length { rows: 1, context: 300 }],
        vec![],
        vec![Length { rows: 1, context: 600 }],
        vec![Length { rows: 70, context: 80 }],
        vec![Length { rows: 17, context: 100 }, Length { rows: 0, context: 0 }, Length { rows: 1, context: 290 }],
        vec![Length { rows: 3, context: 300 }, Length { rows: 1, context: 257 }, Length { rows: 40, context: 40 }],
    ];
    let case = |i: usize| {
        let (heads, rank, rotary) = LATENTS[i % LATENTS.len()];
        AttentionCase {
            sequences: fixed.get(i).cloned().unwrap_or_else(|| lengths(rng, 1 + i % 5, 200)),
            padding: [0, 2][i % 2],
            heads,
            groups: 1,
            size: rank + rotary,
            latent: Some(rank),
            page: PAGES[(i + i / 4) % 4],
            window: None,
            softcap: None,
            sinks: false,
            drop_pages: false,
            gaps: rng.chance(0.5),
            activation,
            kv,
            spread: rng.pick(&[Spread::Normal, Spread::Normal, Spread::Outliers]),
            sampled: 0,
            offset: 0,
        }
    };
    (0..10).map(case).collect()
}
