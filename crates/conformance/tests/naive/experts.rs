//! Operations of a mixture of experts, one number at a time.
use super::ops;
use super::{Mutation, Naive, Packed, View, view};
use anyfleet_tensor::ops::{Activation, ExpertGroups, GroupScore, GroupedLinear, Scoring};

pub struct RouteArgs {
    pub weights: View,
    pub places: View,
    pub rows: View,
    pub offsets: View,
    pub hits: View,
    pub logits: View,
    pub bias: Option<View>,
    pub scoring: Scoring,
    pub groups: Option<ExpertGroups>,
    pub renormalise: bool,
    pub scale: f32,
}

/// Element `i` of a list or table without gaps.
fn list(view: &View, i: usize, value: u32) {
    view.put(i, &[f32::from_bits(value)]);
}

/// Experts of the best groups.
fn allowed(mutation: Mutation, groups: Option<ExpertGroups>, keys: &[f64]) -> Vec<usize> {
    let groups = groups.filter(|_| mutation != Mutation::RouteIgnoresGroups);
    let Some(ExpertGroups { count, kept, score }) = groups else { return (0..keys.len()).collect() };
    let size = keys.len() / count;
    let two = score == GroupScore::TwoHighest && mutation != Mutation::RouteGroupsByHighest;
    let of_group = |group: usize| {
        let mut keys = keys[group * size..][..size].to_vec();
        keys.sort_by(|a, b| b.total_cmp(a));
        keys[0] + keys.get(1).filter(|_| two).unwrap_or(&0.0)
    };
    let scores: Vec<f64> = (0..count).map(of_group).collect();
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let mut best = order[..kept].to_vec();
    best.sort_unstable();
    best.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
}

pub fn route(mutation: Mutation, live: usize, args: &RouteArgs) {
    let (per_token, experts) = (args.weights.cols(), args.logits.cols());
    let rows = if mutation == Mutation::RouteCountsPadding { args.logits.rows() } else { live };
    let mut chosen: Vec<Vec<usize>> = Vec::new();
    for row in 0..rows {
        let logits: Vec<f64> = args.logits.row(row).into_iter().map(f64::from).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let all: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        let scores: Vec<f64> = match args.scoring {
            Scoring::Softmax => logits.iter().map(|l| (l - most).exp() / all).collect(),
            _ => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        };
        let bias = |e: usize| args.bias.as_ref().map_or(0.0, |bias| f64::from(bias.slice(e, 1)[0]));
        let keys: Vec<f64> = match mutation {
            Mutation::RouteForgetsBias => scores.clone(),
            _ => scores.iter().enumerate().map(|(e, score)| score + bias(e)).collect(),
        };
        let unbiased = mutation == Mutation::RouteGroupsUnbiased;
        let mut order = allowed(mutation, args.groups, if unbiased { &scores } else { &keys });
        if mutation == Mutation::RouteTiesToHighest {
            order.reverse();
        }
        order.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]));
        order.truncate(per_token);
        let values = if mutation == Mutation::RouteWeighsBiased { &keys } else { &scores };
        let sum: f64 = order.iter().map(|&e| values[e]).sum();
        let factor = f64::from(args.scale) / if args.renormalise { sum } else { 1.0 };
        let weights: Vec<f32> = order.iter().map(|&e| (values[e] * factor) as f32).collect();
        args.weights.put(row * per_token, &weights);
        chosen.push(order);
    }
    let mut pairs: Vec<(usize, usize, usize)> = chosen
        .iter()
        .enumerate()
        .flat_map(|(row, experts)| experts.iter().enumerate().map(move |(j, &e)| (e, row, j)))
        .collect();
    pairs.sort_unstable();
    if mutation == Mutation::RouteSortsByToken {
        pairs.sort_by_key(|&(_, row, _)| row);
    }
    for (place, &(_, row, j)) in pairs.iter().enumerate() {
        list(&args.places, row * per_token + j, place as u32);
        list(&args.rows, place, row as u32);
    }
    let mut hits = 0;
    for expert in 0..=experts {
        let before = pairs.iter().filter(|pair| pair.0 < expert).count();
        list(&args.offsets, expert, before as u32);
        if pairs.iter().any(|pair| pair.0 == expert) {
            hits += 1;
            list(&args.hits, hits, expert as u32);
        }
    }
    list(&args.hits, 0, hits as u32);
}

pub struct Grouped {
    x: View,
    rows: Option<View>,
    weight: Packed,
    offsets: View,
}

pub fn grouped(op: &GroupedLinear<'_, Naive>) -> Grouped {
    Grouped { x: view(op.x), rows: op.rows.map(view), weight: op.weight.clone(), offsets: view(op.offsets) }
}

/// Returns how many rows were computed.
pub fn grouped_linear(mutation: Mutation, capacity: usize, out: &View, args: &Grouped) -> usize {
    let Grouped { x, rows, weight, offsets } = args;
    let index = |list: &View, i: usize| list.slice(i, 1)[0].to_bits() as usize;
    let (n, k) = (weight.rows, weight.cols);
    let mut live = 0;
    for expert in 0..weight.stack {
        let (first, mut end) = (index(offsets, expert), index(offsets, expert + 1));
        if mutation == Mutation::GroupedComputesPadding && expert + 1 == weight.stack {
            end = capacity;
        }
        for place in first..end {
            let row = match rows {
                Some(rows) if mutation != Mutation::GroupedIgnoresRows && place < index(offsets, weight.stack) => {
                    index(rows, place)
                }
                _ => place % x.rows(),
            };
            let x = x.row(row);
            let matrix = if mutation == Mutation::GroupedTakesFirstExpert { 0 } else { expert };
            let values: Vec<f32> = (0..n)
                .map(|feature| {
                    let w = &weight.values[(matrix * n + feature) * k..][..k];
                    let products = x.iter().zip(w).map(|(x, w)| x * w);
                    match mutation == Mutation::GroupedOrderDependsOnRows && end - first > 1 {
                        true => products.rev().sum(),
                        false => products.sum::<f32>(),
                    }
                })
                .collect();
            out.put_row(place, &values);
        }
        live = end;
    }
    live
}

pub fn act_mul(mutation: Mutation, live: usize, out: &View, gate_up: &View, activation: Activation) {
    let swapped = if mutation == Mutation::GroupedSwapsHalves { Mutation::ActMulSwapsHalves } else { Mutation::None };
    ops::act_mul(swapped, live, out, gate_up, activation);
}

pub fn combine(
    mutation: Mutation,
    live: usize,
    out: &View,
    x: &View,
    weights: &View,
    places: &View,
    residual: Option<&View>,
) {
    let per_token = weights.cols();
    for row in 0..live {
        let mut sums = vec![0.0f32; out.cols()];
        for j in 0..per_token {
            let place = match mutation {
                Mutation::CombineReadsInOrder => row * per_token + j,
                _ => places.index(row, j) as usize,
            };
            let weight = if mutation == Mutation::CombineForgetsWeights { 1.0 } else { weights.get(row, j) };
            sums.iter_mut().zip(x.row(place)).for_each(|(sum, x)| *sum = weight.mul_add(x, *sum));
        }
        if let Some(residual) = residual.filter(|_| mutation != Mutation::CombineForgetsResidual) {
            sums.iter_mut().zip(residual.row(row)).for_each(|(sum, r)| *sum += r);
        }
        out.put_row(row, &sums);
    }
}
