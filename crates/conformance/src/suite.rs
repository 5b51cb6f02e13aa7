//! The cases of each tier.
use crate::case::{Case, OpCase, Outcome, Types};
use crate::cases::act_mul::ActMulCase;
use crate::cases::attention::{AttentionCase, Length};
use crate::cases::combine::CombineCase;
use crate::cases::embed::EmbedCase;
use crate::cases::gather::GatherCase;
use crate::cases::grouped_linear::{GroupedLinearActMulCase, GroupedLinearCase};
use crate::cases::head_linear::HeadLinearCase;
use crate::cases::latent_attention::LatentAttentionCase;
use crate::cases::latent_kv::LatentKvCase;
use crate::cases::linear::{LinearCase, Residual};
use crate::cases::linear_act_mul::LinearActMulCase;
use crate::cases::norm::NormCase;
use crate::cases::rope_kv::RopeKvCase;
use crate::cases::route::{AnyLogits, RouteCase};
use crate::cases::sample::{Logits, SampleCase};
use crate::cases::softcap::SoftcapCase;
use crate::large;
use crate::matrix::Spread;
use crate::property::{ChunkIndependence, ReadsAsBf16, RowIndependence, agrees_over};
use crate::report::Report;
use crate::rng::Rng;
use anyfleet_tensor::ops::{Activation, ExpertGroups, GroupScore, Scoring};
use anyfleet_tensor::{Backend, Caps, DType, Live, SampleMode, WeightFormat};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// Odd and small shapes, every check, all properties: seconds.
    Small,
    /// Shapes of 8B models, 152k vocabularies, 32k contexts and buffers past 4 GiB, with sampled
    /// references: minutes, and up to 12 GiB of memory.
    Large,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which cases.
    pub tier: Tier,
    /// Inputs and random shapes follow from it; see [`seed_from_env`](crate::rng::seed_from_env).
    pub seed: u64,
    /// Only this op.
    pub op: Option<String>,
    /// Only cases whose label contains this.
    pub case: Option<String>,
}

impl Options {
    /// Everything in a tier.
    pub fn new(tier: Tier, seed: u64) -> Self {
        Options { tier, seed, op: None, case: None }
    }
}

/// Cases as a suite holds them.
pub type Cases<B> = Vec<Box<dyn Case<B>>>;

/// The cases that [`suite`] runs, in its order.
pub fn cases<B: Backend>(caps: &Caps, options: &Options) -> Cases<B> {
    let cases: Cases<B> = match options.tier {
        Tier::Small => small(caps, &mut Rng::for_case(options.seed, "shapes")),
        Tier::Large => large::cases(caps),
    };
    let wanted = |case: &dyn Case<B>| {
        options.op.as_ref().is_none_or(|op| op == case.op())
            && options.case.as_ref().is_none_or(|part| case.label().contains(part))
    };
    cases.into_iter().filter(|case| wanted(case.as_ref())).collect()
}

/// Runs a backend through a tier.
pub fn suite<B: Backend>(backend: &B, options: &Options) -> Report {
    suite_with(backend, options, |_| {})
}

/// Like [`suite`], calling `done` after each case.
pub fn suite_with<B: Backend>(backend: &B, options: &Options, mut done: impl FnMut(&Outcome)) -> Report {
    let mut report = Report::new(backend.caps(), options.seed);
    for case in cases(backend.caps(), options) {
        let outcome = case.run(backend, options.seed);
        done(&outcome);
        report.outcomes.push(outcome);
    }
    report
}

/// Runs choices that the last unit of a token's weight decides: for devices whose `sampling::exp` has the bits of the
/// definition, as those have not whose fused multiply-add is two roundings.
pub fn edges<B: Backend>(backend: &B, seed: u64) -> Report {
    let mut report = Report::new(backend.caps(), seed);
    let (logits, mode, live) = (Logits::Edge, Some(SampleMode::Random), Live::All);
    for vocab in [2, 515, 4099] {
        let case = SampleCase { rows: 16, padding: 0, vocab, logits, mode, adjusted: false, masked: false, live };
        report.outcomes.push(Case::<B>::run(&case, backend, seed));
    }
    report
}

/// Runs attention over caches of each type of one byte without scales, and over bf16 caches that hold the same numbers: both
/// must leave the same bits. Returns how many cases were compared.
///
/// # Errors
/// A line that names the first case in which they differ.
pub fn narrow_caches_agree<B: Backend>(backend: &B, seed: u64) -> Result<usize, String> {
    let caps = backend.caps();
    let narrow = |kv: &&DType| kv.size() == 1 && !kv.is_scaled() && caps.kv.contains(&DType::BF16);
    let mut compared = 0;
    for &kv in caps.kv.iter().filter(narrow) {
        for case in attention_cases(&mut Rng::new(seed), caps.activations[0], kv) {
            agrees_over(&case, DType::BF16, backend, seed)?;
            compared += 1;
        }
    }
    Ok(compared)
}

/// A subset of the small tier for types that are `wanted`: one case of every op and its types and then, as long as
/// `budget` lasts, more.
pub fn quick<B: Backend>(backend: &B, seed: u64, wanted: impl Fn(&Types) -> bool, budget: Duration) -> Report {
    let mut left: BTreeMap<(&str, Types), Cases<B>> = BTreeMap::new();
    for case in cases::<B>(backend.caps(), &Options::new(Tier::Small, seed)) {
        if wanted(&case.types()) {
            left.entry((case.op(), case.types())).or_default().push(case);
        }
    }
    let mut report = Report::new(backend.caps(), seed);
    let end = Instant::now() + budget;
    while !left.is_empty() && (report.outcomes.is_empty() || Instant::now() < end) {
        // The last cases have random shapes.
        let round = left.values_mut().filter_map(Vec::pop);
        report.outcomes.extend(round.map(|case| case.run(backend, seed)));
        left.retain(|_, cases| !cases.is_empty());
    }
    report
}

/// Runs every case once on both backends, which must leave the same bits: what an equal
/// [`numerics`](anyfleet_tensor::Caps::numerics) promises. Returns how many cases were compared.
///
/// # Errors
/// A line that names the first case in which they differ.
pub fn agree<B: Backend>(one: &B, other: &B, options: &Options) -> Result<usize, String> {
    let (caps, others) = (one.caps(), other.caps());
    if caps.numerics != others.numerics {
        return Err(format!("{} and {} do not promise the same bits", caps.numerics, others.numerics));
    }
    let mut compared = 0;
    for case in cases(caps, options) {
        let [mine, theirs] = [one, other].map(|b| case.bits(b, &mut Rng::for_case(options.seed, &case.label())));
        let (Some(mine), Some(theirs)) = (mine?, theirs?) else { continue };
        compared += 1;
        if mine != theirs {
            let (seed, label) = (options.seed, case.label());
            return Err(format!("{} and {} differ with ANYFLEET_SEED={seed} in {label}", caps.device, others.device));
        }
    }
    Ok(compared)
}

/// Sizes at which tiles, vectors and their remainders meet.
const ODD: [usize; 16] = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 80, 100, 128, 257, 515];

fn small<B: Backend>(caps: &Caps, rng: &mut Rng) -> Cases<B> {
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
fn live_for(rng: &mut Rng, padding: usize, bound: Live) -> Live {
    if padding == 0 && rng.chance(0.5) { Live::All } else { bound }
}

fn spread(rng: &mut Rng) -> Spread {
    rng.pick(&[Spread::Normal, Spread::Outliers, Spread::Extreme])
}

/// As [`with_rows`], and where the matrix is f8 also the property that it gives the bits of the bf16 matrix it reads as.
fn with_matrix<B: Backend, C: OpCase + Clone + 'static>(cases: &mut Cases<B>, case: C) {
    if case.types().weight == Some(WeightFormat::F8) {
        cases.push(Box::new(ReadsAsBf16(case.clone())));
    }
    with_rows(cases, case);
}

/// Adds a case and, unless it is trivial, the property that its rows do not depend on each other.
fn with_rows<B: Backend, C: OpCase + Clone + 'static>(cases: &mut Cases<B>, case: C) {
    if case.rows() > 1 {
        cases.push(Box::new(RowIndependence(case.clone())));
    }
    cases.push(Box::new(case));
}

fn embed<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    for (rows, padding, vocab, width) in [(1, 0, 17, 1), (3, 2, 80, 100), (17, 0, 515, 64), (0, 4, 3, 8), (0, 0, 3, 8)]
    {
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

fn route<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng) {
    let shapes = [
        (1, 1, 1),
        (3, 4, 4),
        (17, 8, 2),
        (33, 60, 4),
        (1, 128, 8),
        (70, 128, 8),
        (0, 5, 2),
        (9, 257, 6),
        (4, 1024, 4),
        (300, 16, 3),
    ];
    for (i, (rows, experts, per_token)) in shapes.into_iter().cycle().take(2 * shapes.len()).enumerate() {
        let (padding, scoring) = ([0, 2, 5][i % 3], [Scoring::Softmax, Scoring::Sigmoid][i / shapes.len()]);
        let live = live_for(rng, padding, Live::Tokens);
        let (renormalise, ties) = (i % 2 == 0, i % 4 == 1);
        let bias = i % 3 == 2 && !ties;
        let groups = None;
        with_rows(
            cases,
            RouteCase { rows, padding, experts, per_token, scoring, bias, groups, renormalise, ties, live },
        );
    }
    for (i, (rows, experts, per_token)) in
        [(20, 9, 9), (31, 60, 4), (7, 1024, 33), (3, 200, 200)].into_iter().enumerate()
    {
        let (scoring, bias) = ([Scoring::Softmax, Scoring::Sigmoid][i % 2], i > 1);
        let (padding, renormalise, ties, live) = (i, true, false, Live::Tokens);
        // Of the last, groups are chosen by what is not a number, too.
        let groups = (i == 3).then_some(ExpertGroups { count: 5, kept: 5, score: GroupScore::TwoHighest });
        let case = RouteCase { rows, padding, experts, per_token, scoring, bias, groups, renormalise, ties, live };
        cases.push(Box::new(AnyLogits(case)));
    }
    route_groups(cases, rng);
}

/// Experts in groups, of which a row takes all or some, by both ways to choose them.
fn route_groups<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng) {
    let shapes = [
        (5, 12, 3, 4, 2),
        (33, 160, 6, 8, 3),
        (9, 64, 5, 1, 1),
        (70, 33, 3, 11, 4),
        (3, 256, 8, 8, 4),
        (7, 60, 2, 60, 7),
    ];
    for (i, (rows, experts, per_token, count, kept)) in shapes.into_iter().cycle().take(2 * shapes.len()).enumerate() {
        let two = i >= shapes.len();
        let score = if two { GroupScore::TwoHighest } else { GroupScore::Highest };
        let (padding, groups) = (i % 3, Some(ExpertGroups { count, kept, score }));
        let (scoring, bias) = ([Scoring::Softmax, Scoring::Sigmoid][(i + usize::from(two)) % 2], i % 3 != 1);
        let (live, renormalise, ties) = (live_for(rng, padding, Live::Tokens), i % 2 == 0, false);
        let case = RouteCase { rows, padding, experts, per_token, scoring, bias, groups, renormalise, ties, live };
        with_rows(cases, case);
    }
    for (i, score) in [GroupScore::Highest, GroupScore::TwoHighest].into_iter().enumerate() {
        let (scoring, groups) =
            ([Scoring::Sigmoid, Scoring::Softmax][i], Some(ExpertGroups { count: 6, kept: 2, score }));
        let (rows, padding, experts, per_token, bias, renormalise, ties) = (20, 2, 36, 5, i == 0, true, false);
        let live = Live::Tokens;
        let case = RouteCase { rows, padding, experts, per_token, scoring, bias, groups, renormalise, ties, live };
        cases.push(Box::new(AnyLogits(case)));
    }
}

fn combine<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType) {
    for (rows, padding, per_token, width) in
        [(1, 0, 1, 1), (3, 2, 2, 17), (17, 0, 8, 80), (0, 2, 3, 8), (33, 3, 4, 515), (5, 0, 6, 64)]
    {
        let residual = rng.pick(&[Residual::None, Residual::Other, Residual::InPlace]);
        let live = live_for(rng, padding, Live::Tokens);
        with_rows(cases, CombineCase { rows, padding, per_token, width, activation, residual, live });
    }
}

/// Both, plain and gated.
fn grouped_linear<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
    let mut shapes = vec![
        // Pairs, padding, experts, rows of x, output and input features.
        (1, 0, 1, 0, 1, 1),
        (8, 0, 8, 1, 33, 64),
        (6, 10, 3, 5, 17, 80),
        (0, 4, 4, 3, 16, 16),
        (40, 0, 60, 9, 40, 70),
        (150, 6, 2, 0, 70, 97),
        (200, 0, 5, 60, 31, 130),
        (20, 3, 200, 7, 24, 40),
    ];
    shapes.extend((0..3).map(|_| {
        let (pairs, tokens) = (rng.range(1, 60), rng.below(12));
        (pairs, rng.below(4), rng.range(1, 12), tokens, rng.pick(&ODD[..13]), rng.pick(&ODD))
    }));
    for (pairs, padding, experts, tokens, n, k) in shapes {
        let (uneven, spread) = (rng.chance(0.4), spread(rng));
        let case =
            GroupedLinearCase { pairs, padding, experts, uneven, tokens, n, k, activation, weight, spread, sampled: 0 };
        let function = rng.pick(&[Activation::Silu, Activation::GeluTanh]);
        with_matrix(cases, GroupedLinearActMulCase { product: case.clone(), function, gated: rng.chance(0.7) });
        with_matrix(cases, case);
    }
}

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

fn rope_kv<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, (heads, groups, size)) in HEADS.into_iter().cycle().take(14).enumerate() {
        let padding = [0, 3, 0, 1][i % 4];
        let spreads = match (kv, i % 2) {
            // Values of 1e5 do not fit f16, and what a store makes of them is not specified.
            (DType::F16, _) => [Spread::Normal, Spread::Outliers],
            // Magnitudes below the smallest normal one, and above the largest.
            (DType::F8, 0) => [Spread::Normal; 2],
            (DType::F8, _) => [Spread::Mixed, Spread::Extreme],
            _ => [Spread::Outliers, Spread::Extreme],
        };
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
            spread: rng.pick(&spreads),
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

fn attention<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, case) in attention_cases(rng, activation, kv).into_iter().enumerate() {
        if (3..12).contains(&i) {
            cases.push(Box::new(ChunkIndependence(case.clone())));
        }
        cases.push(Box::new(case));
    }
    attention_options(cases, rng, activation, kv);
}

fn attention_cases(rng: &mut Rng, activation: DType, kv: DType) -> Vec<AttentionCase> {
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

/// Heads, elements of a latent, and rotated ones: the published shape and odd ones.
const LATENTS: [(usize, usize, usize); 7] =
    [(16, 512, 64), (1, 6, 2), (5, 22, 10), (3, 80, 16), (20, 64, 8), (7, 24, 12), (33, 128, 32)];

fn latent_kv<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    for (i, (heads, rank, rotary)) in LATENTS.into_iter().enumerate() {
        let padding = [0, 3, 0, 1][i % 4];
        // Values of 1e5 do not fit f16, and what a store makes of them is not specified.
        let spreads =
            if kv == DType::F16 { [Spread::Normal, Spread::Outliers] } else { [Spread::Outliers, Spread::Extreme] };
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
            spread: rng.pick(&spreads),
            live: live_for(rng, padding, Live::Tokens),
        };
        with_rows(cases, case);
    }
}

fn latent_attention<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, kv: DType) {
    let fixed = [
        vec![Length { rows: 2, context: 70 }, Length { rows: 1, context: 300 }],
        vec![],
        vec![Length { rows: 1, context: 600 }],
        vec![Length { rows: 70, context: 80 }],
        vec![Length { rows: 17, context: 100 }, Length { rows: 0, context: 0 }, Length { rows: 1, context: 290 }],
        vec![Length { rows: 3, context: 300 }, Length { rows: 1, context: 257 }, Length { rows: 40, context: 40 }],
    ];
    for i in 0..10 {
        let (heads, rank, rotary) = LATENTS[i % LATENTS.len()];
        let case = AttentionCase {
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
        };
        if (2..6).contains(&i) {
            cases.push(Box::new(ChunkIndependence(case.clone())));
        }
        cases.push(Box::new(LatentAttentionCase(case)));
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
        with_rows(cases, HeadLinearCase { rows, padding, heads, n, k, activation, weight, spread, live });
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
