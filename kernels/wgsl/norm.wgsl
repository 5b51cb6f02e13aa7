// out = x / sqrt(mean(x^2) + eps) * weight (+ residual): a workgroup a row.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    eps: f32,
    x: u32,
    x_stride: u32,
    out: u32,
    out_stride: u32,
    weight: u32,
    residual: u32,
    residual_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
#if !IN_PLACE
@group(0) @binding(4) var<storage, read> x: array<f32>;
#endif
#if RESIDUAL
@group(0) @binding(5) var<storage, read> residual: array<f32>;
#endif

const THREADS: u32 = 128u;
var<workgroup> sums: array<f32, THREADS>;

fn load(i: u32) -> f32 {
#if IN_PLACE
    return out[i];
#else
    return x[i];
#endif
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#if SUBGROUPS
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
#endif
) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let first = p.x + row * p.x_stride;
    var sum = 0.0;
    for (var i = thread; i < p.width; i += THREADS) {
        let v = load(first + i);
        sum = fma(v, v, sum);
    }
#if SUBGROUPS
    sum = subgroupAdd(sum);
    if lane == 0u {
        sums[subgroup] = sum;
    }
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < subgroups; i++) {
        sum += sums[i];
    }
#else
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    sum = sums[0];
#endif
    let scale = 1.0 / sqrt(sum / f32(p.width) + p.eps);
    for (var i = thread; i < p.width; i += THREADS) {
        let value = load(first + i) * scale * weight[p.weight + i];
        let place = p.out + row * p.out_stride + i;
#if RESIDUAL
        out[place] = value + residual[p.residual + row * p.residual_stride + i];
#else
#if ADD
        out[place] = value + out[place];
#else
        out[place] = value;
#endif
#endif
    }
}
