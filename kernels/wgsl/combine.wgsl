// out[t] = sum over j of weights[t, j] * x[places[t, j]] (+ residual[t]), j ascending: a thread an element.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    per_token: u32,
    x: u32,
    x_stride: u32,
    x_rows: u32,
    out: u32,
    out_stride: u32,
    weights: u32,
    places: u32,
    residual: u32,
    residual_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> places: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
#if RESIDUAL
@group(0) @binding(6) var<storage, read> residual: array<f32>;
#endif

const THREADS: u32 = 128u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    let column = group.z * THREADS + thread;
    if row >= live_rows(p.rows, p.live) || column >= p.width {
        return;
    }
    var sum = 0.0;
    for (var j = 0u; j < p.per_token; j++) {
        let pair = row * p.per_token + j;
        let place = min(places[p.places + pair], p.x_rows - 1u);
        sum = fma(x[p.x + place * p.x_stride + column], weights[p.weights + pair], sum);
    }
    let at = p.out + row * p.out_stride + column;
#if RESIDUAL
    sum += residual[p.residual + row * p.residual_stride + column];
#endif
#if IN_PLACE
    sum += out[at];
#endif
    out[at] = sum;
}
