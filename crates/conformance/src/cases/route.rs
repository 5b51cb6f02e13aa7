//! Choice of experts, and the order of pairs.
use super::act_mul::RELATIVE_ERROR;
use crate::case::{Case, Failure, OpCase, Piece, Selection, Types, execute, live_of};
use crate::expect::{Errors, Expected, Tolerance, Want};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{ExpertGroups, GroupScore, Route, Routing, Scoring};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result, Tensor};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct RouteCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Experts there are.
    pub experts: usize,
    /// Experts a row takes.
    pub per_token: usize,
    /// What a score is.
    pub scoring: Scoring,
    /// Adds a bias to the scores that choose.
    pub bias: bool,
    /// Experts are those of the best groups.
    pub groups: Option<ExpertGroups>,
    /// Divides weights by their sum.
    pub renormalise: bool,
    /// Some experts of a row have equal logits.
    pub ties: bool,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    logits: Vec<f32>,
    bias: Vec<f32>,
}

/// Multiplies the weights.
const SCALE: f32 = 1.75;

/// Scores that differ do so by this at least: what a device's `exp` may be off does not decide.
const APART: f64 = 1e-5;

impl RouteCase {
    /// What experts of a row are chosen by.
    fn keys(&self, logits: &[f32], bias: &[f32]) -> Vec<f64> {
        match self.scoring {
            // Softmax is monotonic where nothing is added to it.
            Scoring::Softmax if !self.bias && !self.adds_keys() => logits.iter().map(|&l| l as f64).collect(),
            _ => {
                let add = |(i, score): (usize, f64)| score + bias.get(i).map_or(0.0, |&b| b as f64);
                self.scores(logits).into_iter().enumerate().map(add).collect()
            }
        }
    }

    /// Keys are added up, so they must be scores.
    fn adds_keys(&self) -> bool {
        self.groups.is_some_and(|groups| groups.score == GroupScore::TwoHighest)
    }

    /// The groups in the order in which they are taken, with what they are chosen by.
    fn groups(&self, keys: &[f64]) -> Vec<(f64, usize)> {
        let Some(ExpertGroups { count, score, .. }) = self.groups else { return vec![(0.0, 0)] };
        let of_group = |(group, keys): (usize, &[f64])| {
            let mut keys = keys.to_vec();
            keys.sort_by(|a, b| b.total_cmp(a));
            let taken = if score == GroupScore::TwoHighest { 2 } else { 1 };
            (keys.iter().take(taken).sum(), group)
        };
        let mut groups: Vec<(f64, usize)> = keys.chunks(self.experts / count).enumerate().map(of_group).collect();
        groups.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        groups
    }

    /// Experts that may be chosen.
    fn allowed(&self, keys: &[f64]) -> Vec<usize> {
        let Some(ExpertGroups { count, kept, .. }) = self.groups else { return (0..self.experts).collect() };
        let size = self.experts / count;
        self.groups(keys)[..kept].iter().flat_map(|&(_, group)| group * size..(group + 1) * size).collect()
    }

    fn scores(&self, logits: &[f32]) -> Vec<f64> {
        let logits = logits.iter().map(|&l| l as f64);
        match self.scoring {
            Scoring::Softmax => {
                let most = logits.clone().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = logits.clone().map(|l| (l - most).exp()).sum();
                logits.map(|l| (l - most).exp() / sum).collect()
            }
            _ => logits.map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        }
    }

    /// Chosen experts, the best first, and their weights.
    fn choose(&self, logits: &[f32], bias: &[f32]) -> (Vec<usize>, Vec<f64>) {
        let (keys, scores) = (self.keys(logits, bias), self.scores(logits));
        let mut experts = self.allowed(&keys);
        experts.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]).then(a.cmp(&b)));
        experts.truncate(self.per_token);
        let sum: f64 = experts.iter().map(|&e| scores[e]).sum();
        let factor = if self.renormalise { SCALE as f64 / sum } else { SCALE as f64 };
        let weights = experts.iter().map(|&e| scores[e] * factor).collect();
        (experts, weights)
    }

    /// Whether a device that rounds takes the same choice.
    fn is_clear(&self, logits: &[f32], bias: &[f32]) -> bool {
        let all = self.keys(logits, bias);
        if let Some(ExpertGroups { kept, .. }) = self.groups
            && let [last, next, ..] = self.groups(&all)[kept - 1..]
            && last.0 - next.0 < APART
        {
            return false;
        }
        let mut keys: Vec<(f64, u32)> = self.allowed(&all).into_iter().map(|e| (all[e], logits[e].to_bits())).collect();
        keys.sort_by(|a, b| b.0.total_cmp(&a.0));
        // Equal logits without a bias are equal in any arithmetic.
        let equal = |a: &(f64, u32), b: &(f64, u32)| !self.bias && a.1 == b.1;
        keys.windows(2).take(self.per_token).all(|w| w[0].0 - w[1].0 > APART || equal(&w[0], &w[1]))
    }

    fn row(&self, rng: &mut Rng, bias: &[f32]) -> Vec<f32> {
        loop {
            let mut row: Vec<f32> = rng.normals(self.experts, 2.5);
            if self.ties {
                for _ in 0..self.experts.div_ceil(2) {
                    row[rng.below(self.experts)] = row[rng.below(self.experts)];
                }
            }
            if self.is_clear(&row, bias) {
                return row;
            }
        }
    }
}

impl OpCase for RouteCase {
    const OP: &'static str = "route";
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
        let bias = if self.bias { rng.normals(self.experts, 0.3) } else { Vec::new() };
        let logits = (0..self.rows).flat_map(|_| self.row(rng, &bias)).collect();
        Host { logits, bias }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let (capacity, experts, per_token) = (selection.capacity(), self.experts, self.per_token);
        let pairs = capacity * per_token;
        let rows = selection.gather(&host.logits, experts);
        let logits = stage.input("logits", DType::F32, &[capacity, experts], &rows)?;
        let bias = if self.bias { Some(stage.input("bias", DType::F32, &[experts], &host.bias)?) } else { None };
        // Rows of one element are contiguous, whatever surrounds them.
        let mut flat = |name, dtype, shape: [usize; 2]| {
            let list = stage.output(name, dtype, &[shape[0] * shape[1]])?;
            Ok(Tensor::from_buffer_at(list.buffer().clone(), list.offset(), dtype, &shape))
        };
        let routing = Routing {
            weights: flat("weights", DType::F32, [capacity, per_token])?,
            places: flat("places", DType::U32, [capacity, per_token])?,
            rows: stage.output("rows", DType::U32, &[pairs])?,
            offsets: stage.output("offsets", DType::U32, &[experts + 1])?,
            hits: stage.output("hits", DType::U32, &[1 + experts.min(pairs)])?,
        };
        let live = live_of(self.live, selection.padding);
        let (scoring, groups, renormalise) = (self.scoring, self.groups, self.renormalise);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let (routing, logits, bias, scale) = (&routing, &logits, bias.as_ref(), SCALE);
            enc.route(Route { routing, logits, bias, scoring, groups, renormalise, scale, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let logits = |r: usize| &host.logits[r * self.experts..][..self.experts];
        let chosen: Vec<_> = selection.rows.iter().map(|&r| self.choose(logits(r), &host.bias)).collect();
        let (mut places, mut rows, mut offsets, mut hits) =
            (vec![0; chosen.len() * self.per_token], Vec::new(), vec![0], Vec::new());
        for expert in 0..self.experts {
            for (row, (experts, _)) in chosen.iter().enumerate() {
                let Some(j) = experts.iter().position(|&e| e == expert) else { continue };
                places[row * self.per_token + j] = rows.len();
                rows.push(row);
            }
            if rows.len() > offsets[expert] {
                hits.push(expert);
            }
            offsets.push(rows.len());
        }
        hits.insert(0, hits.len());
        let near = |&value: &f64| vec![Want::Near { value, scale: value }];
        let exact = |list: Vec<usize>| Expected::dense(list.into_iter().map(|v| vec![Want::Exact(v as f64)]));
        let weights = Expected::dense(chosen.iter().flat_map(|(_, weights)| weights.iter().map(near)));
        vec![weights, exact(places), exact(rows), exact(offsets), exact(hits)]
    }

    fn pieces(&self, _host: &Host, _row: usize, position: usize) -> Vec<Piece> {
        (position * self.per_token..(position + 1) * self.per_token).map(|i| Piece::row(0, i)).collect()
    }

    fn tolerance(&self) -> Tolerance {
        // A logit less the largest, up to some 25 here, is rounded before exp makes a relative error of it.
        let arithmetic = 3.0 * RELATIVE_ERROR;
        Tolerance {
            nmse: arithmetic.powi(2),
            arithmetic,
            reason: "exp of f32, a sum of as many as experts, a quotient",
        }
    }
}

/// Rows of logits that are not numbers, infinite, or all the same: whichever experts these get, they are `k` different ones,
/// and pairs are in order.
#[derive(Debug)]
pub struct AnyLogits(pub RouteCase);

/// Logits that no model should have.
const ODD: [f32; 6] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 0.0, -0.0];

impl AnyLogits {
    fn draw(&self, rng: &mut Rng) -> Host {
        let RouteCase { rows, experts, bias, .. } = self.0;
        let row = |rng: &mut Rng| {
            let (odd, share) = (rng.pick(&ODD), rng.pick(&[0.1, 0.7, 1.0]));
            (0..experts).map(|_| if rng.chance(share) { odd } else { rng.normal() }).collect::<Vec<f32>>()
        };
        let logits = (0..rows).flat_map(|_| row(rng)).collect();
        Host { logits, bias: if bias { rng.normals(experts, 0.3) } else { Vec::new() } }
    }

    /// Says what is wrong with a routing, from its lists without the weights.
    fn wrong(&self, [places, order, offsets, hits]: [&[usize]; 4]) -> Option<String> {
        let RouteCase { rows, experts, per_token, .. } = self.0;
        let pairs = rows * per_token;
        let ascending = offsets.windows(2).all(|w| w[0] <= w[1]);
        if !ascending || offsets[0] != 0 || offsets[experts] != pairs {
            return Some(format!("offsets {offsets:?} do not divide {pairs} pairs"));
        }
        let hit: Vec<usize> = (0..experts).filter(|&e| offsets[e] < offsets[e + 1]).collect();
        if hits[0] != hit.len() || hits[1..=hit.len()] != hit {
            return Some(format!("hits {hits:?} are not the experts that have pairs, {hit:?}"));
        }
        let mut taken = vec![false; pairs];
        for (row, places) in places[..pairs].chunks(per_token).enumerate() {
            let mut chosen = Vec::new();
            for &place in places {
                if place >= pairs || std::mem::replace(&mut taken[place], true) {
                    return Some(format!("row {row} has place {place} of {pairs}, which does not exist or is taken"));
                }
                if order[place] != row {
                    return Some(format!("place {place} of row {row} is said to be of row {}", order[place]));
                }
                chosen.push(offsets.partition_point(|&offset| offset <= place) - 1);
            }
            chosen.sort_unstable();
            chosen.dedup();
            if chosen.len() < per_token {
                return Some(format!("row {row} got {per_token} experts that are not different: {chosen:?}"));
            }
        }
        let sorted = |e: usize| order[offsets[e]..offsets[e + 1]].is_sorted();
        (0..experts).find(|&e| !sorted(e)).map(|e| format!("the rows of expert {e} are not in order"))
    }
}

impl<B: Backend> Case<B> for AnyLogits {
    fn op(&self) -> &'static str {
        RouteCase::OP
    }
    fn types(&self) -> Types {
        OpCase::types(&self.0)
    }
    fn label(&self) -> String {
        format!("{self:?}")
    }
    fn largest_buffer(&self) -> u64 {
        0
    }

    fn check(&self, backend: &B, rng: &mut Rng, errors: &mut Errors) -> Result<(), Failure> {
        let host = self.draw(rng);
        let selection = Selection::all(self.0.rows, self.0.padding);
        let staged = self.0.stage(backend, &host, &selection, Placement::Scattered(rng.bits()))?;
        let after = execute(backend, &staged, self.0.rows, None)?;
        let lists: Vec<Vec<usize>> = staged
            .outputs(&after)
            .map(|(operand, snapshot)| {
                let words = operand.rows().into_iter().filter_map(|row| operand.row(snapshot, row));
                words.map(|bytes| u32::from_le_bytes(bytes.try_into().expect("a word")) as usize).collect()
            })
            .collect();
        let [_, places, order, offsets, hits] = &lists[..] else {
            return Err("a routing has five lists".to_owned().into());
        };
        errors.compared += self.0.rows * self.0.per_token;
        self.wrong([places, order, offsets, hits]).map_or(Ok(()), |wrong| Err(wrong.into()))
    }
}
