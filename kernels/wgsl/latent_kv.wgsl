// Norm of latents, rotation, and the store of latents and keys: a workgroup a token's latent and key, or a query head of it.
struct Params {
    rows: u32,
    live: u32,
    heads: u32,
    // Elements of a head in `queries`.
    query: u32,
    page_size: u32,
    pages: u32,
    interleaved: u32,
    eps: f32,
    queries: u32,
    queries_stride: u32,
    kv: u32,
    kv_stride: u32,
    q: u32,
    q_stride: u32,
    positions: u32,
    slots: u32,
    table: u32,
    table_stride: u32,
    table_rows: u32,
    norm: u32,
    cache: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> queries: array<f32>;
@group(0) @binding(3) var<storage, read> kv: array<f32>;
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read> slots: array<u32>;
@group(0) @binding(6) var<storage, read_write> q: array<f32>;
#if KV_HALVES
// Tokens share words.
@group(0) @binding(7) var<storage, read_write> cache: array<atomic<u32>>;
#else
@group(0) @binding(7) var<storage, read_write> cache: array<u32>;
#endif
@group(0) @binding(8) var<storage, read> table: array<f32>;
@group(0) @binding(9) var<storage, read> norm: array<f32>;

const THREADS: u32 = 64u;
const SIZE: u32 = RANK + ROTATED;
var<workgroup> sums: array<f32, THREADS>;
// A token as the cache keeps it, or the rotated part of a query head.
var<workgroup> token: array<f32, SIZE>;

// Element `i` of a head after the rotation of its pair, of `x` of the queries or of the keys.
fn turned(position: u32, x: vec2<f32>, pair: u32, second: bool) -> f32 {
    let first = p.table + min(position, p.table_rows - 1u) * p.table_stride;
    let cosine = table[first + pair];
    let sine = table[first + ROTATED / 2u + pair];
    return select(fma(x.x, cosine, -(x.y * sine)), fma(x.x, sine, x.y * cosine), second);
}

// The pair of an element, the places of its two, and whether it is the second.
struct Pair {
    pair: u32,
    a: u32,
    b: u32,
    second: bool,
}
fn pair_of(i: u32) -> Pair {
    if p.interleaved != 0u {
        return Pair(i / 2u, i / 2u * 2u, i / 2u * 2u + 1u, i % 2u == 1u);
    }
    let half = ROTATED / 2u;
    return Pair(i % half, i % half, i % half + half, i >= half);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let position = positions[p.positions + row];
    if group.z < p.heads {
        let first = p.queries + row * p.queries_stride + group.z * p.query + p.query - ROTATED;
        for (var i = thread; i < ROTATED; i += THREADS) {
            let pair = pair_of(i);
            let x = vec2<f32>(queries[first + pair.a], queries[first + pair.b]);
            q[p.q + row * p.q_stride + group.z * SIZE + RANK + i] = turned(position, x, pair.pair, pair.second);
        }
        return;
    }
    let slot = slots[p.slots + row];
    if slot / p.page_size >= p.pages {
        return;
    }
    let first = p.kv + row * p.kv_stride;
    var sum = 0.0;
    for (var i = thread; i < RANK; i += THREADS) {
        let x = kv[first + i];
        sum = fma(x, x, sum);
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    let scale = 1.0 / sqrt(sums[0] / f32(RANK) + p.eps);
    for (var i = thread; i < RANK; i += THREADS) {
        token[i] = kv[first + i] * scale * norm[p.norm + i];
    }
    for (var i = thread; i < ROTATED; i += THREADS) {
        let pair = pair_of(i);
        let x = vec2<f32>(kv[first + RANK + pair.a], kv[first + RANK + pair.b]);
        token[RANK + i] = turned(position, x, pair.pair, pair.second);
    }
    workgroupBarrier();
#if KV_HALVES
    for (var pair = thread; pair < SIZE / 2u; pair += THREADS) {
        let bytes = to_f8(token[2u * pair]) | to_f8(token[2u * pair + 1u]) << 8u;
        let half = (p.cache + slot * SIZE) / 2u + pair;
        let shift = 16u * (half % 2u);
        atomicAnd(&cache[half / 2u], ~(0xffffu << shift));
        atomicOr(&cache[half / 2u], bytes << shift);
    }
#else
    let place = p.cache / PER_WORD + slot * (SIZE / PER_WORD);
    for (var word = thread; word < SIZE / PER_WORD; word += THREADS) {
#if KV_BF16
        cache[place + word] = to_bf16(token[2u * word]) | to_bf16(token[2u * word + 1u]) << 16u;
#endif
#if KV_F16
        cache[place + word] = to_f16(token[2u * word]) | to_f16(token[2u * word + 1u]) << 16u;
#endif
#if KV_F32
        cache[place + word] = bitcast<u32>(token[word]);
#endif
#if KV_F8
        var bytes = 0u;
        for (var i = 0u; i < 4u; i++) {
            bytes |= to_f8(token[4u * word + i]) << (8u * i);
        }
        cache[place + word] = bytes;
#endif
    }
#endif
}
