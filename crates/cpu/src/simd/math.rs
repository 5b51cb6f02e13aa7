//! Functions over sixteen lanes, in the fixed order of [`anyfleet_tensor::sampling`].
use super::{LANES, Simd, load_partial};
use anyfleet_tensor::sampling;

/// `e^x`: the bits of [`sampling::exp`].
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    s.select_gt(x, s.splat(sampling::EXP_INFINITE), s.splat(f32::INFINITY), exp_to_one(s, x))
}

/// [`exp`] of what is not above 0.
#[inline(always)]
pub(crate) fn exp_to_one<S: Simd>(s: S, x: S::V) -> S::V {
    let magic = s.splat(sampling::ROUND_MAGIC);
    let shifted = s.fma(x, s.splat(sampling::LOG2_E), magic);
    let n = s.sub(shifted, magic);
    let r = s.fma(n, s.splat(-sampling::LN2_HIGH), x);
    let r = s.fma(n, s.splat(-sampling::LN2_LOW), r);
    let mut series = s.splat(sampling::EXP_SERIES[0]);
    for &c in &sampling::EXP_SERIES[1..] {
        series = s.fma(series, r, s.splat(c));
    }
    let scaled = s.add_exponent(series, shifted);
    s.select_gt(s.splat(sampling::EXP_ZERO), x, s.splat(0.0), scaled)
}

/// `x * sigmoid(z) = x / (1 + e^-z)`.
#[inline(always)]
pub(crate) fn times_sigmoid<S: Simd>(s: S, x: S::V, z: S::V) -> S::V {
    let denominator = s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), z)));
    s.div(x, denominator)
}

/// Below this square of its argument, [`tanh`] is a polynomial.
const TANH_NEAR: f32 = 0.625 * 0.625;
/// Its coefficients, of x^11 down to x^3 (Moshier's Cephes, `tanhf`).
const TANH_SERIES: [f32; 5] = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];

/// `tanh(x)` with a relative error below 3 * 2^-23: `1 - 2 / (1 + e^2x)`, and where that would cancel, a polynomial.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let square = s.mul(x, x);
    let mut series = s.splat(TANH_SERIES[0]);
    for &c in &TANH_SERIES[1..] {
        series = s.fma(series, square, s.splat(c));
    }
    let near = s.fma(s.mul(series, square), x, x);
    let denominator = s.add(s.splat(1.0), exp(s, s.add(x, x)));
    let far = s.sub(s.splat(1.0), s.div(s.splat(2.0), denominator));
    s.select_gt(square, s.splat(TANH_NEAR), far, near)
}

/// Mean of squares over `n` elements: sixteen strided sums, then the reduction tree.
///
/// # Safety
/// `n` elements are readable at `x`.
#[inline(always)]
pub(crate) unsafe fn mean_square<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let mut sum = s.splat(0.0);
    let whole = n - n % LANES;
    for i in (0..whole).step_by(LANES) {
        // SAFETY: sixteen elements are left.
        let v = unsafe { s.load(x.add(i)) };
        sum = s.fma(v, v, sum);
    }
    if whole < n {
        // SAFETY: `n - whole` elements are left.
        let v = unsafe { load_partial(s, x.add(whole), n - whole) };
        sum = s.fma(v, v, sum);
    }
    s.reduce_add(sum) / n as f32
}
