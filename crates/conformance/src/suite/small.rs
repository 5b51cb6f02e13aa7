//! Odd and small shapes of every operation.
use super::Cases;
use super::attention::{attention, latent_attention, latent_kv, rope_kv};
use super::experts::{combine, grouped_linear, route};
use crate::case::OpCase;
use crate::cases::act_mul::ActMulCase;
use crate::cases::embed::EmbedCase;
use crate::cases::gather::GatherCase;
use crate::cases::head_linear::HeadLinearCase;
use crate::cases::linear::{LinearCase, Residual};
use crate::cases::linear_act_mul::LinearActMulCase;
use crate::cases::norm::NormCase;
use crate::cases::sample::{Logits, SampleCase};
use crate::cases::softcap::SoftcapCase;
use crate::matrix::Spread;
use crate::property::{ReadsAsBf16, RowIndependence};
use crate::rng::Rng;
use anyfleet_tensor::ops::Activation;
use anyfleet_tensor::{Backend, Caps, DType, Live, SampleMode, WeightFormat};

/// Sizes at which tiles, vectors and their remainders meet.
pub(super) const ODD: [usize; 16] = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 80, 100, 128, 257, 515];

pub(super) fn small<B: Backend>(caps: &Caps, rng: &mut Rng) -> Cases<B> {
    let mut cases: Cases<B> = Vec::new();
    for &activation in &caps.activations {
        norm(&mut cases, rng, activation);
        act_mul(&mut cases, rng, activation);
        gather(&mut cases, rng, activation);
        combine(&mut cases, rng, activation);
        for &weight in &caps.weights {
            embed(&mut cases, rng, activation, weight);
            linear(&mut cases, rng, activation, weight);
            linear_act_mul(&mut cases, rng, activation, weight);
            grouped_linear(&mut cases, rng, activation, weight);
        }
        for &kv in &caps.kv {
            rope_kv(&mut cases, rng, activation, kv);
            attention(&mut cases, rng, activation, kv);
        }
        for &kv in &caps.latent {
            latent_kv(&mut cases, rng, activation, kv);
            latent_attention(&mut cases, rng, activation, kv);
        }
        // Only of devices that have latent attention.
        for &weight in caps.weights.iter().filter(|_| !caps.latent.is_empty()) {
            head_linear(&mut cases, rng, activation, weight);
        }
    }
    route(&mut cases, rng);
    softcap(&mut cases, rng);
    sample(&mut cases, rng);
    cases
}

/// A live count where there is padding, either way where there is none.
pub(super) fn live_for(rng: &mut Rng, padding: usize, bound: Live) -> Live {
    if padding == 0 && rng.chance(0.5) { Live::All } else { bound }
}

pub(super) fn spread(rng: &mut Rng) -> Spread {
    rng.pick(&[Spread::Normal, Spread::Outliers, Spread::Extreme])
}

/// As [`with_rows`], and where the matrix is f8 also the property that it gives the bits of the bf16 matrix it reads as.
pub(super) fn with_matrix<B: Backend, C: OpCase + Clone + 'static>(cases: &mut Cases<B>, case: C) {
    if case.types().weight == Some(WeightFormat::F8) {
        cases.push(Box::new(ReadsAsBf16(case.clone())));
    }
    with_rows(cases, case);
}

/// Adds a case and, unless it is trivial, the property that its rows do not depend on each other.
pub(super) fn with_rows<B: Backend, C: OpCase + Clone + 'static>(cases: &mut Cases<B>, case: C) {
    if case.rows() > 1 {
        cases.push(Box::new(RowIndependence(case.clone())));
    }
    cases.push(Box::new(case));
}

fn embed<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    // The last is more than a block of threads copies at once.
    let shapes = [(1, 0, 17, 1), (3, 2, 80, 100), (17, 0, 515, 64), (0, 4, 3, 8), (0, 0, 3, 8), (2, 1, 3, 5002)];
    for (rows, padding, vocab, width) in shapes {
        let (live, sampled) = (live_for(rng, padding, Live::Tokens), rows == 17);
        with_matrix(cases, EmbedCase { rows, padding, vocab, width, activation, weight, scale: 1.0, sampled, live });
    }
    for (sampled, scale) in [(false, 55.5), (true, 1.0), (true, 0.3), (false, 11.25)] {
        let (rows, padding) = (rng.range(1, 40), rng.below(5));
        let (vocab, width, live) = (rng.pick(&ODD), rng.pick(&ODD), Live::Tokens);
        with_matrix(cases, EmbedCase { rows, padding, vocab, width, activation, weight, scale, sampled, live });
    }
}

fn norm<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType) {
    let widths = ODD.into_iter().chain([1000, 1024, 3584, 4096]);
    for (i, width) in widths.enumerate() {
        let (rows, padding) = ([1, 3, 0, 33, 2][i % 5], [0, 2, 0, 5][i % 4]);
        let live = live_for(rng, padding, Live::Tokens);
        // The models' own are too small to be seen in most types.
        let (in_place, spread, eps) = (rng.chance(0.5), spread(rng), [1e-5, 0.25, 1e-6][i % 3]);
        let residual = [Residual::None, Residual::InPlace, Residual::Other, Residual::None, Residual::InPlace][i % 5];
        with_rows(cases, NormCase { rows, padding, width, activation, in_place, residual, spread, eps, live });
    }
}

fn act_mul<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType) {
    for (i, width) in ODD.into_iter().enumerate() {
        for function in [Activation::Silu, Activation::GeluTanh] {
            let (rows, padding) = ([1, 3, 0, 17][i % 4], [0, 2, 1][i % 3]);
            let (spread, live) = (spread(rng), live_for(rng, padding, Live::Tokens));
            with_rows(cases, ActMulCase { rows, padding, width, activation, function, spread, live });
        }
    }
}

fn gather<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType) {
    for (rows, padding, tokens, width) in [(1, 0, 1, 1), (3, 2, 17, 80), (64, 0, 5, 515), (0, 3, 4, 16), (0, 0, 1, 3)] {
        let live = live_for(rng, padding, Live::LogitRows);
        with_rows(cases, GatherCase { rows, padding, tokens, width, activation, live });
    }
}

fn linear<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    let mut shapes = vec![
        (1, 0, 1, 1),
        (1, 3, 17, 3),
        (3, 0, 16, 16),
        (17, 2, 80, 100),
        (0, 3, 33, 64),
        (0, 0, 16, 8),
        (64, 0, 64, 515),
        (5, 0, 515, 80),
        (33, 7, 100, 257),
        (2, 0, 1000, 64),
        (1, 0, 257, 2049),
        (65, 1, 31, 128),
        (130, 9, 150, 97),
    ];
    shapes.extend((0..6).map(|_| (rng.range(1, 40), rng.below(4), rng.pick(&ODD), rng.pick(&ODD))));
    for (rows, padding, n, k) in shapes {
        let case = LinearCase {
            padding,
            f32_out: rng.chance(0.3),
            bias: rng.chance(0.5),
            residual: rng.pick(&[Residual::None, Residual::Other, Residual::InPlace]),
            spread: spread(rng),
            live: live_for(rng, padding, live_by_width(n)),
            ..LinearCase::plain(rows, n, k, activation, weight)
        };
        // In place, the output has the residual's type.
        let f32_out = case.f32_out && case.residual != Residual::InPlace;
        with_matrix(cases, LinearCase { f32_out, ..case });
    }
    // Magnitudes that a narrower type does not hold, in every way of computing; what else is added would hide them.
    for (rows, padding, n, k) in [(3, 0, 33, 80), (5, 66, 40, 33), (70, 5, 80, 97)] {
        for spread in [Spread::Extreme, Spread::Mixed] {
            let live = live_for(rng, padding, Live::Tokens);
            let case = LinearCase::plain(rows, n, k, activation, weight);
            with_matrix(cases, LinearCase { padding, spread, live, ..case });
        }
    }
}

/// The head's rows are bounded by the logit rows, a layer's by the tokens.
fn live_by_width(n: usize) -> Live {
    if n > 500 { Live::LogitRows } else { Live::Tokens }
}

fn linear_act_mul<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    let mut shapes = vec![
        (1, 0, 1, 1),
        (3, 2, 17, 80),
        (17, 0, 100, 33),
        (0, 2, 16, 16),
        (33, 0, 128, 64),
        (1, 0, 515, 257),
        (70, 3, 90, 130),
    ];
    shapes.extend((0..3).map(|_| (rng.range(1, 30), rng.below(4), rng.pick(&ODD), rng.pick(&ODD))));
    for (rows, padding, width, k) in shapes {
        let case = LinearActMulCase {
            rows,
            padding,
            width,
            k,
            activation,
            weight,
            bias: rng.chance(0.5),
            function: rng.pick(&[Activation::Silu, Activation::GeluTanh]),
            spread: spread(rng),
            live: live_for(rng, padding, Live::Tokens),
            sampled: 0,
        };
        with_matrix(cases, case);
    }
    for (rows, padding, width, k) in [(3, 0, 17, 80), (5, 66, 20, 33), (70, 5, 40, 97)] {
        for spread in [Spread::Extreme, Spread::Mixed] {
            let function = rng.pick(&[Activation::Silu, Activation::GeluTanh]);
            let (bias, live, sampled) = (false, live_for(rng, padding, Live::Tokens), 0);
            let case =
                LinearActMulCase { rows, padding, width, k, activation, weight, bias, function, spread, live, sampled };
            with_matrix(cases, case);
        }
    }
}
fn head_linear<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    // Rows, padding, heads, output and input features.
    let mut shapes = vec![
        (1, 0, 1, 1, 1),
        (3, 2, 16, 33, 64),
        (17, 0, 5, 22, 40),
        (0, 3, 4, 16, 16),
        (40, 0, 3, 80, 97),
        (70, 6, 2, 40, 130),
        (130, 0, 2, 70, 33),
        (2, 0, 20, 64, 128),
    ];
    shapes.extend(
        (0..2).map(|_| (rng.range(1, 40), rng.below(4), rng.range(1, 6), rng.pick(&ODD[..13]), rng.pick(&ODD))),
    );
    for (i, (rows, padding, heads, n, k)) in shapes.into_iter().enumerate() {
        let (spread, live) = (spread(rng), live_for(rng, padding, Live::Tokens));
        let (n, k) = ((n, [0, 8, 3][i % 3]), (k, [0, 5, 64, 4][i % 4]));
        with_matrix(cases, HeadLinearCase { rows, padding, heads, n, k, activation, weight, spread, live });
    }
}
fn softcap<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng) {
    for (i, vocab) in [1, 3, 17, 80, 515, 4099].into_iter().enumerate() {
        let (rows, padding, cap) = ([3, 1, 17][i % 3], [0, 2][i % 2], [30.0, 1.0, 0.01, 1e6][i % 4]);
        with_rows(cases, SoftcapCase { rows, padding, vocab, cap, live: live_for(rng, padding, Live::LogitRows) });
    }
    let (rows, padding, vocab) = (rng.range(1, 40), rng.below(4), rng.pick(&ODD));
    with_rows(cases, SoftcapCase { rows, padding, vocab, cap: 20.0, live: Live::LogitRows });
}

fn sample<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng) {
    for (i, vocab) in [1, 3, 17, 19, 20, 21, 80, 515, 1000, 4099].into_iter().enumerate() {
        for logits in [Logits::Smooth, Logits::Ties, Logits::Odd] {
            let (rows, padding) = ([33, 1, 16][i % 3], [0, 3][i % 2]);
            let live = live_for(rng, padding, Live::LogitRows);
            let case = SampleCase { rows, padding, vocab, logits, mode: None, adjusted: true, masked: false, live };
            with_rows(cases, case);
        }
    }
    let random = SampleCase {
        rows: 200,
        padding: 0,
        vocab: 100,
        logits: Logits::Smooth,
        mode: Some(SampleMode::Random),
        adjusted: true,
        masked: false,
        live: Live::All,
    };
    cases.push(Box::new(random));
    for (vocab, logits, adjusted) in [
        (1, Logits::Smooth, true),
        (31, Logits::Odd, true),
        (32, Logits::Smooth, false),
        (100, Logits::Plateaus, true),
        (515, Logits::Odd, true),
        (4099, Logits::Ties, false),
    ] {
        let (rows, padding) = (35, rng.below(3));
        let live = live_for(rng, padding, Live::LogitRows);
        with_rows(cases, SampleCase { rows, padding, vocab, logits, mode: None, adjusted, masked: true, live });
    }
    // Vocabularies that kernels read in many pieces.
    for (rows, vocab, logits) in [(24, 4099, Logits::Plateaus), (5, 60_001, Logits::Smooth)] {
        let live = Live::LogitRows;
        let case = SampleCase { rows, padding: 1, vocab, logits, mode: None, adjusted: true, masked: false, live };
        cases.push(Box::new(SampleCase { masked: true, ..case.clone() }));
        cases.push(Box::new(case));
    }
}
