//! `norm`: RMS normalisation.
use crate::CpuBackend;
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, math, store_up_to};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::Norm;
use anyfleet_tensor::{Live, Result};

pub(crate) struct NormOp {
    out: View,
    x: View,
    weight: View,
    residual: Option<View>,
    eps: f32,
    live: Live,
}

impl NormOp {
    pub(crate) fn new(op: &Norm<'_, CpuBackend>) -> Result<Self> {
        let (out, x, weight) = (View::new("norm", op.out)?, View::new("norm", op.x)?, View::new("norm", op.weight)?);
        check_apart("norm", &out, &weight)?;
        // Rows are read whole before they are written, so `out` may be `x`, but not a shifted part of it.
        let residual = op.residual.map(|residual| View::new("norm", residual)).transpose()?;
        for input in std::iter::once(&x).chain(&residual).filter(|input| !out.same_place(input)) {
            check_apart("norm", &out, input)?;
        }
        Ok(NormOp { out, x, weight, residual, eps: op.eps, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.out.rows());
        ctx.split(rows, 2 * self.x.cols(), |range| {
            for row in range {
                ctx.kernels.run(NormRow {
                    out: self.out.row(row),
                    x: self.x.row(row),
                    weight: self.weight.flat(),
                    residual: self.residual.as_ref().map(|residual| residual.row::<f32>(row).cast_const()),
                    len: self.x.cols(),
                    eps: self.eps,
                });
            }
        });
    }
}

/// `out = x / sqrt(mean(x^2) + eps) * weight (+ residual)` over one row; `out` may be `x` or the residual. Whoever makes the value
/// promises `len` elements at each pointer.
struct NormRow {
    out: *mut f32,
    x: *const f32,
    weight: *const f32,
    residual: Option<*const f32>,
    len: usize,
    eps: f32,
}

impl Kernel for NormRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: see the type.
        let scale = s.splat(unsafe { scale(s, self.x, self.len, self.eps) });
        let whole = self.len - self.len % LANES;
        for i in (0..whole).step_by(LANES) {
            // SAFETY: see the type; sixteen elements are left.
            unsafe { self.vector(s, scale, i, LANES) };
        }
        if whole < self.len {
            // SAFETY: see the type; that many are left.
            unsafe { self.vector(s, scale, whole, self.len - whole) };
        }
    }
}

impl NormRow {
    /// Scales up to sixteen elements.
    ///
    /// # Safety
    /// `n` elements are left at `i`.
    #[inline(always)]
    unsafe fn vector<S: Simd>(&self, s: S, scale: S::V, i: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = s.mul(load_up_to(s, self.x.add(i), n), scale);
            let mut out = s.mul(x, load_up_to(s, self.weight.add(i), n));
            if let Some(residual) = self.residual {
                out = s.add(out, load_up_to(s, residual.add(i), n));
            }
            store_up_to(s, self.out.add(i), out, n);
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
///
/// # Safety
/// `len` elements are readable at `x`.
#[inline(always)]
pub(crate) unsafe fn scale<S: Simd>(s: S, x: *const f32, len: usize, eps: f32) -> f32 {
    // SAFETY: the caller's promise.
    1.0 / (unsafe { math::mean_square(s, x, len) } + eps).sqrt()
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::Live;
    use anyfleet_tensor::ops::Norm;

    fn naive(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
        let mean = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(eps)).sqrt();
        x.iter().zip(weight).map(|(&x, &w)| (f64::from(x) * scale * f64::from(w)) as f32).collect()
    }

    #[test]
    fn agrees_with_the_naive_twin() {
        for (rows, cols) in [(1, 1), (3, 7), (5, 16), (2, 80), (9, 1000)] {
            let (x, weight) = (random(2, rows * cols), random(3, cols));
            same_bits(|device| {
                let wide = columns_of(device, &x, rows, cols);
                let weight_tensor = tensor(device, &weight, &[cols]);
                let out = tensor(device, &vec![POISON; rows * cols], &[rows, cols]);
                let live = rows as u32 - u32::from(rows > 1);
                bind(device, live, |enc| {
                    enc.norm(Norm {
                        out: &out,
                        x: &wide,
                        weight: &weight_tensor,
                        eps: 1e-5,
                        residual: None,
                        live: Live::Tokens,
                    });
                    enc.norm(Norm {
                        out: &wide,
                        x: &wide,
                        weight: &weight_tensor,
                        eps: 1e-5,
                        residual: None,
                        live: Live::Tokens,
                    });
                });
                let got = read(device, &out);
                assert_eq!(got[..live as usize * cols], read_rows(device, &wide, live as usize)[..]);
                for (row, got) in got.chunks(cols).enumerate() {
                    if row < live as usize {
                        close(got, &naive(&x[row * cols..][..cols], &weight, 1e-5), 1e-6);
                    } else {
                        assert!(got.iter().all(|&v| v == POISON));
                    }
                }
                got
            });
        }
    }
}
