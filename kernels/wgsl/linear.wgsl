// out = x * weight^T (+ bias) (+ residual), or activation(gate) * up of a gated weight.
//
// A workgroup computes a panel of LANES output features for ROWS rows. K is cut into SPLITS runs of steps; within a
// run products are added in order by fused multiply-adds, and runs in order: a sum does not depend on ROWS or on how
// many rows there are.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    steps: u32,
    // The part's first lane, and output features of the whole matrix.
    first: u32,
    total: u32,
    gated: u32,
    function: u32,
    multipliers: u32,
    scales: u32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
    bias: u32,
    residual: u32,
    residual_stride: u32,
    panels: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
#if X_VECTORS
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
#else
@group(0) @binding(3) var<storage, read> x: array<f32>;
#endif
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(6) var<storage, read> residual: array<f32>;
#endif

const SPLITS: u32 = 16u;
var<workgroup> parts: array<f32, ROWS * SPLITS * LANES>;

fn load_x(first: u32, k: u32) -> f32 {
#if X_VECTORS
    return x[(first + k) / 4u][k % 4u];
#else
    return x[first + k];
#endif
}

@compute @workgroup_size(LANES, SPLITS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let panel = grid_index(group);
    let rows = live_rows(p.rows, p.live);
    let first_row = group.z * ROWS;
    if panel >= p.panels || first_row >= rows {
        return;
    }
    let lane = local.x;
    let split = local.y;
    let run = (p.steps + SPLITS - 1u) / SPLITS;
    let end = min(p.steps, (split + 1u) * run);
    var x_first: array<u32, ROWS>;
    var sums: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        // Rows past the last are computed again and dropped.
        x_first[r] = p.x + min(first_row + r, rows - 1u) * p.x_stride;
        sums[r] = 0.0;
    }
    let whole = p.width / ELEMENTS;
    for (var s = split * run; s < end; s++) {
        let step = weight[(panel * p.steps + s) * LANES + lane];
        var multiplier = 1.0;
        if FORMAT == Q4 {
            let i = (panel * p.steps + s) * LANES + lane;
            multiplier = signed_byte(weight[p.multipliers + i / 16u][i % 16u / 4u], i % 4u);
        }
        let k = s * ELEMENTS;
        if s < whole {
#if X_VECTORS
            for (var i = 0u; i < ELEMENTS; i += 4u) {
                let w = vec4<f32>(
                    element(step, i), element(step, i + 1u), element(step, i + 2u), element(step, i + 3u),
                ) * multiplier;
                for (var r = 0u; r < ROWS; r++) {
                    let v = x[(x_first[r] + k + i) / 4u];
                    sums[r] = fma(v.w, w.w, fma(v.z, w.z, fma(v.y, w.y, fma(v.x, w.x, sums[r]))));
                }
            }
#else
            for (var i = 0u; i < ELEMENTS; i++) {
                let w = element(step, i) * multiplier;
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = fma(x[x_first[r] + k + i], w, sums[r]);
                }
            }
#endif
        } else {
            for (var i = 0u; i < p.width - k; i++) {
                let w = element(step, i) * multiplier;
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = fma(load_x(x_first[r], k + i), w, sums[r]);
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        parts[(r * SPLITS + split) * LANES + lane] = sums[r];
    }
    workgroupBarrier();
    for (var i = thread; i < ROWS * LANES; i += SPLITS * LANES) {
        let r = i / LANES;
        let row = first_row + r;
        let column = i % LANES;
        if row < rows {
            finish(panel, row, r, column);
        }
    }
}

// The sum of lane `lane` with scale and bias.
fn total(panel: u32, r: u32, lane: u32, feature: u32) -> f32 {
    var sum = 0.0;
    for (var split = 0u; split < SPLITS; split++) {
        sum += parts[(r * SPLITS + split) * LANES + lane];
    }
    if FORMAT == Q8 || FORMAT == Q4 {
        let i = panel * LANES + lane;
        sum *= bitcast<f32>(weight[p.scales + i / 4u][i % 4u]);
    }
#if BIAS
    sum += bias[p.bias + feature];
#endif
    return sum;
}

fn finish(panel: u32, row: u32, r: u32, lane: u32) {
    var feature = p.first + panel * LANES + lane;
    if p.gated != 0u {
        feature = (p.first / LANES + panel) * (LANES / 2u) + lane % (LANES / 2u);
        if feature >= p.total / 2u {
            return;
        }
        if lane >= LANES / 2u {
            feature += p.total / 2u;
        }
    }
    if feature >= p.total {
        return;
    }
#if ACTIVATION
    if lane < LANES / 2u {
        let gate = total(panel, r, lane, feature);
        let up = total(panel, r, lane + LANES / 2u, feature + p.total / 2u);
        out[p.out + row * p.out_stride + feature] = activated(p.function, gate) * up;
    }
#else
    var value = total(panel, r, lane, feature);
    let place = p.out + row * p.out_stride + feature;
#if RESIDUAL
    value += residual[p.residual + row * p.residual_stride + feature];
#endif
#if IN_PLACE
    value += out[place];
#endif
    out[place] = value;
#endif
}
