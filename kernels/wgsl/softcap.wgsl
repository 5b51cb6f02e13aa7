// x = cap * tanh(x / cap), in place: a thread an element.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    cap: f32,
    inverse: f32,
    x: u32,
    x_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

const THREADS: u32 = 128u;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    let column = group.z * THREADS + thread;
    if row >= live_rows(p.rows, p.live) || column >= p.width {
        return;
    }
    let at = p.x + row * p.x_stride + column;
    x[at] = tanh_of(x[at] * p.inverse) * p.cap;
}
