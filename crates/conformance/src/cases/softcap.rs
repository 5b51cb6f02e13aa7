//! A soft bound of logits.
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::number::UNIT_F32;
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Softcap;
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct SoftcapCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Columns.
    pub vocab: usize,
    /// The bound.
    pub cap: f32,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    logits: Vec<f32>,
}

impl OpCase for SoftcapCase {
    const OP: &'static str = "softcap";
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
        // From far below the cap to far above it, and both ends.
        let mut logits: Vec<f32> =
            (0..self.rows * self.vocab).map(|_| self.cap * rng.normal() * rng.pick(&[1e-4, 0.3, 1.0, 20.0])).collect();
        for (logit, edge) in logits.iter_mut().zip([0.0, 1e30, -1e30, f32::INFINITY, f32::NEG_INFINITY]) {
            *logit = edge;
        }
        Host { logits }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let rows = selection.gather(&host.logits, self.vocab);
        let x = stage.in_place("x", DType::F32, &[selection.capacity(), self.vocab], &rows)?;
        let (live, cap) = (live_of(self.live, selection.padding), self.cap);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| enc.softcap(Softcap { x: &x, cap, live }));
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let cap = f64::from(self.cap);
        let want = |&x: &f32| {
            let value = cap * (f64::from(x) / cap).tanh();
            Want::Near { value, scale: value.abs() }
        };
        let row = |&r: &usize| host.logits[r * self.vocab..(r + 1) * self.vocab].iter().map(want).collect();
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        // A quotient may be a product with an inverse, and tanh is a few units off.
        let arithmetic = 12.0 * UNIT_F32;
        Tolerance { nmse: arithmetic.powi(2), arithmetic, reason: "f32 tanh, two products or quotients" }
    }
}
