// Per-head norms of queries and keys, rotation, and the store of keys and values: a warp a head of a token.
//
// Reads and writes each element once; what it costs is that traffic.
#include "common.cuh"
#include "kv.cuh"

struct RopeKvParams {
    float* q;
    const float* qkv;
    void* k_cache;
    void* v_cache;
    float* k_scales;
    float* v_scales;
    const u32* positions;
    const u32* slots;
    const float* table;
    const float* q_norm;
    const float* k_norm;
    const u32* live;
    u32 rows;
    u32 heads;
    u32 groups;
    u32 size;
    u32 page_size;
    u32 pages;
    u32 kv;
    u32 rotary;
    u32 interleaved;
    u32 table_stride;
    u32 table_rows;
    u32 qkv_stride;
    u32 q_stride;
    float eps;
};

namespace rope_kv_op {
const u32 WARPS = 4;
// Elements of a head that a lane has: those lane + 32 i.
const u32 OWN = HEAD_MOST / WARP;

struct Shared {
    float head[WARPS][HEAD_MOST];
};

// Element i of a head after the rotation of its pair.
SHARED_DEVICE float turned(const RopeKvParams& p, const float* head, const float* turn, u32 i) {
    u32 half = p.rotary / 2;
    u32 pair = p.interleaved ? i / 2 : i % half;
    u32 a = p.interleaved ? 2 * pair : pair;
    u32 b = p.interleaved ? a + 1 : pair + half;
    float cosine = turn[pair], sine = turn[half + pair];
    return i == a ? fmaf(head[a], cosine, -(head[b] * sine)) : fmaf(head[a], sine, head[b] * cosine);
}

// Stores a head as crates/tensor's `quant::kv_head` does.
SHARED_DEVICE void keep_bytes(i8* cache, float* scales, u32 place, u32 size, u32 lane, const float (&x)[OWN]) {
    float most = 0.0f;
    bool finite = true;
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        most = fmaxf(most, fabsf(x[j]));
        finite = finite && (float_bits(x[j]) & 0x7fffffffu) < 0x7f800000u;
    }
    most = warp_max(most);
    finite = __all_sync(EVERY_LANE, finite);
    float scale = finite ? most / 127.0f : not_a_number();
    float inverse = inverse_of(scale);
    if (finite && inverse == 0.0f) scale = 0.0f;
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        u32 i = lane + WARP * j;
        float q = inverse == 0.0f ? 0.0f : fminf(fmaxf(round_even(x[j] * inverse), -127.0f), 127.0f);
        if (i < size) cache[u64(place) * size + i] = i8(int(q));
    }
    if (lane == 0) scales[place] = scale;
}
}

KERNEL(rope_kv, 128, RopeKvParams) {
    using namespace rope_kv_op;
    SHARED(Shared, shared);
    u32 row = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 unit = blockIdx.y * WARPS + warp;
    if (row >= live_rows(p.live, p.rows) || unit >= p.heads + 2 * p.groups) return;
    bool query = unit < p.heads, value = unit >= p.heads + p.groups;
    const float* from = p.qkv + u64(row) * p.qkv_stride + u64(unit) * p.size;
    float x[OWN];
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        u32 i = lane + WARP * j;
        x[j] = i < p.size ? from[i] : 0.0f;
        sum = fmaf(x[j], x[j], sum);
    }
    const float* weight = query ? p.q_norm : p.k_norm;
    if (weight && !value) {
        float scale = 1.0f / sqrtf(warp_sum(sum) / float(p.size) + p.eps);
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            u32 i = lane + WARP * j;
            if (i < p.size) x[j] = x[j] * scale * weight[i];
        }
    }
    if (p.rotary && !value) {
        float* head = shared.head[warp];
#pragma unroll
        for (u32 j = 0; j < OWN; j++) head[lane + WARP * j] = x[j];
        __syncwarp();
        const float* turn = p.table + u64(min_u32(p.positions[row], p.table_rows - 1)) * p.table_stride;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            u32 i = lane + WARP * j;
            if (i < p.rotary) x[j] = turned(p, head, turn, i);
        }
    }
    if (query) {
        float* to = p.q + u64(row) * p.q_stride + u64(unit) * p.size;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            u32 i = lane + WARP * j;
            if (i < p.size) to[i] = x[j];
        }
        return;
    }
    u32 slot = p.slots[row];
    if (slot / p.page_size >= p.pages) return;
    u32 group = unit - p.heads - (value ? p.groups : 0);
    u32 place = kv::place(slot / p.page_size, p.groups, group, p.page_size, slot % p.page_size);
    void* cache = value ? p.v_cache : p.k_cache;
    if (p.kv == KV_I8) {
        keep_bytes(static_cast<i8*>(cache), value ? p.v_scales : p.k_scales, place, p.size, lane, x);
        return;
    }
    u64 first = u64(place) * p.size;
    if (p.kv == KV_F8) {
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            u32 i = lane + WARP * j;
            if (i < p.size) static_cast<u8*>(cache)[first + i] = kv::f8_of(x[j]);
        }
        return;
    }
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        u32 i = lane + WARP * j;
        if (i >= p.size) continue;
        if (p.kv == KV_F32) {
            static_cast<float*>(cache)[first + i] = x[j];
        } else {
            static_cast<u16*>(cache)[first + i] = p.kv == KV_BF16 ? float_bf16(x[j]) : float_half(x[j]);
        }
    }
}
