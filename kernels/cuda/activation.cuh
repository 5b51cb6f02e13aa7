// Activations of gated MLPs: 0 is SiLU, 1 is GELU in its tanh form (`function` of crates/cuda/src/ops/mod.rs).
SHARED_DEVICE float activation(float x, u32 function) {
    if (function == 0) return x / (1.0f + exact_exp(-x));
    // x / 2 * (1 + tanh(u)) is x * sigmoid(2 u), without the cancellation for large negative x.
    float u = 0.7978845608028654f * fmaf(0.044715f * x * x, x, x);
    return x / (1.0f + exact_exp(-2.0f * u));
}
