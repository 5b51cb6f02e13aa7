// Causal attention over pages: a workgroup a token row and a few query heads of one key/value head.
//
// Keys are taken in blocks of BLOCK and segments of SEGMENT, both counted from position 0. A segment has a running
// maximum, sum and output (online softmax, Milakov and Gimelshein 2018); segments are combined in order, here or by
// `attention_merge` after a workgroup for each, with the same operations.
struct Params {
    rows: u32,
    sequences: u32,
    live: u32,
    groups: u32,
    // Query heads of a key/value head, and how many workgroups share them.
    group_heads: u32,
    batches: u32,
    page_size: u32,
    pages: u32,
    scale: f32,
    // 0: no window.
    window: u32,
    segments: u32,
    seqs: u32,
    seqs_stride: u32,
    table: u32,
    table_len: u32,
    q: u32,
    q_stride: u32,
    out: u32,
    out_stride: u32,
    k_cache: u32,
    v_cache: u32,
    k_scales: u32,
    v_scales: u32,
    // What the scores are bounded by, and by which `scale` is divided already.
    softcap: f32,
    sinks: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> q: array<f32>;
@group(0) @binding(3) var<storage, read> k_cache: array<u32>;
#if !LATENT
@group(0) @binding(4) var<storage, read> v_cache: array<u32>;
#endif
@group(0) @binding(5) var<storage, read> seqs: array<u32>;
@group(0) @binding(6) var<storage, read> table: array<u32>;
@group(0) @binding(7) var<storage, read_write> out: array<f32>;
#if KV_I8
@group(0) @binding(8) var<storage, read> k_scales: array<f32>;
@group(0) @binding(9) var<storage, read> v_scales: array<f32>;
#endif
#if SINKS
@group(0) @binding(10) var<storage, read> sinks: array<f32>;
#endif

const BLOCK: u32 = 64u;
const SEGMENT: u32 = 256u;
const LOWEST: f32 = -3.0e38;
// Pairs of elements of a head that a thread adds up.
const PAIRS: u32 = (VALUE_SIZE / 2u + BLOCK - 1u) / BLOCK;

var<workgroup> queries: array<f32, HEADS * SIZE>;
var<workgroup> weights: array<f32, HEADS * BLOCK>;
var<workgroup> highest: array<f32, HEADS>;
var<workgroup> shrink: array<f32, HEADS>;
var<workgroup> totals: array<f32, HEADS>;
// Of the segments so far.
var<workgroup> all_highest: array<f32, HEADS>;
var<workgroup> all_totals: array<f32, HEADS>;
var<workgroup> factors: array<vec2<f32>, HEADS>;

// Place of the key at `position` in the caches, in heads.
fn token(seq: u32, group: u32, position: u32) -> u32 {
    let entry = seqs[seq + 3u] + position / p.page_size - seqs[seq + 4u];
    let page = min(table[p.table + min(entry, p.table_len - 1u)], p.pages - 1u);
    return (page * p.groups + group) * p.page_size + position % p.page_size;
}

fn key_pair(place: u32, i: u32, scale: f32) -> vec2<f32> {
    let at = p.k_cache + place * SIZE + i;
#if KV_F32
    return vec2<f32>(bitcast<f32>(k_cache[at]), bitcast<f32>(k_cache[at + 1u]));
#else
    return kv_pair(k_cache[at / PER_WORD], at % PER_WORD == 2u, scale);
#endif
}

// Of latents the first elements of a key are its value.
#if LATENT
fn value_pair(place: u32, i: u32, scale: f32) -> vec2<f32> {
    return key_pair(place, i, scale);
}
#else
fn value_pair(place: u32, i: u32, scale: f32) -> vec2<f32> {
    let at = p.v_cache + place * SIZE + i;
#if KV_F32
    return vec2<f32>(bitcast<f32>(v_cache[at]), bitcast<f32>(v_cache[at + 1u]));
#else
    return kv_pair(v_cache[at / PER_WORD], at % PER_WORD == 2u, scale);
#endif
}
#endif

// The score that a product of query and key becomes.
fn score_of(product: f32) -> f32 {
#if SOFTCAP
    return p.softcap * tanh_of(product * p.scale);
#else
    return product * p.scale;
#endif
}

#if SUBGROUPS
// What subgroups found of each head.
const SUBGROUPS: u32 = 16u;
var<workgroup> found: array<f32, HEADS * SUBGROUPS>;
#endif

@compute @workgroup_size(BLOCK)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
#if SUBGROUPS
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
#endif
) {
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
    let unit = id.z / p.segments;
    let group = unit / p.batches;
    let first_head = unit % p.batches * HEADS;
    let heads = min(HEADS, p.group_heads - first_head);
    var segment = low / SEGMENT;
    var last = (end - 1u) / SEGMENT;
#if SPLIT
    let mine = id.z % p.segments;
    if mine < segment || mine > last {
        return;
    }
    segment = mine;
    last = mine;
#endif
    let head = group * p.group_heads + first_head;
    for (var i = thread; i < HEADS * SIZE; i += BLOCK) {
        queries[i] = 0.0;
        if i / SIZE < heads {
            queries[i] = q[p.q + row * p.q_stride + head * SIZE + i];
        }
    }
    if thread < HEADS {
        all_highest[thread] = LOWEST;
        all_totals[thread] = 0.0;
    }
    var all: array<vec2<f32>, HEADS * PAIRS>;
    for (var i = 0u; i < HEADS * PAIRS; i++) {
        all[i] = vec2<f32>(0.0);
    }
    for (; segment <= last; segment++) {
        if thread < HEADS {
            highest[thread] = LOWEST;
            totals[thread] = 0.0;
        }
        var sums: array<vec2<f32>, HEADS * PAIRS>;
        for (var i = 0u; i < HEADS * PAIRS; i++) {
            sums[i] = vec2<f32>(0.0);
        }
        for (var block = segment * SEGMENT; block < (segment + 1u) * SEGMENT; block += BLOCK) {
            if block >= end || block + BLOCK <= low {
                continue;
            }
            workgroupBarrier();
            let key = block + thread;
            let visible = key >= low && key < end;
            var scores: array<f32, HEADS>;
            for (var h = 0u; h < HEADS; h++) {
                scores[h] = 0.0;
            }
            if visible {
                let place = token(seq, group, key);
                var scale = 1.0;
#if KV_I8
                scale = k_scales[p.k_scales + place];
#endif
                for (var i = 0u; i < SIZE; i += 2u) {
                    let k = key_pair(place, i, scale);
                    for (var h = 0u; h < HEADS; h++) {
                        scores[h] = fma(queries[h * SIZE + i + 1u], k.y, fma(queries[h * SIZE + i], k.x, scores[h]));
                    }
                }
            }
#if SUBGROUPS
            for (var h = 0u; h < HEADS; h++) {
                scores[h] = select(LOWEST, score_of(scores[h]), visible);
                let most = subgroupMax(scores[h]);
                if lane == 0u {
                    found[h * SUBGROUPS + subgroup] = most;
                }
            }
            workgroupBarrier();
            if thread < HEADS {
                var most = highest[thread];
                for (var i = 0u; i < subgroups; i++) {
                    most = max(most, found[thread * SUBGROUPS + i]);
                }
                shrink[thread] = exact_exp(highest[thread] - most);
                highest[thread] = most;
            }
            workgroupBarrier();
            for (var h = 0u; h < HEADS; h++) {
                let weight = select(0.0, exact_exp(scores[h] - highest[h]), visible);
                weights[h * BLOCK + thread] = weight;
                let sum = subgroupAdd(weight);
                if lane == 0u {
                    found[h * SUBGROUPS + subgroup] = sum;
                }
            }
            workgroupBarrier();
            if thread < HEADS {
                var sum = 0.0;
                for (var i = 0u; i < subgroups; i++) {
                    sum += found[thread * SUBGROUPS + i];
                }
                totals[thread] = fma(totals[thread], shrink[thread], sum);
            }
#else
            for (var h = 0u; h < HEADS; h++) {
                weights[h * BLOCK + thread] = select(LOWEST, score_of(scores[h]), visible);
            }
            workgroupBarrier();
            if thread < HEADS {
                var most = highest[thread];
                for (var i = 0u; i < BLOCK; i++) {
                    most = max(most, weights[thread * BLOCK + i]);
                }
                shrink[thread] = exact_exp(highest[thread] - most);
                highest[thread] = most;
            }
            workgroupBarrier();
            for (var h = 0u; h < HEADS; h++) {
                let at = h * BLOCK + thread;
                weights[at] = select(0.0, exact_exp(weights[at] - highest[h]), visible);
            }
            workgroupBarrier();
            if thread < HEADS {
                var sum = 0.0;
                for (var i = 0u; i < BLOCK; i++) {
                    sum += weights[thread * BLOCK + i];
                }
                totals[thread] = fma(totals[thread], shrink[thread], sum);
            }
#endif
            for (var i = 0u; i < HEADS * PAIRS; i++) {
                sums[i] *= shrink[i / PAIRS];
            }
            // What nobody sees is not read: it may be anything.
            for (var i = max(low, block) - block; i < min(end, block + BLOCK) - block; i++) {
                let place = token(seq, group, block + i);
                var scale = 1.0;
#if KV_I8
                scale = v_scales[p.v_scales + place];
#endif
                for (var pair = 0u; pair < PAIRS; pair++) {
                    let element = 2u * (pair * BLOCK + thread);
                    if element < VALUE_SIZE {
                        let v = value_pair(place, element, scale);
                        for (var h = 0u; h < HEADS; h++) {
                            let w = weights[h * BLOCK + i];
                            sums[h * PAIRS + pair] = fma(vec2<f32>(w), v, sums[h * PAIRS + pair]);
                        }
                    }
                }
            }
        }
        workgroupBarrier();
#if SPLIT
        // A record of maximum, sum and output for each head and segment.
        for (var h = 0u; h < heads; h++) {
            let record = p.out + ((row * p.groups * p.group_heads + head + h) * p.segments + segment) * (VALUE_SIZE + 2u);
            if thread == 0u {
                out[record] = highest[h];
                out[record + 1u] = totals[h];
            }
            for (var pair = 0u; pair < PAIRS; pair++) {
                let element = 2u * (pair * BLOCK + thread);
                if element < VALUE_SIZE {
                    out[record + 2u + element] = sums[h * PAIRS + pair].x;
                    out[record + 3u + element] = sums[h * PAIRS + pair].y;
                }
            }
        }
#else
        if thread < HEADS {
            let most = max(all_highest[thread], highest[thread]);
            let factor = vec2<f32>(exact_exp(all_highest[thread] - most), exact_exp(highest[thread] - most));
            factors[thread] = factor;
            all_totals[thread] = fma(all_totals[thread], factor.x, totals[thread] * factor.y);
            all_highest[thread] = most;
        }
        workgroupBarrier();
        for (var i = 0u; i < HEADS * PAIRS; i++) {
            let factor = factors[i / PAIRS];
            all[i] = fma(all[i], vec2<f32>(factor.x), sums[i] * factor.y);
        }
#endif
    }
#if !SPLIT
#if SINKS
    // A head's logit without a value joins when all segments are combined.
    workgroupBarrier();
    if thread < heads {
        let sink = sinks[p.sinks + head + thread];
        let most = max(all_highest[thread], sink);
        factors[thread].x = exact_exp(all_highest[thread] - most);
        all_totals[thread] = fma(all_totals[thread], factors[thread].x, exact_exp(sink - most));
    }
    workgroupBarrier();
    for (var i = 0u; i < HEADS * PAIRS; i++) {
        all[i] *= factors[i / PAIRS].x;
    }
#endif
    for (var h = 0u; h < heads; h++) {
        let place = p.out + row * p.out_stride + (head + h) * VALUE_SIZE;
        for (var pair = 0u; pair < PAIRS; pair++) {
            let element = 2u * (pair * BLOCK + thread);
            if element < VALUE_SIZE {
                let o = all[h * PAIRS + pair] / all_totals[h];
                out[place + element] = o.x;
                out[place + element + 1u] = o.y;
            }
        }
    }
#endif
}
