//! RMS normalisation.
use super::linear::Residual;
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{UNIT_F32, round_all, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Norm;
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct NormCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Columns.
    pub width: usize,
    /// Type of `x` and `out`.
    pub activation: DType,
    /// `out` is `x`.
    pub in_place: bool,
    /// What is added.
    pub residual: Residual,
    /// Magnitudes of `x`.
    pub spread: Spread,
    /// Added to the mean square.
    pub eps: f32,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    x: Vec<f32>,
    weight: Vec<f32>,
    residual: Vec<f32>,
}

/// RMS norm of one row, in f64.
pub(super) fn reference(x: &[f32], weight: &[f32], eps: f32) -> Vec<f64> {
    let square: f64 = x.iter().map(|&v| v as f64 * v as f64).sum();
    let inverse = 1.0 / (square / x.len() as f64 + eps as f64).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| x as f64 * inverse * w as f64).collect()
}

/// Relative error of an f32 RMS norm over `width` elements: the sum of squares has positive terms,
/// whose rounding errors grow with the root of their number and count half after the square root;
/// six more roundings or a refined reciprocal root follow.
pub(super) fn relative_error(width: usize) -> f64 {
    UNIT_F32 * (6.0 + (width as f64).sqrt())
}

impl OpCase for NormCase {
    const OP: &'static str = "norm";
    type Host = Host;

    fn types(&self) -> Types {
        Types::of(self.activation)
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn padding(&self) -> usize {
        self.padding
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let x = self.spread.activations(rng, self.rows, self.width, self.activation);
        let weight = (0..self.width).map(|_| 1.0 + 0.3 * rng.normal()).collect();
        let residual = match self.residual {
            Residual::None => Vec::new(),
            _ => round_all(self.activation, rng.normals(self.rows * self.width, 1.0)),
        };
        Host { x, weight, residual }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let shape = [selection.capacity(), self.width];
        let rows = selection.gather(&host.x, self.width);
        let weight = stage.input("weight", DType::F32, &[self.width], &host.weight)?;
        let added = match self.residual {
            Residual::None => Vec::new(),
            _ => selection.gather(&host.residual, self.width),
        };
        let (x, out, residual) = match (self.in_place, self.residual) {
            (false, Residual::InPlace) => {
                let x = stage.input("x", self.activation, &shape, &rows)?;
                let both = stage.in_place("out", self.activation, &shape, &added)?;
                (x, both.clone(), Some(both))
            }
            (in_place, residual) => {
                let (x, out) = if in_place {
                    let both = stage.in_place("out", self.activation, &shape, &rows)?;
                    (both.clone(), both)
                } else {
                    let x = stage.input("x", self.activation, &shape, &rows)?;
                    (x, stage.output("out", self.activation, &shape)?)
                };
                let residual = match residual {
                    Residual::None => None,
                    _ => Some(stage.input("residual", self.activation, &shape, &added)?),
                };
                (x, out, residual)
            }
        };
        let (live, eps) = (live_of(self.live, selection.padding), self.eps);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.norm(Norm { out: &out, x: &x, weight: &weight, eps, residual: residual.as_ref(), live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let row = |&r: &usize| {
            let x = &host.x[r * self.width..(r + 1) * self.width];
            let added = host.residual.get(r * self.width..(r + 1) * self.width).unwrap_or(&[]);
            let near = |(i, value): (usize, f64)| {
                let residual = added.get(i).map_or(0.0, |&v| f64::from(v));
                Want::Near { value: value + residual, scale: value.abs() + residual.abs() }
            };
            reference(x, &host.weight, self.eps).into_iter().enumerate().map(near).collect()
        };
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        let (arithmetic, rounding) = (relative_error(self.width), unit_roundoff(self.activation));
        Tolerance {
            nmse: arithmetic.powi(2) + rounding.powi(2),
            arithmetic,
            reason: "f32 sum of squares, f32 reciprocal root, a sum, one store",
        }
    }
}
