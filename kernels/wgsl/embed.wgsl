// out[t] = scale * weight[ids[t]], for the ids that this part of the matrix has: a workgroup a row.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    steps: u32,
    // The part's first output feature, how many it has, and of the whole matrix.
    first: u32,
    count: u32,
    total: u32,
    gated: u32,
    multipliers: u32,
    scales: u32,
    ids: u32,
    out: u32,
    out_stride: u32,
    // Where the sampled tokens start, and how many there are: none without them.
    sampled: u32,
    sampled_count: u32,
    scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> sampled: array<u32>;

const THREADS: u32 = 128u;
// `SAMPLED` of crates/tensor/src/ops.rs.
const SAMPLED: u32 = 0x80000000u;

fn token(row: u32) -> u32 {
    let id = ids[p.ids + row];
    if p.sampled_count == 0u || (id & SAMPLED) == 0u {
        return id;
    }
    return sampled[p.sampled + min(id & ~SAMPLED, p.sampled_count - 1u)];
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    // Place of the output feature among all lanes.
    var n = min(token(row), p.total - 1u);
    if p.gated != 0u {
        let half = p.total / 2u;
        let up = select(0u, LANES / 2u, n >= half);
        n = n % half;
        n = n / (LANES / 2u) * LANES + up + n % (LANES / 2u);
    }
    if n < p.first || n >= p.first + p.count {
        return;
    }
    let panel = (n - p.first) / LANES;
    let lane = n % LANES;
    var scale = 1.0;
    if FORMAT == Q8 || FORMAT == Q4 {
        let i = panel * LANES + lane;
        scale = bitcast<f32>(weight[p.scales + i / 4u][i % 4u]);
    }
    for (var k = thread; k < p.width; k += THREADS) {
        let s = k / ELEMENTS;
        let step = step_at((panel * p.steps + s) * LANES + lane);
        let value = number(step, k % ELEMENTS, multiplier_of(panel, s, lane));
        out[p.out + row * p.out_stride + k] = value * scale * p.scale;
    }
}
