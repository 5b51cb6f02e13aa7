//! `out[t] = scale * weight[ids[t]]`.
use super::exact;
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::{Matrix, Spread};
use crate::number::{UNIT_F32, round_all, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{Embed, SAMPLED};
use anyfleet_tensor::{Backend, DType, Live, Result, WeightFormat};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct EmbedCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Rows of the matrix.
    pub vocab: usize,
    /// Columns of the matrix.
    pub width: usize,
    /// Type of the output.
    pub activation: DType,
    /// Type the matrix is kept in.
    pub weight: WeightFormat,
    /// Multiplies the rows.
    pub scale: f32,
    /// Some of the ids are those of sampled tokens.
    pub sampled: bool,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
#[derive(Clone)]
pub struct Host {
    ids: Vec<u32>,
    sampled: Vec<u32>,
    weight: Matrix,
}

impl OpCase for EmbedCase {
    const OP: &'static str = "embed";
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
        let weight = Matrix::draw(rng, self.vocab, self.width, self.weight, Spread::Normal);
        let mut ids: Vec<u32> = (0..self.rows).map(|_| rng.below(self.vocab) as u32).collect();
        // The first and the last row of the matrix are where packing goes wrong.
        for (id, edge) in ids.iter_mut().zip([self.vocab - 1, 0]) {
            *id = edge as u32;
        }
        // Chosen in any order; some by no row and some by several.
        let count = if self.sampled { rng.range(1, 70) } else { 0 };
        let sampled: Vec<u32> = (0..count).map(|_| rng.below(self.vocab) as u32).collect();
        for id in ids.iter_mut().filter(|_| self.sampled) {
            if rng.chance(0.6) {
                *id = SAMPLED | rng.below(count) as u32;
            }
        }
        Host { ids, sampled, weight }
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
        let ids = stage.indices("ids", &[capacity], &selection.gather(&host.ids, 1))?;
        let sampled = match self.sampled {
            true => Some(stage.indices("sampled", &[host.sampled.len()], &host.sampled)?),
            false => None,
        };
        let out = stage.output("out", self.activation, &[capacity, self.width])?;
        let (live, scale) = (live_of(self.live, selection.padding), self.scale);
        let record = Box::new(move |enc: &mut anyfleet_tensor::Encoder<'_, B>| {
            enc.embed(Embed { out: &out, ids: &ids, sampled: sampled.as_ref(), weight: &weight, scale, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn as_bf16(&self, host: &Host) -> Option<Host> {
        Some(Host { weight: host.weight.as_bf16(), ..host.clone() })
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let id = |r: usize| match host.ids[r] {
            id if id & SAMPLED != 0 => host.sampled[(id & !SAMPLED) as usize],
            id => id,
        };
        let row = |&r: &usize| {
            let values = host.weight.row(id(r) as usize);
            if self.scale == 1.0 {
                return exact(round_all(self.activation, values));
            }
            let value = |&v: &f32| f64::from(v) * f64::from(self.scale);
            values.iter().map(value).map(|value| Want::Near { value, scale: value.abs() }).collect()
        };
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        if self.scale == 1.0 {
            return Tolerance::EXACT;
        }
        let rounding = unit_roundoff(self.activation);
        let reason = "a product or two, one store";
        Tolerance { nmse: (2.0 * UNIT_F32 + rounding).powi(2), arithmetic: 2.0 * UNIT_F32, reason }
    }
}
