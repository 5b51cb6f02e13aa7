// Per-head norms of queries and keys, rotation, and the store of keys and values: a workgroup a head of a token.
struct Params {
    rows: u32,
    live: u32,
    heads: u32,
    groups: u32,
    page_size: u32,
    pages: u32,
    rotary: u32,
    interleaved: u32,
    normed: u32,
    eps: f32,
    qkv: u32,
    qkv_stride: u32,
    q: u32,
    q_stride: u32,
    positions: u32,
    slots: u32,
    table: u32,
    table_stride: u32,
    table_rows: u32,
    q_norm: u32,
    k_norm: u32,
    k_cache: u32,
    v_cache: u32,
    k_scales: u32,
    v_scales: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> slots: array<u32>;
@group(0) @binding(5) var<storage, read_write> q: array<f32>;
#if KV_HALVES
// Heads share words.
@group(0) @binding(6) var<storage, read_write> k_cache: array<atomic<u32>>;
@group(0) @binding(7) var<storage, read_write> v_cache: array<atomic<u32>>;
#else
@group(0) @binding(6) var<storage, read_write> k_cache: array<u32>;
@group(0) @binding(7) var<storage, read_write> v_cache: array<u32>;
#endif
#if ROPE
@group(0) @binding(8) var<storage, read> table: array<f32>;
#endif
#if NORM
@group(0) @binding(9) var<storage, read> q_norm: array<f32>;
@group(0) @binding(10) var<storage, read> k_norm: array<f32>;
#endif
#if KV_I8
@group(0) @binding(11) var<storage, read_write> k_scales: array<f32>;
@group(0) @binding(12) var<storage, read_write> v_scales: array<f32>;
#endif

const THREADS: u32 = 64u;
const QUERY: u32 = 0u;
const KEY: u32 = 1u;
const VALUE: u32 = 2u;
var<workgroup> sums: array<f32, THREADS>;
var<workgroup> head: array<f32, SIZE>;
var<workgroup> turned: array<f32, SIZE>;

fn norm_weight(kind: u32, i: u32) -> f32 {
#if NORM
    if kind == QUERY {
        return q_norm[p.q_norm + i];
    }
    return k_norm[p.k_norm + i];
#else
    return 1.0;
#endif
}

// Cosine and sine of pair `i`.
fn turn(position: u32, i: u32) -> vec2<f32> {
#if ROPE
    let first = p.table + min(position, p.table_rows - 1u) * p.table_stride;
    return vec2<f32>(table[first + i], table[first + p.rotary / 2u + i]);
#else
    return vec2<f32>(1.0, 0.0);
#endif
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let kind = select(select(VALUE, KEY, group.z < p.heads + p.groups), QUERY, group.z < p.heads);
    let first = p.qkv + row * p.qkv_stride + group.z * SIZE;
    var sum = 0.0;
    for (var i = thread; i < SIZE; i += THREADS) {
        let v = qkv[first + i];
        head[i] = v;
        sum = fma(v, v, sum);
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    workgroupBarrier();
    if p.normed != 0u && kind != VALUE {
        let scale = 1.0 / sqrt(sums[0] / f32(SIZE) + p.eps);
        for (var i = thread; i < SIZE; i += THREADS) {
            head[i] = head[i] * scale * norm_weight(kind, i);
        }
    }
    workgroupBarrier();
    let rotary = select(p.rotary, 0u, kind == VALUE);
    let position = positions[p.positions + row];
    for (var i = thread; i < SIZE; i += THREADS) {
        if i >= rotary {
            turned[i] = head[i];
        } else {
            let half = rotary / 2u;
            var pair = i % half;
            var a = pair;
            var b = pair + half;
            var second = i >= half;
            if p.interleaved != 0u {
                pair = i / 2u;
                a = 2u * pair;
                b = a + 1u;
                second = i % 2u == 1u;
            }
            let cs = turn(position, pair);
            let low = fma(head[a], cs.x, -(head[b] * cs.y));
            let high = fma(head[a], cs.y, head[b] * cs.x);
            turned[i] = select(low, high, second);
        }
    }
    workgroupBarrier();
    if kind == QUERY {
        for (var i = thread; i < SIZE; i += THREADS) {
            q[p.q + row * p.q_stride + group.z * SIZE + i] = turned[i];
        }
    } else {
        let slot = slots[p.slots + row];
        if slot / p.page_size < p.pages {
            let g = group.z - p.heads - select(0u, p.groups, kind == VALUE);
            keep(kind, (slot / p.page_size * p.groups + g) * p.page_size + slot % p.page_size, thread);
        }
    }
}

#if KV_HALVES
// Half `half` of a cache, counted from its start; the word's other half may be another head's.
fn store_half(kind: u32, half: u32, value: u32) {
    let shift = 16u * (half % 2u);
    let others = ~(0xffffu << shift);
    if kind == KEY {
        atomicAnd(&k_cache[half / 2u], others);
        atomicOr(&k_cache[half / 2u], value << shift);
    } else {
        atomicAnd(&v_cache[half / 2u], others);
        atomicOr(&v_cache[half / 2u], value << shift);
    }
}
#else
fn store(kind: u32, word: u32, value: u32) {
    if kind == KEY {
        k_cache[p.k_cache / PER_WORD + word] = value;
    } else {
        v_cache[p.v_cache / PER_WORD + word] = value;
    }
}
#endif

#if KV_F8
fn to_byte(x: f32, _inverse: f32) -> u32 {
    return to_f8(x);
}
#endif
#if KV_I8
fn to_byte(x: f32, inverse: f32) -> u32 {
    let v = select(0.0, round(product(x, inverse)), inverse != 0.0);
    return bitcast<u32>(i32(clamp(v, -127.0, 127.0))) & 0xffu;
}
#endif

// Stores a head at place `token` of a cache, in heads.
fn keep(kind: u32, token: u32, thread: u32) {
    let first = token * (SIZE / PER_WORD);
#if KV_I8
    var most = 0.0;
    var finite = true;
    for (var i = 0u; i < SIZE; i++) {
        most = max(most, abs(turned[i]));
        finite = finite && (bitcast<u32>(turned[i]) & 0x7fffffffu) < 0x7f800000u;
    }
    var scale = divide(most, 127.0);
    var inverse = divide(1.0, scale);
    // Zeros, and what is too small to have an inverse.
    if !finite || !(inverse <= INFINITY) || most == 0.0 {
        inverse = 0.0;
        scale = 0.0;
    }
#endif
#if KV_F8
    let inverse = 1.0;
#endif
#if KV_BYTES
#if KV_HALVES
    for (var pair = thread; pair < SIZE / 2u; pair += THREADS) {
        let bytes = to_byte(turned[2u * pair], inverse) | to_byte(turned[2u * pair + 1u], inverse) << 8u;
        store_half(kind, (select(p.v_cache, p.k_cache, kind == KEY) + token * SIZE) / 2u + pair, bytes);
    }
#else
    for (var word = thread; word < SIZE / 4u; word += THREADS) {
        var bytes = 0u;
        for (var i = 0u; i < 4u; i++) {
            bytes |= to_byte(turned[4u * word + i], inverse) << (8u * i);
        }
        store(kind, first + word, bytes);
    }
#endif
#if KV_I8
    if thread == 0u {
        // Not finite reads as NaN.
        let bits = select(0x7fc00000u, bitcast<u32>(scale), finite);
        if kind == KEY {
            k_scales[p.k_scales + token] = bitcast<f32>(bits);
        } else {
            v_scales[p.v_scales + token] = bitcast<f32>(bits);
        }
    }
#endif
#else
    for (var word = thread; word < SIZE / PER_WORD; word += THREADS) {
#if KV_BF16
        store(kind, first + word, to_bf16(turned[2u * word]) | to_bf16(turned[2u * word + 1u]) << 16u);
#endif
#if KV_F16
        store(kind, first + word, to_f16(turned[2u * word]) | to_f16(turned[2u * word + 1u]) << 16u);
#endif
#if KV_F32
        store(kind, first + word, bitcast<u32>(turned[word]));
#endif
    }
#endif
}
