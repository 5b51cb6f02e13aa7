// Sorts pairs of a row and an expert by expert, and those of an expert by row: a workgroup an expert.
//
// Each workgroup goes over all pairs by itself: what it counts does not depend on the others, nor on who is first.
struct Params {
    rows: u32,
    live: u32,
    places: u32,
    order: u32,
    offsets: u32,
    hits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
// `[rows][PER_TOKEN]`: what `route` chose.
@group(0) @binding(2) var<storage, read> chosen: array<u32>;
@group(0) @binding(3) var<storage, read_write> places: array<u32>;
@group(0) @binding(4) var<storage, read_write> order: array<u32>;
@group(0) @binding(5) var<storage, read_write> offsets: array<u32>;
@group(0) @binding(6) var<storage, read_write> hits: array<u32>;

const THREADS: u32 = 128u;
const WORDS: u32 = (EXPERTS + 31u) / 32u;

// Pairs of each thread: with experts before this one, and with this one.
var<workgroup> counts: array<vec2<u32>, THREADS>;
// A bit for each expert that has pairs.
var<workgroup> seen: array<atomic<u32>, WORDS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let expert = grid_index(group);
    if expert >= EXPERTS {
        return;
    }
    for (var i = thread; i < WORDS; i += THREADS) {
        atomicStore(&seen[i], 0u);
    }
    workgroupBarrier();
    let pairs = live_rows(p.rows, p.live) * PER_TOKEN;
    // Consecutive pairs of each thread.
    let share = max((pairs + THREADS - 1u) / THREADS, 1u);
    let first = min(thread * share, pairs);
    let end = min(first + share, pairs);
    var count = vec2<u32>(0u);
    for (var i = first; i < end; i++) {
        let other = chosen[i];
        count += vec2<u32>(select(0u, 1u, other < expert), select(0u, 1u, other == expert));
        let bit = 1u << (other % 32u);
        if (atomicLoad(&seen[other / 32u]) & bit) == 0u {
            atomicOr(&seen[other / 32u], bit);
        }
    }
    counts[thread] = count;
    workgroupBarrier();
    var offset = 0u;
    var own = 0u;
    var place = 0u;
    // Threads past these have no pairs.
    let busy = (pairs + share - 1u) / share;
    for (var i = 0u; i < busy; i++) {
        offset += counts[i].x;
        own += counts[i].y;
        place += select(0u, counts[i].y, i < thread);
    }
    place += offset;
    for (var i = first; i < end; i++) {
        if chosen[i] == expert {
            places[p.places + i] = place;
            order[p.order + place] = i / PER_TOKEN;
            place++;
        }
    }
    if thread > 0u {
        return;
    }
    offsets[p.offsets + expert] = offset;
    var before = 0u;
    var all = 0u;
    for (var i = 0u; i < WORDS; i++) {
        let word = atomicLoad(&seen[i]);
        all += countOneBits(word);
        if i < expert / 32u {
            before += countOneBits(word);
        } else if i == expert / 32u {
            before += countOneBits(word & ((1u << (expert % 32u)) - 1u));
        }
    }
    if own > 0u {
        hits[p.hits + 1u + before] = expert;
    }
    if expert == 0u {
        hits[p.hits] = all;
        offsets[p.offsets + EXPERTS] = pairs;
    }
}
