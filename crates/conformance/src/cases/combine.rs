//! The sum of what experts made of a row.
use super::linear;
use crate::case::{OpCase, Selection, Types, live_of};
use crate::cases::linear::Residual;
use crate::expect::{Expected, Tolerance, Want};
use crate::number::unit_roundoff;
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Combine;
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result, Tensor};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct CombineCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Experts a row takes.
    pub per_token: usize,
    /// Columns.
    pub width: usize,
    /// Type of everything but the weights.
    pub activation: DType,
    /// What is added in the end.
    pub residual: Residual,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    /// `[rows, per_token, width]`.
    x: Vec<f32>,
    weights: Vec<f32>,
    residual: Vec<f32>,
    /// Seeds the places.
    places: u64,
}

impl OpCase for CombineCase {
    const OP: &'static str = "combine";
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
        let pairs = self.rows * self.per_token;
        let values = |rng: &mut Rng, count| crate::number::round_all(self.activation, rng.normals(count, 1.0));
        Host {
            x: values(rng, pairs * self.width),
            weights: rng.normals(pairs, 0.5),
            residual: values(rng, self.rows * self.width),
            places: rng.bits(),
        }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let (capacity, k, width) = (selection.capacity(), self.per_token, self.width);
        let (pairs, live_pairs) = (capacity * k, selection.rows.len() * k);
        let mut places: Vec<u32> = (0..live_pairs as u32).collect();
        Rng::new(host.places).shuffle(&mut places);
        let pair_rows = selection.gather(&host.x, k * width);
        let mut x = vec![0.0; live_pairs * width];
        for (row, &place) in pair_rows.chunks(width.max(1)).zip(&places) {
            x[place as usize * width..][..width].copy_from_slice(row);
        }
        let x = stage.input("x", self.activation, &[pairs, width], &x)?;
        let weights = selection.gather(&host.weights, k);
        // Lists of one element a row are contiguous, whatever surrounds them.
        let table = |list: Tensor<B>| {
            Tensor::from_buffer_at(list.buffer().clone(), list.offset(), list.dtype(), &[capacity, k])
        };
        let weights = table(stage.input("weights", DType::F32, &[pairs], &weights)?);
        let places = table(stage.indices("places", &[pairs], &places)?);
        let added = selection.gather(&host.residual, width);
        let types = (self.activation, self.activation);
        let (out, residual) = self.residual.stage(&mut stage, types, &[capacity, width], &added)?;
        let live = live_of(self.live, selection.padding);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let residual = residual.as_ref();
            enc.combine(Combine { out: &out, x: &x, weights: &weights, places: &places, residual, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let (k, width) = (self.per_token, self.width);
        let want = |r: usize, column: usize| {
            let terms = (0..k).map(|j| {
                let value = host.x[(r * k + j) * width + column] as f64;
                host.weights[r * k + j] as f64 * value
            });
            let added = if self.residual == Residual::None { 0.0 } else { host.residual[r * width + column] as f64 };
            let (value, scale) = terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()));
            Want::Near { value: value + added, scale: scale + added.abs() }
        };
        let row = |&r: &usize| (0..width).map(|column| want(r, column)).collect();
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        let rounding = unit_roundoff(self.activation);
        Tolerance {
            nmse: linear::dot_nmse(self.per_token) + rounding.powi(2),
            arithmetic: linear::dot_error(self.per_token),
            reason: "f32 products and sums over experts, the residual in f32, one store",
        }
    }
}
