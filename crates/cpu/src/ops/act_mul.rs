//! `act_mul`: the gate of a gated MLP.
use crate::CpuBackend;
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, math, store_up_to};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::{ActMul, Activation};
use anyfleet_tensor::{Error, Live, Result};

pub(crate) struct ActMulOp {
    out: View,
    gate_up: View,
    activation: Activation,
    live: Live,
}

/// Columns one task handles at least; a multiple of the lanes.
const COLUMNS: usize = 1024;

impl ActMulOp {
    pub(crate) fn new(op: &ActMul<'_, CpuBackend>) -> Result<Self> {
        let (out, gate_up) = (View::new("act_mul", op.out)?, View::new("act_mul", op.gate_up)?);
        check_apart("act_mul", &out, &gate_up)?;
        check_activation("act_mul", op.activation)?;
        Ok(ActMulOp { out, gate_up, activation: op.activation, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        self.activate(ctx, ctx.live(self.live, self.out.rows()));
    }

    /// The first `rows` rows.
    pub(super) fn activate(&self, ctx: &Context, rows: usize) {
        let cols = self.out.cols();
        let pieces = cols.div_ceil(COLUMNS);
        // An exponential costs about as much as touching eight elements.
        ctx.split(rows * pieces, 8 * cols.min(COLUMNS), |range| {
            for item in range {
                let (row, start) = (item / pieces, item % pieces * COLUMNS);
                let gate: *const f32 = self.gate_up.row(row);
                // SAFETY: `gate_up` has two columns for each of `out`, and `start < cols`.
                let (gate, up, out) =
                    unsafe { (gate.add(start), gate.add(cols + start), self.out.row::<f32>(row).add(start)) };
                ctx.kernels.run(Gated { out, gate, up, len: COLUMNS.min(cols - start), activation: self.activation });
            }
        });
    }
}

/// # Errors
/// [`Error::Device`] for an activation this backend does not have.
pub(super) fn check_activation(op: &str, activation: Activation) -> Result<()> {
    match activation {
        Activation::Silu | Activation::GeluTanh => Ok(()),
        other => Err(Error::Device {
            device: "cpu".into(),
            reason: format!("{op}: activation {other:?} is not supported; use another backend"),
        }),
    }
}

/// `out = activation(gate) * up`; whoever makes the value promises `len` elements at each pointer.
struct Gated {
    out: *mut f32,
    gate: *const f32,
    up: *const f32,
    len: usize,
    activation: Activation,
}

/// `2 * sqrt(2 / pi)` and that times 0.044715: `gelu(x) = x * sigmoid(x * (A + B * x^2))`, since
/// `(1 + tanh u) / 2 = sigmoid(2u)`.
const GELU_A: f32 = 2.0 * 0.797_884_6;
const GELU_B: f32 = 0.044_715 * GELU_A;

impl Kernel for Gated {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in (0..self.len).step_by(LANES) {
            let left = self.len - i;
            // SAFETY: see the type; `left` elements are left.
            unsafe {
                let gate = load_up_to(s, self.gate.add(i), left);
                let up = load_up_to(s, self.up.add(i), left);
                store_up_to(s, self.out.add(i), s.mul(activated(s, self.activation, gate), up), left);
            }
        }
    }
}

/// The activation of a gate.
#[inline(always)]
pub(super) fn activated<S: Simd>(s: S, activation: Activation, gate: S::V) -> S::V {
    let z = match activation {
        Activation::GeluTanh => s.mul(gate, s.fma(s.mul(gate, gate), s.splat(GELU_B), s.splat(GELU_A))),
        _ => gate,
    };
    math::times_sigmoid(s, gate, z)
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::Live;
    use anyfleet_tensor::ops::{ActMul, Activation};

    fn naive(activation: Activation, gate: f32, up: f32) -> f32 {
        let x = f64::from(gate);
        let active = match activation {
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            _ => x / (1.0 + (-x).exp()),
        };
        (active * f64::from(up)) as f32
    }

    #[test]
    fn agrees_with_the_naive_twin() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for (rows, cols) in [(1, 1), (3, 7), (4, 33), (2, 2500)] {
                let source: Vec<f32> = random(4, rows * 2 * cols).iter().map(|v| v * 4.0).collect();
                same_bits(|device| {
                    let gate_up = columns_of(device, &source, rows, 2 * cols);
                    let out = tensor(device, &vec![POISON; (rows + 1) * cols], &[rows + 1, cols]);
                    let shown = out.narrow(0, rows);
                    bind(device, 9, |enc| {
                        enc.act_mul(ActMul { out: &shown, gate_up: &gate_up, activation, live: Live::Tokens })
                    });
                    let got = read(device, &out);
                    for row in 0..rows {
                        let (gate, up) = source[row * 2 * cols..][..2 * cols].split_at(cols);
                        let want: Vec<f32> = gate.iter().zip(up).map(|(&g, &u)| naive(activation, g, u)).collect();
                        close(&got[row * cols..][..cols], &want, 2e-6);
                    }
                    assert!(got[rows * cols..].iter().all(|&v| v == POISON));
                    got
                });
            }
        }
    }

    #[test]
    fn extremes_stay_finite() {
        let gate = [-1e30f32, -1e5, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, 1e5, 1e30];
        let source = [&gate[..], &[1.0; 10]].concat();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            same_bits(|device| {
                let gate_up = tensor(device, &source, &[1, 20]);
                let out = tensor(device, &[POISON; 10], &[1, 10]);
                bind(device, 1, |enc| {
                    enc.act_mul(ActMul { out: &out, gate_up: &gate_up, activation, live: Live::All })
                });
                let got = read(device, &out);
                for (&x, &y) in gate.iter().zip(&got) {
                    let want = if x < 0.0 { 0.0 } else { x };
                    assert!((y - want).abs() <= 1e-30, "{activation:?}({x}) = {y}");
                }
                got
            });
        }
    }
}
