// out[r] = x[rows[r]]: a workgroup a row.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    x: u32,
    x_stride: u32,
    x_rows: u32,
    out: u32,
    out_stride: u32,
    index: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> index: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const THREADS: u32 = 128u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let source = p.x + min(index[p.index + row], p.x_rows - 1u) * p.x_stride;
    for (var i = thread; i < p.width; i += THREADS) {
        out[p.out + row * p.out_stride + i] = x[source + i];
    }
}
