//! `out[r] = x[rows[r]]`.
use super::exact;
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance};
use crate::matrix::Spread;
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::Gather;
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct GatherCase {
    /// Live rows of the output.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Rows of `x`.
    pub tokens: usize,
    /// Columns.
    pub width: usize,
    /// Type of both.
    pub activation: DType,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    x: Vec<f32>,
    rows: Vec<u32>,
}

impl OpCase for GatherCase {
    const OP: &'static str = "gather";
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
        let x = Spread::Normal.activations(rng, self.tokens, self.width, self.activation);
        // Rows come in any order and more than once.
        let rows = (0..self.rows).map(|_| rng.below(self.tokens) as u32).collect();
        Host { x, rows }
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
        let x = stage.input("x", self.activation, &[self.tokens, self.width], &host.x)?;
        let rows = stage.indices("rows", &[capacity], &selection.gather(&host.rows, 1))?;
        let out = stage.output("out", self.activation, &[capacity, self.width])?;
        let live = live_of(self.live, selection.padding);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.gather(Gather { out: &out, x: &x, rows: &rows, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let row = |&r: &usize| {
            let from = host.rows[r] as usize * self.width;
            exact(host.x[from..from + self.width].iter().copied())
        };
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        Tolerance::EXACT
    }
}
