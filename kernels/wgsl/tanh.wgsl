// tanh(x) with the operations of crates/cpu/src/simd/math.rs; with `quotient` of activation.wgsl.
fn tanh_of(x: f32) -> f32 {
    let square = x * x;
    if square > 0.625 * 0.625 {
        return 1.0 - quotient(2.0, 1.0 + exact_exp(2.0 * x));
    }
    var series = -5.7049887e-3;
    series = fma(series, square, 2.0639089e-2);
    series = fma(series, square, -5.3739716e-2);
    series = fma(series, square, 1.3331442e-1);
    series = fma(series, square, -3.3333282e-1);
    return fma(series * square, x, x);
}
