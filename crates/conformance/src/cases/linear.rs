//! Matrix product with bias and residual.
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::{Matrix, Spread};
use crate::number::{UNIT_F32, as_operand, encode, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::{Backend, Caps, DType, Encoder, Live, Result, Tensor, WeightFormat};

/// What is added to the product at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// Nothing.
    None,
    /// Another tensor.
    Other,
    /// What the output holds.
    InPlace,
}

impl Residual {
    /// The output `out` of type `types.0` and the operand `residual` of type `types.1`, whose first rows are `added`.
    pub(super) fn stage<B: Backend>(
        self,
        stage: &mut Stage<'_, B>,
        types: (DType, DType),
        shape: &[usize],
        added: &[f32],
    ) -> Result<(Tensor<B>, Option<Tensor<B>>)> {
        Ok(match self {
            Residual::None => (stage.output("out", types.0, shape)?, None),
            Residual::Other => {
                let residual = stage.input("residual", types.1, shape, added)?;
                (stage.output("out", types.0, shape)?, Some(residual))
            }
            Residual::InPlace => {
                let out = stage.in_place("out", types.1, shape, added)?;
                (out.clone(), Some(out))
            }
        })
    }
}

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct LinearCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Type of `x`, and of `out` unless `f32_out`.
    pub activation: DType,
    /// Type the matrix is kept in.
    pub weight: WeightFormat,
    /// f32 output whatever the activations are: logits.
    pub f32_out: bool,
    /// Adds a bias.
    pub bias: bool,
    /// Adds a residual.
    pub residual: Residual,
    /// Magnitudes of `x` and of the matrix.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
    /// Compute the reference of this many columns a row; 0 for all.
    pub sampled: usize,
    /// `x` and `out` share a buffer and lie this many bytes into it, in steps of rows; 0 for
    /// buffers of their own.
    pub offset: u64,
}

impl LinearCase {
    /// A case without epilogue, padding or extreme values; change what matters.
    pub fn plain(rows: usize, n: usize, k: usize, activation: DType, weight: WeightFormat) -> Self {
        LinearCase {
            rows,
            padding: 0,
            n,
            k,
            activation,
            weight,
            f32_out: false,
            bias: false,
            residual: Residual::None,
            spread: Spread::Normal,
            live: Live::All,
            sampled: 0,
            offset: 0,
        }
    }

    fn out_type(&self) -> DType {
        if self.f32_out { DType::F32 } else { self.activation }
    }

    /// Rows before the data in the shared buffer.
    fn far_row(&self) -> usize {
        let row = self.n.max(self.k) * self.activation.size();
        (self.offset as usize).div_ceil(row)
    }
}

/// Inputs.
#[derive(Clone)]
pub struct Host {
    x: Vec<f32>,
    weight: Matrix,
    bias: Vec<f32>,
    residual: Vec<f32>,
    /// Seeds the choice of sampled columns.
    columns: u64,
}

/// A dot product in f64 and the sum of the absolute products.
pub(super) fn dot(a: &[f32], b: &[f32]) -> (f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, absolute), (&a, &b)| {
        let product = a as f64 * b as f64;
        (sum + product, absolute + product.abs())
    })
}

/// Error of an f32 dot product in units of the sum of absolute products. Rounding errors of `k`
/// additions grow with the root of k where they are independent; sums that are split over lanes or
/// blocks do better.
pub(super) fn dot_error(k: usize) -> f64 {
    UNIT_F32 * (4.0 + 2.0 * (k as f64).sqrt())
}

/// NMSE of f32 dot products: partial sums grow with the root of their length, so the mean square
/// error of a serial sum is `k/2` squared roundoffs; eight times that.
pub(super) fn dot_nmse(k: usize) -> f64 {
    UNIT_F32.powi(2) * (16.0 + 4.0 * k as f64)
}

impl OpCase for LinearCase {
    const OP: &'static str = "linear";
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
    fn largest_buffer(&self) -> u64 {
        self.offset
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let x = self.spread.activations(rng, self.rows, self.k, self.activation);
        let weight = Matrix::draw(rng, self.n, self.k, self.weight, self.spread);
        let bias = if self.bias { rng.normals(self.n, 1.0) } else { Vec::new() };
        let residual = match self.residual {
            Residual::None => Vec::new(),
            _ => self.spread.activations(rng, self.rows, self.n, self.activation),
        };
        Host { x, weight, bias, residual, columns: rng.bits() }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let weight = host.weight.load(backend, false)?;
        let mut stage = Stage::new(backend, placement);
        let capacity = selection.capacity();
        let rows = selection.gather(&host.x, self.k);
        let added = if host.residual.is_empty() { Vec::new() } else { selection.gather(&host.residual, self.n) };
        let bias = if self.bias { Some(stage.input("bias", DType::F32, &[self.n], &host.bias)?) } else { None };
        let (x, out, residual) = if self.offset > 0 {
            let (x, out) = self.stage_far(&mut stage, &rows, capacity)?;
            (x, out, None)
        } else {
            let x = stage.input("x", self.activation, &[capacity, self.k], &rows)?;
            let types = (self.out_type(), self.activation);
            let (out, residual) = self.residual.stage(&mut stage, types, &[capacity, self.n], &added)?;
            (x, out, residual)
        };
        let live = live_of(self.live, selection.padding);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let (bias, residual) = (bias.as_ref(), residual.as_ref());
            enc.linear(Linear { out: &out, x: &x, weight: &weight, bias, residual, live });
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
        let fill = if self.sampled > 0 { Want::Written } else { Want::Any };
        let mut wants = vec![vec![fill; self.n]; rows.len()];
        let mut rng = Rng::new(host.columns);
        let columns: Vec<usize> = match self.sampled {
            0 => (0..self.n).collect(),
            count => [0, self.n - 1].into_iter().chain((2..count).map(|_| rng.below(self.n))).collect(),
        };
        for column in columns {
            let weight = host.weight.row(column);
            let bias = host.bias.get(column).map_or(0.0, |&b| b as f64);
            for (want, &r) in wants.iter_mut().zip(rows) {
                let (product, absolute) = dot(&host.x[r * self.k..(r + 1) * self.k], &weight);
                let residual = host.residual.get(r * self.n + column).map_or(0.0, |&v| v as f64);
                let scale = absolute + bias.abs() + residual.abs();
                want[column] = Want::Near { value: product + bias + residual, scale };
            }
        }
        let first = if self.offset > 0 { self.far_row() } else { 0 };
        vec![Expected { rows: wants.into_iter().enumerate().map(|(i, w)| (first + i, w)).collect() }]
    }

    fn tolerance(&self) -> Tolerance {
        let rounding = unit_roundoff(self.out_type());
        Tolerance {
            nmse: dot_nmse(self.k) + rounding.powi(2),
            arithmetic: dot_error(self.k),
            reason: "f32 products and sums over k in any fixed order, bias and residual in f32, one store",
        }
    }
}

impl LinearCase {
    /// `x` and `out` as rows of one buffer, both more than `offset` bytes into it. Only those rows
    /// and their neighbours are ever touched.
    fn stage_far<B: Backend>(
        &self,
        stage: &mut Stage<'_, B>,
        x: &[f32],
        capacity: usize,
    ) -> Result<(Tensor<B>, Tensor<B>)> {
        assert!(self.activation == self.out_type(), "x and out share a buffer");
        let first = self.far_row();
        let width = self.n.max(self.k);
        let whole = Tensor::new(stage.backend(), self.activation, &[first + 2 * capacity + 2, width])?;
        let (x_view, out_view) = (whole.columns(0, self.k), whole.columns(0, self.n));
        let x_first = first + capacity + 1;
        let x_rows = x.chunks(self.k).enumerate().map(|(i, row)| (x_first + i, encode(self.activation, row)));
        stage.sparse("x", false, &x_view, x_rows.collect());
        let around = (first - 1..first + capacity + 1).map(|row| (row, Vec::new()));
        stage.sparse("out", true, &out_view, around.collect());
        Ok((x_view.narrow(x_first, capacity), out_view.narrow(first, capacity)))
    }
}
