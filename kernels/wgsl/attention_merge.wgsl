// Combines the segments of `attention`: a workgroup a token row and a query head.
struct Params {
    rows: u32,
    sequences: u32,
    live: u32,
    heads: u32,
    window: u32,
    segments: u32,
    seqs: u32,
    seqs_stride: u32,
    records: u32,
    out: u32,
    out_stride: u32,
    sinks: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> seqs: array<u32>;
@group(0) @binding(3) var<storage, read> records: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#if SINKS
@group(0) @binding(5) var<storage, read> sinks: array<f32>;
#endif

const THREADS: u32 = 64u;
const SEGMENT: u32 = 256u;
const LOWEST: f32 = -3.0e38;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(id);
    let entries = live_rows(p.sequences, p.live);
    // Every thread looks for itself: what one finds and shares costs a barrier.
    var s = 0u;
    while s < entries && row - seqs[p.seqs + s * p.seqs_stride] >= seqs[p.seqs + s * p.seqs_stride + 1u] {
        s++;
    }
    if s == entries || row >= p.rows {
        return;
    }
    let seq = p.seqs + s * p.seqs_stride;
    let end = seqs[seq + 2u] - seqs[seq + 1u] + (row - seqs[seq]) + 1u;
    var low = 0u;
    if p.window != 0u && end > p.window {
        low = end - p.window;
    }
    let first = low / SEGMENT;
    let last = (end - 1u) / SEGMENT;
    let base = p.records + (row * p.heads + id.z) * p.segments * (SIZE + 2u);
    for (var element = thread; element < SIZE; element += THREADS) {
        var highest = LOWEST;
        var total = 0.0;
        var sum = 0.0;
        for (var segment = first; segment <= last; segment++) {
            let record = base + segment * (SIZE + 2u);
            let most = max(highest, records[record]);
            let a = exact_exp(highest - most);
            let b = exact_exp(records[record] - most);
            total = fma(total, a, records[record + 1u] * b);
            sum = fma(sum, a, records[record + 2u + element] * b);
            highest = most;
        }
#if SINKS
        let sink = sinks[p.sinks + id.z];
        let most = max(highest, sink);
        let factor = exact_exp(highest - most);
        total = fma(total, factor, exact_exp(sink - most));
        sum *= factor;
#endif
        out[p.out + row * p.out_stride + id.z * SIZE + element] = sum / total;
    }
}
