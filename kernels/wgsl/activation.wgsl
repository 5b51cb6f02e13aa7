// The activations of gated MLPs.
const SILU: u32 = 0u;
const GELU_TANH: u32 = 1u;

// x / d to a unit or so: a device's own quotient may be off by more.
fn quotient(x: f32, d: f32) -> f32 {
    let inverse = 1.0 / d;
    let q = x * inverse;
    let better = fma(fma(-q, d, x), inverse, q);
    return select(q, better, abs(better) <= INFINITY);
}

fn activated(function: u32, x: f32) -> f32 {
    if function == SILU {
        return quotient(x, 1.0 + exact_exp(-x));
    }
    // x / 2 * (1 + tanh(u)) is x * sigmoid(2 u), without the cancellation for large negative x.
    let u = 0.7978845608028654 * fma(0.044715 * x * x, x, x);
    return quotient(x, 1.0 + exact_exp(-2.0 * u));
}
