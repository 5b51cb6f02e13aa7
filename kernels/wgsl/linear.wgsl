// out = x * weight^T (+ bias) (+ residual), or activation(gate) * up of a gated weight.
//
// K is cut into SPLITS runs of steps; within a run products are added in order by fused multiply-adds, and runs in
// order, so that a sum does not depend on who computes it and how many rows there are. Few rows: a workgroup computes a
// panel of LANES output features for ROWS rows, each run by other threads, and reads every weight once. Many rows
// (TILED): a workgroup computes PANELS panels for ROWS rows, from tiles of weights and activations that it shares.
const SPLITS: u32 = 16u;
#if TILED
// Panels of a workgroup; threads of a row of threads are lanes, and each has PANELS lanes of SHARE rows.
const PANELS: u32 = 4u;
const SHARE: u32 = 4u;
const THREAD_ROWS: u32 = 16u;
// Input features of a tile.
const DEPTH: u32 = min(ELEMENTS, 16u);
const WIDTH: u32 = PANELS * LANES;
var<workgroup> parts: array<f32, ROWS * LANES>;
var<workgroup> tile_w: array<f32, DEPTH * WIDTH>;
var<workgroup> tile_x: array<f32, DEPTH * ROWS>;
#if X_ROWS
// Where the activations of each row begin.
var<workgroup> firsts: array<u32, ROWS>;
#endif
#else
var<workgroup> parts: array<f32, ROWS * SPLITS * LANES>;
#endif

// What a workgroup computes: up to ROWS rows from `first` on and below `end`, with the matrix whose first panel is `panel`.
struct Work {
    first: u32,
    end: u32,
    panel: u32,
}
#if !EXPERTS
#if !HEADS
fn work_of(run: u32) -> Work {
    return Work(run * ROWS, live_rows(p.rows, p.live), 0u);
}

fn x_first(row: u32) -> u32 {
    return p.x + row * p.x_stride;
}
#endif
#endif

#if TILED
@compute @workgroup_size(LANES, THREAD_ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_panel = grid_index(group) * PANELS;
    let work = work_of(group.z);
    if first_panel >= p.panels || work.first >= work.end {
        return;
    }
#if X_ROWS
    for (var r = thread; r < ROWS; r += LANES * THREAD_ROWS) {
        firsts[r] = x_first(min(work.first + r, work.end - 1u));
    }
#endif
    let run = (p.steps + SPLITS - 1u) / SPLITS;
    var totals: array<f32, PANELS * SHARE>;
    for (var i = 0u; i < PANELS * SHARE; i++) {
        totals[i] = 0.0;
    }
    for (var split = 0u; split < SPLITS; split++) {
        var sums: array<f32, PANELS * SHARE>;
        for (var i = 0u; i < PANELS * SHARE; i++) {
            sums[i] = 0.0;
        }
        let end = min(p.steps, (split + 1u) * run);
        for (var s = split * run; s < end; s++) {
            for (var part = 0u; part < ELEMENTS / DEPTH; part++) {
                let k = s * ELEMENTS + part * DEPTH;
                if k >= p.width {
                    break;
                }
                workgroupBarrier();
                load_tiles(thread, first_panel, work, s, part * DEPTH);
                workgroupBarrier();
                for (var i = 0u; i < min(DEPTH, p.width - k); i++) {
                    var w: array<f32, PANELS>;
                    for (var panel = 0u; panel < PANELS; panel++) {
                        w[panel] = tile_w[i * WIDTH + panel * LANES + local.x];
                    }
                    for (var r = 0u; r < SHARE; r++) {
                        let v = tile_x[i * ROWS + r * THREAD_ROWS + local.y];
                        for (var panel = 0u; panel < PANELS; panel++) {
                            sums[r * PANELS + panel] = fma(v, w[panel], sums[r * PANELS + panel]);
                        }
                    }
                }
            }
        }
        for (var i = 0u; i < PANELS * SHARE; i++) {
            totals[i] += sums[i];
        }
    }
    for (var panel = 0u; panel < PANELS; panel++) {
        workgroupBarrier();
        for (var r = 0u; r < SHARE; r++) {
            parts[(r * THREAD_ROWS + local.y) * LANES + local.x] = totals[r * PANELS + panel];
        }
        workgroupBarrier();
        for (var i = thread; i < ROWS * LANES; i += LANES * THREAD_ROWS) {
            let row = work.first + i / LANES;
            if row < work.end && first_panel + panel < p.panels {
                finish(work.panel + first_panel + panel, row, i / LANES, i % LANES);
            }
        }
    }
}

// Input features from `first` of step `s` on, of all lanes and rows of the workgroup.
fn load_tiles(thread: u32, first_panel: u32, work: Work, s: u32, first: u32) {
    for (var at = thread; at < DEPTH * WIDTH; at += LANES * THREAD_ROWS) {
        let i = at / WIDTH;
        // Panels past the last are read again and dropped.
        let panel = work.panel + min(first_panel + at % WIDTH / LANES, p.panels - 1u);
        let lane = at % LANES;
        let step = step_at((panel * p.steps + s) * LANES + lane);
        tile_w[at] = number(step, first + i, multiplier_of(panel, s, lane));
    }
    for (var at = thread; at < DEPTH * ROWS; at += LANES * THREAD_ROWS) {
        let i = at % DEPTH;
        // Beside each other in memory: threads next to each other take the features of a row.
        let k = min(s * ELEMENTS + first + i, p.width - 1u);
#if X_ROWS
        let begin = firsts[at / DEPTH];
#else
        let begin = x_first(min(work.first + at / DEPTH, work.end - 1u));
#endif
        tile_x[i * ROWS + at / DEPTH] = load_x(begin, k);
    }
}
#else
@compute @workgroup_size(LANES, SPLITS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let own = grid_index(group);
    let work = work_of(group.z);
    if own >= p.panels || work.first >= work.end {
        return;
    }
    let panel = work.panel + own;
    let lane = local.x;
    let split = local.y;
    let run = (p.steps + SPLITS - 1u) / SPLITS;
    let end = min(p.steps, (split + 1u) * run);
    var firsts: array<u32, ROWS>;
    var sums: array<f32, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        // Rows past the last are computed again and dropped.
        firsts[r] = x_first(min(work.first + r, work.end - 1u));
        sums[r] = 0.0;
    }
    let whole = p.width / ELEMENTS;
    for (var s = split * run; s < end; s++) {
        let step = step_at((panel * p.steps + s) * LANES + lane);
        let multiplier = multiplier_of(panel, s, lane);
        let k = s * ELEMENTS;
        if s < whole {
#if X_VECTORS
            for (var i = 0u; i < ELEMENTS; i += 4u) {
                let w = vec4<f32>(
                    number(step, i, multiplier),
                    number(step, i + 1u, multiplier),
                    number(step, i + 2u, multiplier),
                    number(step, i + 3u, multiplier),
                );
                for (var r = 0u; r < ROWS; r++) {
                    let v = x[(firsts[r] + k + i) / 4u];
                    sums[r] = fma(v.w, w.w, fma(v.z, w.z, fma(v.y, w.y, fma(v.x, w.x, sums[r]))));
                }
            }
#else
            for (var i = 0u; i < ELEMENTS; i++) {
                let w = number(step, i, multiplier);
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = fma(x[firsts[r] + k + i], w, sums[r]);
                }
            }
#endif
        } else {
            for (var i = 0u; i < p.width - k; i++) {
                let w = number(step, i, multiplier);
                for (var r = 0u; r < ROWS; r++) {
                    sums[r] = fma(load_x(firsts[r], k + i), w, sums[r]);
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
        let row = work.first + r;
        let column = i % LANES;
        if row < work.end {
            finish(panel, row, r, column);
        }
    }
}
#endif

// The sum of lane `lane` for row `r` of the workgroup.
fn sum_of(panel: u32, r: u32, lane: u32) -> f32 {
#if TILED
    return parts[r * LANES + lane];
#else
    var sum = 0.0;
    for (var split = 0u; split < SPLITS; split++) {
        sum += parts[(r * SPLITS + split) * LANES + lane];
    }
    return sum;
#endif
}
