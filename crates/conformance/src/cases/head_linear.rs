//! A matrix product for each head.
use super::linear;
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::{Matrix, Spread};
use crate::number::{as_operand, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::HeadLinear;
use anyfleet_tensor::{Backend, Caps, DType, Encoder, Live, Result, WeightFormat};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct HeadLinearCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Heads.
    pub heads: usize,
    /// Output features of a head, and elements of `out` between them and those of the next.
    pub n: (usize, usize),
    /// Input features of a head, and elements of `x` between them and those of the next.
    pub k: (usize, usize),
    /// Type of `x` and `out`.
    pub activation: DType,
    /// Type the matrices are kept in.
    pub weight: WeightFormat,
    /// Magnitudes of `x` and of the matrices.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
#[derive(Clone)]
pub struct Host {
    /// `[rows, H, K]`.
    x: Vec<f32>,
    weight: Matrix,
}

impl HeadLinearCase {
    /// Elements of a head of `out`.
    fn out_head(&self) -> usize {
        self.n.0 + self.n.1
    }
}

impl OpCase for HeadLinearCase {
    const OP: &'static str = "head_linear";
    type Host = Host;

    fn types(&self) -> Types {
        Types { weight: Some(self.weight), ..Types::of(self.activation) }
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn padding(&self) -> usize {
        self.padding
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let x = self.spread.activations(rng, self.rows * self.heads, self.k.0, self.activation);
        let weight = Matrix::draw(rng, self.heads * self.n.0, self.k.0, self.weight, self.spread);
        Host { x, weight }
    }

    fn as_bf16(&self, host: &Host) -> Option<Host> {
        Some(Host { weight: host.weight.as_bf16(), ..host.clone() })
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let capacity = selection.capacity();
        let weight = host.weight.load_stack(backend, self.heads, false)?;
        // What lies between heads is nobody's to multiply.
        let gap = vec![f32::NAN; self.k.1];
        let rows = selection.gather(&host.x, self.heads * self.k.0);
        let rows: Vec<f32> = rows.chunks(self.k.0).flat_map(|head| head.iter().chain(&gap).copied()).collect();
        let x = stage.input("x", self.activation, &[capacity, self.heads * (self.k.0 + self.k.1)], &rows)?;
        let out = stage.output("out", self.activation, &[capacity, self.heads * self.out_head()])?;
        let live = live_of(self.live, selection.padding);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.head_linear(HeadLinear { out: &out, x: &x, weight: &weight, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn rounded(&self, mut host: Host, caps: &Caps, _rows: usize) -> Host {
        let operand = caps.grouped_operand(self.weight);
        host.weight.met_by(operand);
        Host { x: as_operand(operand, host.x, self.k.0), ..host }
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let (n, k) = (self.n.0, self.k.0);
        let row = |&r: &usize| {
            let mut wants = vec![Want::Kept; self.heads * self.out_head()];
            for head in 0..self.heads {
                let x = &host.x[(r * self.heads + head) * k..][..k];
                for feature in 0..n {
                    let (value, scale) = linear::dot(x, &host.weight.row(head * n + feature));
                    wants[head * self.out_head() + feature] = Want::Near { value, scale };
                }
            }
            wants
        };
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn pieces(&self, _host: &Host, _row: usize, position: usize) -> Vec<Piece> {
        let heads = (0..self.heads).map(|head| head * self.out_head());
        heads.map(|first| Piece { output: 0, row: position, elements: Some(first..first + self.n.0) }).collect()
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance {
            nmse: linear::dot_nmse(self.k.0) + unit_roundoff(self.activation).powi(2),
            arithmetic: linear::dot_error(self.k.0),
            reason: "those of linear: f32 products and sums over k in any fixed order, one store",
        }
    }
}
