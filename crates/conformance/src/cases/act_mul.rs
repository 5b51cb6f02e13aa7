//! Gated activation.
use crate::case::{OpCase, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{UNIT_F32, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{ActMul, Activation};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct ActMulCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Columns of the output.
    pub width: usize,
    /// Type of both.
    pub activation: DType,
    /// Applied to the gate half.
    pub function: Activation,
    /// Magnitudes.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    gate_up: Vec<f32>,
}

/// The activation in f64.
pub(super) fn reference(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        other => unreachable!("no reference for {other:?}"),
    }
}

/// The magnitude an f32 activation's error is relative to.
///
/// SiLU's own value, down to where exp underflows or is clamped; GELU's input, because
/// `1 + tanh` cancels for negative inputs.
pub(super) fn scale(function: Activation, x: f64) -> f64 {
    match function {
        Activation::Silu => reference(function, x).abs().max(1e-25),
        _ => x.abs(),
    }
}

/// Error of an f32 activation in units of [`scale`]: a range-reduced polynomial exp, a division
/// and two products.
pub(super) const RELATIVE_ERROR: f64 = 12.0 * UNIT_F32;

/// Largest slope of SiLU and GELU.
pub(super) const SLOPE: f64 = 1.13;

impl OpCase for ActMulCase {
    const OP: &'static str = "act_mul";
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
        let mut gate_up = self.spread.activations(rng, self.rows, 2 * self.width, self.activation);
        // Gates where exp overflows, underflows or is denormal.
        for (gate, edge) in gate_up.iter_mut().zip([0.0, -0.0, -87.0, -88.5, -104.0, 89.0, -1e4, 1e4]) {
            *gate = edge;
        }
        Host { gate_up: crate::number::round_all(self.activation, gate_up) }
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
        let rows = selection.gather(&host.gate_up, 2 * self.width);
        let gate_up = stage.input("gate_up", self.activation, &[capacity, 2 * self.width], &rows)?;
        let out = stage.output("out", self.activation, &[capacity, self.width])?;
        let (live, activation) = (live_of(self.live, selection.padding), self.function);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.act_mul(ActMul { out: &out, gate_up: &gate_up, activation, live });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let row = |&r: &usize| {
            let (gate, up) = host.gate_up[r * 2 * self.width..][..2 * self.width].split_at(self.width);
            let want = |(&gate, &up): (&f32, &f32)| {
                let (gate, up) = (gate as f64, up as f64);
                Want::Near { value: reference(self.function, gate) * up, scale: scale(self.function, gate) * up.abs() }
            };
            gate.iter().zip(up).map(want).collect()
        };
        vec![Expected::dense(selection.rows.iter().map(row))]
    }

    fn tolerance(&self) -> Tolerance {
        let rounding = unit_roundoff(self.activation);
        Tolerance {
            nmse: (RELATIVE_ERROR / 2.0).powi(2) + rounding.powi(2),
            arithmetic: RELATIVE_ERROR,
            reason: "f32 exp or tanh, a division, two products, one store",
        }
    }
}
