// Activations of `linear` as floats, for the kernels that read them so.
#if X_VECTORS
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
#else
@group(0) @binding(3) var<storage, read> x: array<f32>;
#endif

fn load_x(first: u32, k: u32) -> f32 {
#if X_VECTORS
    return x[(first + k) / 4u][k % 4u];
#else
    return x[first + k];
#endif
}
