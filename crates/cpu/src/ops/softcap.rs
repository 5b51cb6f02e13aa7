//! `softcap`: a soft bound of logits.
use crate::CpuBackend;
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, math, store_up_to};
use crate::view::View;
use anyfleet_tensor::ops::Softcap;
use anyfleet_tensor::{Live, Result};

pub(crate) struct SoftcapOp {
    x: View,
    cap: f32,
    live: Live,
}

/// Columns one task handles at least; a multiple of the lanes.
const COLUMNS: usize = 1024;

impl SoftcapOp {
    pub(crate) fn new(op: &Softcap<'_, CpuBackend>) -> Result<Self> {
        Ok(SoftcapOp { x: View::new("softcap", op.x)?, cap: op.cap, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let (rows, cols) = (ctx.live(self.live, self.x.rows()), self.x.cols());
        let pieces = cols.div_ceil(COLUMNS);
        // An exponential costs about as much as touching eight elements.
        ctx.split(rows * pieces, 8 * cols.min(COLUMNS), |range| {
            for item in range {
                let (row, start) = (item / pieces, item % pieces * COLUMNS);
                // SAFETY: `start < cols`.
                let x = unsafe { self.x.row::<f32>(row).add(start) };
                ctx.kernels.run(Capped { x, len: COLUMNS.min(cols - start), cap: self.cap });
            }
        });
    }
}

/// `x = cap * tanh(x / cap)`; whoever makes the value promises `len` elements.
struct Capped {
    x: *mut f32,
    len: usize,
    cap: f32,
}

impl Kernel for Capped {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (cap, inverse) = (s.splat(self.cap), s.splat(1.0 / self.cap));
        for i in (0..self.len).step_by(LANES) {
            // SAFETY: see the type.
            unsafe {
                let x = load_up_to(s, self.x.add(i), self.len - i);
                let capped = s.mul(math::tanh(s, s.mul(x, inverse)), cap);
                store_up_to(s, self.x.add(i), capped, self.len - i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::Live;
    use anyfleet_tensor::ops::Softcap;

    #[test]
    fn agrees_with_the_naive_twin() {
        for (rows, cols) in [(1, 1), (3, 7), (5, 16), (2, 2100)] {
            let x: Vec<f32> = random(2, rows * cols).iter().map(|v| v * 100.0).collect();
            let want: Vec<f32> = x.iter().map(|&v| (30.0 * (f64::from(v) / 30.0).tanh()) as f32).collect();
            same_bits(|device| {
                let wide = columns_of(device, &x, rows, cols);
                let live = rows as u32 - u32::from(rows > 1);
                bind(device, live, |enc| enc.softcap(Softcap { x: &wide, cap: 30.0, live: Live::LogitRows }));
                let got = read_rows(device, &wide, rows);
                let live = live as usize * cols;
                close(&got[..live], &want[..live], 1e-6);
                assert_eq!(got[live..], x[live..]);
                got
            });
        }
    }
}
