// Norm of latents, rotation, and the store of latents and keys: a warp a token's latent and key, or a query head of it.
//
// Reads and writes each element once, of latents those past the 512th twice; what it costs is that traffic, or for few rows
// the time until the first of it comes: what has no need to wait is asked for before anything is stored.
#include "common.cuh"
#include "kv.cuh"

struct LatentKvParams {
    float* q;
    const float* queries;
    const float* kv;
    void* cache;
    const u32* positions;
    const u32* slots;
    const float* table;
    const float* norm;
    const u32* live;
    u32 rows;
    u32 heads;
    // Elements of a head in `queries`, of a latent, and of what is rotated.
    u32 query;
    u32 rank;
    u32 rotated;
    u32 page_size;
    u32 pages;
    u32 type;
    u32 interleaved;
    u32 table_stride;
    u32 table_rows;
    u32 queries_stride;
    u32 kv_stride;
    u32 q_stride;
    float eps;
    u32 reserved;
};

namespace latent_kv_op {
const u32 WARPS = 4;
// Elements of a latent that a lane keeps: those lane + 32 i.
const u32 OWN = 16;

// Calls put(i, x) with the elements of `head` after their rotation: a lane has every 32nd pair.
template <class Put>
SHARED_DEVICE void turn(const LatentKvParams& p, const float* head, u32 row, Put put) {
    const float* angles = p.table + u64(min_u32(p.positions[row], p.table_rows - 1)) * p.table_stride;
    u32 half = p.rotated / 2;
    for (u32 pair = threadIdx.x % WARP; pair < half; pair += WARP) {
        u32 a = p.interleaved ? 2 * pair : pair;
        u32 b = p.interleaved ? a + 1 : pair + half;
        float cosine = angles[pair], sine = angles[half + pair], first = head[a], second = head[b];
        put(a, fmaf(first, cosine, -(second * sine)));
        put(b, fmaf(first, sine, second * cosine));
    }
}

SHARED_DEVICE void keep(const LatentKvParams& p, u64 at, float x) {
    if (p.type == KV_F32) {
        static_cast<float*>(p.cache)[at] = x;
    } else if (p.type == KV_F8) {
        static_cast<u8*>(p.cache)[at] = kv::f8_of(x);
    } else {
        static_cast<u16*>(p.cache)[at] = p.type == KV_BF16 ? float_bf16(x) : float_half(x);
    }
}
}

KERNEL(latent_kv, 128, LatentKvParams) {
    using namespace latent_kv_op;
    u32 row = blockIdx.x, lane = threadIdx.x % WARP;
    u32 unit = blockIdx.y * WARPS + threadIdx.x / WARP, size = p.rank + p.rotated;
    if (row >= live_rows(p.live, p.rows) || unit > p.heads) return;
    if (unit < p.heads) {
        const float* from = p.queries + u64(row) * p.queries_stride + (u64(unit) + 1) * p.query - p.rotated;
        float* to = p.q + u64(row) * p.q_stride + u64(unit) * size + p.rank;
        turn(p, from, row, [&](u32 i, float x) { to[i] = x; });
        return;
    }
    u32 slot = p.slots[row];
    if (slot / p.page_size >= p.pages) return;
    const float* from = p.kv + u64(row) * p.kv_stride;
    u64 to = u64(slot) * size;
    float x[OWN], weight[OWN];
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        u32 i = lane + WARP * j;
        x[j] = i < p.rank ? from[i] : 0.0f;
        weight[j] = i < p.rank ? p.norm[i] : 0.0f;
    }
    turn(p, from + p.rank, row, [&](u32 i, float x) { keep(p, to + p.rank + i, x); });
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < OWN; j++) sum = fmaf(x[j], x[j], sum);
    for (u32 i = lane + WARP * OWN; i < p.rank; i += WARP) sum = fmaf(from[i], from[i], sum);
    float scale = 1.0f / sqrtf(warp_sum(sum) / float(p.rank) + p.eps);
#pragma unroll
    for (u32 j = 0; j < OWN; j++) {
        u32 i = lane + WARP * j;
        if (i < p.rank) keep(p, to + i, x[j] * scale * weight[j]);
    }
    for (u32 i = lane + WARP * OWN; i < p.rank; i += WARP) keep(p, to + i, from[i] * scale * p.norm[i]);
}
