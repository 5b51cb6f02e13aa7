//! A matrix product for each expert, plain and gated.
use super::linear;
use super::linear_act_mul::want_activated;
use crate::case::{OpCase, Piece, Selection, Types};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::{Matrix, Spread};
use crate::number::{as_operand, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{Activation, GroupedLinear, GroupedLinearActMul};
use anyfleet_tensor::{Backend, Caps, DType, Encoder, Live, Result, Tensor, WeightFormat};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct GroupedLinearCase {
    /// Pairs of a row and an expert.
    pub pairs: usize,
    /// Rows of `out` past them.
    pub padding: usize,
    /// Experts there are.
    pub experts: usize,
    /// Most pairs are those of a few experts.
    pub uneven: bool,
    /// Rows of `x`, which pairs share; 0 where each has its own, in their order.
    pub tokens: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Type of `x` and `out`.
    pub activation: DType,
    /// Type the matrices are kept in.
    pub weight: WeightFormat,
    /// Magnitudes of `x` and of the matrices.
    pub spread: Spread,
    /// Compute the reference of this many columns a row; 0 for all.
    pub sampled: usize,
}

/// The same with a gated activation; `n` columns of the output are half the features of a matrix.
#[derive(Clone, Debug)]
pub struct GroupedLinearActMulCase {
    /// The product.
    pub product: GroupedLinearCase,
    /// Applied to the gate half.
    pub function: Activation,
    /// Whether the device is told which rows are gates: it may keep them beside what they gate.
    pub gated: bool,
}

/// Inputs.
#[derive(Clone)]
pub struct Host {
    x: Vec<f32>,
    weight: Matrix,
    /// Of each pair, ascending.
    experts: Vec<usize>,
    /// Of each pair, the row of `x`.
    rows: Vec<usize>,
    /// Seeds the choice of sampled columns.
    columns: u64,
}

/// What both ops take.
struct Operands<B: Backend> {
    x: Tensor<B>,
    rows: Option<Tensor<B>>,
    weight: B::Weight,
    offsets: Tensor<B>,
    hits: Tensor<B>,
}

impl GroupedLinearCase {
    fn draw(&self, rng: &mut Rng, features: usize) -> Host {
        let rows = if self.tokens > 0 { self.tokens } else { self.pairs };
        let x = self.spread.activations(rng, rows, self.k, self.activation);
        let weight = Matrix::draw(rng, self.experts * features, self.k, self.weight, self.spread);
        let mut expert = || match self.uneven {
            true if rng.chance(0.8) => self.experts / 2,
            _ => rng.below(self.experts),
        };
        let mut experts: Vec<usize> = (0..self.pairs).map(|_| expert()).collect();
        experts.sort_unstable();
        let row = |i| if self.tokens > 0 { rng.below(self.tokens) } else { i };
        let rows = (0..self.pairs).map(row).collect();
        Host { x, weight, experts, rows, columns: rng.bits() }
    }

    fn operands<B: Backend>(
        &self,
        stage: &mut Stage<'_, B>,
        host: &Host,
        selection: &Selection,
        gated: bool,
    ) -> Result<Operands<B>> {
        let (capacity, experts) = (selection.capacity(), self.experts);
        let weight = host.weight.load_stack(stage.backend(), experts, gated)?;
        let pair_rows: Vec<u32> = selection.rows.iter().map(|&i| host.rows[i] as u32).collect();
        let (x, rows) = if self.tokens > 0 {
            let x = stage.input("x", self.activation, &[self.tokens, self.k], &host.x)?;
            (x, Some(stage.indices("rows", &[capacity], &pair_rows)?))
        } else {
            let values = selection.gather(&host.x, self.k);
            (stage.input("x", self.activation, &[capacity, self.k], &values)?, None)
        };
        let (mut offsets, mut hits) = (vec![0; experts + 1], vec![0]);
        for &i in &selection.rows {
            let expert = host.experts[i];
            if offsets[expert + 1] == 0 {
                hits.push(expert as u32);
            }
            offsets[expert + 1] += 1;
        }
        (0..experts).for_each(|e| offsets[e + 1] += offsets[e]);
        hits[0] = hits.len() as u32 - 1;
        let offsets = stage.indices("offsets", &[experts + 1], &offsets)?;
        let hits = stage.indices("hits", &[1 + experts.min(capacity)], &hits)?;
        Ok(Operands { x, rows, weight, offsets, hits })
    }

    fn rounded(&self, mut host: Host, caps: &Caps) -> Host {
        let operand = caps.grouped_operand(self.weight);
        host.weight.met_by(operand);
        Host { x: as_operand(operand, host.x, self.k), ..host }
    }

    /// The columns whose reference is computed.
    fn columns(&self, host: &Host) -> Vec<usize> {
        let mut rng = Rng::new(host.columns);
        match self.sampled {
            0 => (0..self.n).collect(),
            count => [0, self.n - 1].into_iter().chain((2..count).map(|_| rng.below(self.n))).collect(),
        }
    }

    /// Rows of the output from `want`, which gets a pair's expert, column and row of x.
    fn wants(&self, host: &Host, selection: &Selection, want: impl Fn(usize, usize, &[f32]) -> Want) -> Expected {
        let (columns, fill) = (self.columns(host), if self.sampled > 0 { Want::Written } else { Want::Any });
        let row = |&i: &usize| {
            let x = &host.x[host.rows[i] * self.k..][..self.k];
            let mut wants = vec![fill; self.n];
            columns.iter().for_each(|&column| wants[column] = want(host.experts[i], column, x));
            wants
        };
        Expected::dense(selection.rows.iter().map(row))
    }
}

impl OpCase for GroupedLinearCase {
    const OP: &'static str = "grouped_linear";
    type Host = Host;

    fn types(&self) -> Types {
        Types { weight: Some(self.weight), ..Types::of(self.activation) }
    }
    fn rows(&self) -> usize {
        self.pairs
    }
    fn padding(&self) -> usize {
        self.padding
    }
    fn ordered(&self) -> bool {
        true
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        self.draw(rng, self.n)
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let Operands { x, rows, weight, offsets, hits } = self.operands(&mut stage, host, selection, false)?;
        let out = stage.output("out", self.activation, &[selection.capacity(), self.n])?;
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let rows = rows.as_ref();
            let (offsets, hits) = (&offsets, &hits);
            enc.grouped_linear(GroupedLinear { out: &out, x: &x, rows, weight: &weight, offsets, hits });
        });
        stage.finish(Live::All, selection.rows.len(), record)
    }

    fn rounded(&self, host: Host, caps: &Caps, _rows: usize) -> Host {
        self.rounded(host, caps)
    }

    fn as_bf16(&self, host: &Host) -> Option<Host> {
        Some(Host { weight: host.weight.as_bf16(), ..host.clone() })
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let want = |expert: usize, column: usize, x: &[f32]| {
            let (value, scale) = linear::dot(x, &host.weight.row(expert * self.n + column));
            Want::Near { value, scale }
        };
        vec![self.wants(host, selection, want)]
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance {
            nmse: linear::dot_nmse(self.k) + unit_roundoff(self.activation).powi(2),
            arithmetic: linear::dot_error(self.k),
            reason: "those of linear: f32 products and sums over k in any fixed order, one store",
        }
    }
}

impl OpCase for GroupedLinearActMulCase {
    const OP: &'static str = "grouped_linear_act_mul";
    type Host = Host;

    fn types(&self) -> Types {
        OpCase::types(&self.product)
    }
    fn rows(&self) -> usize {
        self.product.pairs
    }
    fn padding(&self) -> usize {
        self.product.padding
    }
    fn ordered(&self) -> bool {
        true
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        self.product.draw(rng, 2 * self.product.n)
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let (product, activation) = (&self.product, self.function);
        let mut stage = Stage::new(backend, placement);
        let Operands { x, rows, weight, offsets, hits } = product.operands(&mut stage, host, selection, self.gated)?;
        let capacity = selection.capacity();
        let gate_up = stage.output("gate_up", product.activation, &[capacity, 2 * product.n])?;
        let out = stage.output("out", product.activation, &[capacity, product.n])?;
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.grouped_linear_act_mul(GroupedLinearActMul {
                out: &out,
                gate_up: &gate_up,
                x: &x,
                rows: rows.as_ref(),
                weight: &weight,
                activation,
                offsets: &offsets,
                hits: &hits,
            });
        });
        stage.finish(Live::All, selection.rows.len(), record)
    }

    fn rounded(&self, host: Host, caps: &Caps, _rows: usize) -> Host {
        self.product.rounded(host, caps)
    }

    fn as_bf16(&self, host: &Host) -> Option<Host> {
        Some(Host { weight: host.weight.as_bf16(), ..host.clone() })
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let GroupedLinearCase { n, k, .. } = self.product;
        let want = |expert: usize, column: usize, x: &[f32]| {
            let dot = |feature: usize| linear::dot(x, &host.weight.row(expert * 2 * n + feature));
            want_activated(self.function, k, dot(column), dot(n + column))
        };
        // The scratch is the backend's in live rows, and nobody's in the others.
        let scratch = Expected::dense(selection.rows.iter().map(|_| vec![Want::Any; 2 * n]));
        vec![scratch, self.product.wants(host, selection, want)]
    }

    fn pieces(&self, _host: &Host, _row: usize, position: usize) -> Vec<Piece> {
        vec![Piece::row(1, position)]
    }

    fn tolerance(&self) -> Tolerance {
        super::linear_act_mul::tolerance(self.product.k, self.product.activation)
    }
}
