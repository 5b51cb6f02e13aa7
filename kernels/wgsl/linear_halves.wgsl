// Rows of activations as `linear_matrix` takes them: f16 times a power of two, as crates/tensor/src/halves.rs states. A
// workgroup a row. After the last row come the exponents of all rows, as f16 too.
struct Params {
    rows: u32,
    live: u32,
    width: u32,
    x: u32,
    x_stride: u32,
    // Pairs of a row, zeros at its end included.
    pairs: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> halves: array<u32>;

const THREADS: u32 = 128u;
var<workgroup> largest: array<u32, THREADS>;

fn half(first: u32, k: u32, factor: f32) -> u32 {
    if k >= p.width {
        return 0u;
    }
    return to_f16(x[first + k] * factor);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let first = p.x + row * p.x_stride;
    // As integers, magnitudes are in order, and what is not finite is above all others.
    var most = 0u;
    for (var k = thread; k < p.width; k += THREADS) {
        most = max(most, bitcast<u32>(x[first + k]) & 0x7fffffffu);
    }
    largest[thread] = most;
    for (var span = THREADS / 2u; span > 0u; span /= 2u) {
        workgroupBarrier();
        if thread < span {
            largest[thread] = max(largest[thread], largest[thread + span]);
        }
    }
    workgroupBarrier();
    let exponent = select(min(141 - i32(largest[0] >> 23u), 126), 0, largest[0] == 0u);
    if thread == 0u {
        halves[p.rows * p.pairs + row] = to_f16(f32(exponent));
    }
    let factor = power_of_two(exponent);
    for (var i = thread; i < p.pairs; i += THREADS) {
        halves[row * p.pairs + i] = half(first, 2u * i, factor) | half(first, 2u * i + 1u, factor) << 16u;
    }
}
