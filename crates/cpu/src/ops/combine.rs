//! `combine`: what experts made of a row, added up.
use crate::CpuBackend;
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, store_up_to};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::Combine;
use anyfleet_tensor::{Live, Result};

pub(crate) struct CombineOp {
    out: View,
    x: View,
    weights: View,
    places: View,
    residual: Option<View>,
    live: Live,
}

impl CombineOp {
    pub(crate) fn new(op: &Combine<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("combine", tensor);
        let (out, x, weights, places) = (view(op.out)?, view(op.x)?, view(op.weights)?, view(op.places)?);
        let residual = op.residual.map(view).transpose()?;
        let others = [&x, &weights, &places].into_iter();
        for input in others.chain(residual.as_ref().filter(|r| !r.same_place(&out))) {
            check_apart("combine", &out, input)?;
        }
        Ok(CombineOp { out, x, weights, places, residual, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let (rows, per_token) = (ctx.live(self.live, self.out.rows()), self.weights.cols());
        ctx.split(rows, (per_token + 1) * self.out.cols(), |range| {
            for row in range {
                let first = row * per_token;
                for j in 0..per_token {
                    let place = self.places.u32_at(first + j) as usize;
                    assert!(place < self.x.rows(), "combine: place {place} of {}", self.x.rows());
                }
                ctx.kernels.run(Sum {
                    x: self.x.row::<f32>(0).cast(),
                    row_bytes: self.x.row_bytes(),
                    places: self.places.flat::<u32>().wrapping_add(first),
                    weights: self.weights.flat::<f32>().wrapping_add(first),
                    per_token,
                    residual: self.residual.as_ref().map(|residual| residual.row::<f32>(row).cast_const()),
                    out: self.out.row::<f32>(row),
                    len: self.out.cols(),
                });
            }
        });
    }
}

/// A row. Whoever makes the value promises `per_token` places and weights, rows of `x` at these places, and `len`
/// elements of each row, of which those of `out` belong to the task.
struct Sum {
    x: *const u8,
    row_bytes: usize,
    places: *const u32,
    weights: *const f32,
    per_token: usize,
    residual: Option<*const f32>,
    out: *mut f32,
    len: usize,
}

impl Kernel for Sum {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for start in (0..self.len).step_by(LANES) {
            let left = self.len - start;
            // SAFETY: see the type; `left` elements are left.
            unsafe {
                let mut sum = s.splat(0.0);
                for j in 0..self.per_token {
                    let row = self.x.add(*self.places.add(j) as usize * self.row_bytes).cast::<f32>();
                    sum = s.fma(load_up_to(s, row.add(start), left), s.splat(*self.weights.add(j)), sum);
                }
                if let Some(residual) = self.residual {
                    sum = s.add(sum, load_up_to(s, residual.add(start), left));
                }
                store_up_to(s, self.out.add(start), sum, left);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::Live;
    use anyfleet_tensor::ops::Combine;

    #[test]
    fn terms_are_added_in_order_and_the_residual_last() {
        let (rows, per_token, width) = (3, 2, 19);
        let x = random(1, rows * per_token * width);
        let (weights, added) = (random(2, rows * per_token), random(3, rows * width));
        let places = [4, 0, 5, 1, 2, 3];
        for device in devices() {
            let x_tensor = tensor(&device, &x, &[rows * per_token, width]);
            let out = tensor(&device, &added, &[rows, width]);
            let weights_tensor = tensor(&device, &weights, &[rows, per_token]);
            let places_tensor = tensor_u32(&device, &places, &[rows, per_token]);
            bind(&device, 2, |enc| {
                enc.combine(Combine {
                    out: &out,
                    x: &x_tensor,
                    weights: &weights_tensor,
                    places: &places_tensor,
                    residual: Some(&out),
                    live: Live::Tokens,
                });
            });
            let got = read(&device, &out);
            for (i, &got) in got.iter().enumerate() {
                let (row, column) = (i / width, i % width);
                let term = |j: usize| x[places[row * per_token + j] as usize * width + column];
                let sum = (0..per_token).fold(0.0f32, |sum, j| term(j).mul_add(weights[row * per_token + j], sum));
                let want = if row < 2 { sum + added[i] } else { added[i] };
                assert_eq!(got.to_bits(), want.to_bits(), "row {row} column {column}");
            }
        }
    }
}
