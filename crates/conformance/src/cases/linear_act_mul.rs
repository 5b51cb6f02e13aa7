//! A gated MLP's first half: matrix product, then gated activation.
use super::{act_mul, linear};
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::{Matrix, Spread};
use crate::number::{as_operand, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{Activation, LinearActMul};
use anyfleet_tensor::{Backend, Caps, DType, Encoder, Live, Result, WeightFormat};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct LinearActMulCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Columns of the output; the matrix has twice as many rows.
    pub width: usize,
    /// Input features.
    pub k: usize,
    /// Type of `x`, `gate_up` and `out`.
    pub activation: DType,
    /// Type the matrix is kept in.
    pub weight: WeightFormat,
    /// Adds a bias.
    pub bias: bool,
    /// Applied to the gate half.
    pub function: Activation,
    /// Magnitudes of `x` and of the matrix.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
    /// Compute the reference of this many columns a row; 0 for all.
    pub sampled: usize,
}

/// Inputs.
#[derive(Clone)]
pub struct Host {
    x: Vec<f32>,
    weight: Matrix,
    bias: Vec<f32>,
    columns: u64,
}

/// Value and error scale of one output of products with `k` input features. The product's error passes through the
/// activation's slope; the scale is in units of the product's own error bound.
pub(super) fn want_activated(function: Activation, k: usize, gate: (f64, f64), up: (f64, f64)) -> Want {
    let activated = act_mul::reference(function, gate.0);
    let own = act_mul::scale(function, gate.0) * act_mul::RELATIVE_ERROR / linear::dot_error(k);
    Want::Near { value: activated * up.0, scale: (act_mul::SLOPE * gate.1 + own) * up.0.abs() + activated.abs() * up.1 }
}

/// How close outputs of products with `k` input features must come.
pub(super) fn tolerance(k: usize, activation: DType) -> Tolerance {
    // A backend that does not fuse rounds gate and up to the scratch's type in between.
    let (arithmetic, rounding) = (linear::dot_error(k), unit_roundoff(activation));
    let scratch = if activation == DType::F32 { 0.0 } else { rounding };
    Tolerance {
        nmse: 4.0 * linear::dot_nmse(k) + rounding.powi(2) + 8.0 * scratch.powi(2),
        arithmetic: arithmetic + scratch,
        reason: "two f32 dot products, one through the activation's slope, and act_mul's own error",
    }
}

impl OpCase for LinearActMulCase {
    const OP: &'static str = "linear_act_mul";
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
        let x = self.spread.activations(rng, self.rows, self.k, self.activation);
        let weight = Matrix::draw(rng, 2 * self.width, self.k, self.weight, self.spread);
        let bias = if self.bias { rng.normals(2 * self.width, 1.0) } else { Vec::new() };
        Host { x, weight, bias, columns: rng.bits() }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let weight = host.weight.load(backend, true)?;
        let mut stage = Stage::new(backend, placement);
        let capacity = selection.capacity();
        let x = stage.input("x", self.activation, &[capacity, self.k], &selection.gather(&host.x, self.k))?;
        let bias = if self.bias { Some(stage.input("bias", DType::F32, &[2 * self.width], &host.bias)?) } else { None };
        let gate_up = stage.output("gate_up", self.activation, &[capacity, 2 * self.width])?;
        let out = stage.output("out", self.activation, &[capacity, self.width])?;
        let (live, activation) = (live_of(self.live, selection.padding), self.function);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let (gate_up, bias) = (&gate_up, bias.as_ref());
            enc.linear_act_mul(LinearActMul { out: &out, gate_up, x: &x, weight: &weight, bias, activation, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn rounded(&self, mut host: Host, caps: &Caps, rows: usize) -> Host {
        let operand = caps.operand(self.weight, rows);
        host.weight.met_by(operand);
        Host { x: as_operand(operand, host.x, self.k), ..host }
    }

    fn invariant(&self, caps: &Caps) -> bool {
        caps.invariant
    }

    fn as_bf16(&self, host: &Host) -> Option<Host> {
        Some(Host { weight: host.weight.as_bf16(), ..host.clone() })
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let rows = &selection.rows;
        let mut rng = Rng::new(host.columns);
        let columns: Vec<usize> = match self.sampled {
            0 => (0..self.width).collect(),
            count => [0, self.width - 1].into_iter().chain((2..count).map(|_| rng.below(self.width))).collect(),
        };
        let mut wants = vec![vec![Want::Written; self.width]; rows.len()];
        for column in columns {
            let [gate, up] = [column, column + self.width].map(|c| host.weight.row(c));
            let [gate_bias, up_bias] =
                [column, column + self.width].map(|c| host.bias.get(c).map_or(0.0, |&b| b as f64));
            for (want, &r) in wants.iter_mut().zip(rows) {
                let x = &host.x[r * self.k..(r + 1) * self.k];
                let with_bias = |(sum, absolute): (f64, f64), bias: f64| (sum + bias, absolute + bias.abs());
                let gate = with_bias(linear::dot(x, &gate), gate_bias);
                want[column] = want_activated(self.function, self.k, gate, with_bias(linear::dot(x, &up), up_bias));
            }
        }
        // The scratch is the backend's in live rows, and nobody's in the others.
        let scratch = Expected::dense(rows.iter().map(|_| vec![Want::Any; 2 * self.width]));
        vec![scratch, Expected::dense(wants)]
    }

    fn pieces(&self, _host: &Host, _row: usize, position: usize) -> Vec<Piece> {
        vec![Piece::row(1, position)]
    }

    fn tolerance(&self) -> Tolerance {
        tolerance(self.k, self.activation)
    }
}
