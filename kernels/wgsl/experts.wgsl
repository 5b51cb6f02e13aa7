// Which rows and which matrix a workgroup of a product with experts' matrices has.
//
// Rows of an expert lie together and are cut into runs of ROWS; all runs of all experts are in one list. Before those of
// hit `h` are as many as (rows before it + (ROWS - 1) * h) / ROWS: at least all that are needed, known without the
// sizes of other experts, and together no more than the worst case, for which the grid has to be large enough anyway.
@group(0) @binding(7) var<storage, read> offsets: array<u32>;
@group(0) @binding(8) var<storage, read> hits: array<u32>;
#if X_ROWS
@group(0) @binding(9) var<storage, read> x_rows: array<u32>;
#endif

fn hit(i: u32) -> u32 {
    return min(hits[p.hits + 1u + i], p.stack - 1u);
}

// Hits of experts before `expert`, of `count`.
fn hits_before(expert: u32, count: u32) -> u32 {
    if expert == 0u || expert >= p.stack {
        return select(count, 0u, expert == 0u);
    }
    var low = 0u;
    var high = count;
    while low < high {
        let middle = (low + high) / 2u;
        if hit(middle) < expert {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

fn work_of(run: u32) -> Work {
    let count = min(hits[p.hits], p.most_hits);
    let first_hit = hits_before(p.first_expert, count);
    var low = first_hit;
    var high = hits_before(p.first_expert + p.experts, count);
    if low >= high {
        return Work(0u, 0u, 0u);
    }
    let start = offsets[p.offsets + p.first_expert];
    // The last hit whose runs begin at `run` or before.
    var first_run = 0u;
    while high - low > 1u {
        let middle = (low + high) / 2u;
        let rows = offsets[p.offsets + hit(middle)] - start;
        let begin = (rows + (ROWS - 1u) * (middle - first_hit)) / ROWS;
        if begin <= run {
            low = middle;
            first_run = begin;
        } else {
            high = middle;
        }
    }
    let expert = hit(low);
    let first = offsets[p.offsets + expert] + (run - first_run) * ROWS;
    let end = min(offsets[p.offsets + expert + 1u], p.rows);
    return Work(first, end, (expert - p.first_expert) * p.panels);
}

// Where a row of `out` has its activations.
fn x_first(row: u32) -> u32 {
#if X_ROWS
    return p.x + min(x_rows[p.index + row], p.x_rows - 1u) * p.x_stride;
#else
    return p.x + row * p.x_stride;
#endif
}
