//! Small shapes of the operations of experts.
use super::Cases;
use super::small::{ODD, live_for, spread, with_matrix, with_rows};
use crate::cases::combine::CombineCase;
use crate::cases::grouped_linear::{GroupedLinearActMulCase, GroupedLinearCase};
use crate::cases::linear::Residual;
use crate::cases::route::{AnyLogits, RouteCase};
use crate::rng::Rng;
use anyfleet_tensor::ops::{Activation, ExpertGroups, GroupScore, Scoring};
use anyfleet_tensor::{Backend, DType, Live, WeightFormat};

pub(super) fn route<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng) {
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

pub(super) fn combine<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType) {
    for (rows, padding, per_token, width) in
        [(1, 0, 1, 1), (3, 2, 2, 17), (17, 0, 8, 80), (0, 2, 3, 8), (33, 3, 4, 515), (5, 0, 6, 64)]
    {
        let residual = rng.pick(&[Residual::None, Residual::Other, Residual::InPlace]);
        let live = live_for(rng, padding, Live::Tokens);
        with_rows(cases, CombineCase { rows, padding, per_token, width, activation, residual, live });
    }
}

/// Both, plain and gated.
pub(super) fn grouped_linear<B: Backend>(cases: &mut Cases<B>, rng: &mut Rng, activation: DType, weight: WeightFormat) {
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
