// out[t] = scale * weight[ids[t]], widened: a block a row, four columns a thread. What it costs is that traffic, or for few
// rows the time until the first of it comes: a thread asks for several fours before it stores one.
#include "common.cuh"
#include "vector.cuh"
#include "weight.cuh"

struct EmbedParams {
    float* out;
    const u32* ids;
    // Null without tokens that the device chose.
    const u32* sampled;
    const u8* weight;
    const u8* multipliers;
    const float* scales;
    const u32* live;
    u32 rows;
    u32 width;
    u32 out_stride;
    // Output features of the matrix, and blocks of each.
    u32 features;
    u32 blocks;
    // `number` of crates/cuda/src/ops/embed.rs.
    u32 format;
    u32 sampled_count;
    float scale;
};

namespace embed_op {
const u32 THREADS = 256;
// `SAMPLED` of crates/tensor/src/ops.rs.
const u32 SAMPLED = 0x80000000;

SHARED_DEVICE u32 token(const EmbedParams& p, u32 row) {
    u32 id = p.ids[row];
    if (!p.sampled || !(id & SAMPLED)) return id;
    return p.sampled[min_u32(id & ~SAMPLED, p.sampled_count - 1)];
}

// Columns from k on, a multiple of four, of a row, which is padded with zeros to a whole number of blocks.
template <u32 FORMAT>
SHARED_DEVICE Floats4 four(const EmbedParams& p, const u8* row, u32 id, u32 k) {
    Floats4 d;
    if constexpr (FORMAT == 0) {
        d = reinterpret_cast<const Floats4*>(row)[k / 4];
    } else if constexpr (FORMAT == 1 || FORMAT == 2) {
        uint2 two = reinterpret_cast<const uint2*>(row)[k / 4];
        u32 words[2] = {two.x, two.y};
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u16 bits = u16(words[i / 2] >> (i % 2 * 16));
            d.v[i] = FORMAT == 1 ? bf16_float(bits) : half_float(bits);
        }
    } else if constexpr (FORMAT == 3) {
        u32 bytes = reinterpret_cast<const u32*>(row)[k / 4];
        float scale = p.scales[id];
#pragma unroll
        for (u32 i = 0; i < 4; i++) d.v[i] = float(i8(bytes >> (8 * i))) * scale;
    } else if constexpr (FORMAT == 5) {
        u32 bytes = *reinterpret_cast<const u32*>(row + f8_place(k));
        float scale = *reinterpret_cast<const float*>(p.multipliers + f8_scale(id, k / BLOCK, p.blocks));
        f8_floats(d.v, bytes);
#pragma unroll
        for (u32 i = 0; i < 4; i++) d.v[i] = rounded_bf16(d.v[i] * scale);
    } else {
        Q4Place place = q4_place(k);
        u32 bytes = *reinterpret_cast<const u32*>(row + place.byte);
        u64 multipliers = q4_multipliers(id, k / Q4_BLOCK, p.blocks);
        int multiplier = i8(p.multipliers[multipliers + k % Q4_BLOCK / Q4_GROUP]);
        float scale = p.scales[id];
        u32 upper = (place.high ? bytes : bytes << 4) & 0xf0f0f0f0u;
#pragma unroll
        for (u32 i = 0; i < 4; i++) d.v[i] = float((i8(upper >> (8 * i)) >> 4) * multiplier) * scale;
    }
    return d;
}

template <u32 FORMAT>
SHARED_DEVICE void copy_row(const EmbedParams& p, float* out, const u8* row, u32 id) {
    // Fours that a thread asks for at once.
    const u32 AHEAD = 4, STEP = THREADS * 4;
    for (u32 begin = threadIdx.x * 4; begin < p.width; begin += AHEAD * STEP) {
        Floats4 d[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            d[i] = {};
            if (begin + i * STEP < p.width) d[i] = four<FORMAT>(p, row, id, begin + i * STEP);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            u32 k = begin + i * STEP;
#pragma unroll
            for (u32 j = 0; j < 4; j++) d[i].v[j] *= p.scale;
            if (k < p.width) store4(out + k, d[i], p.width - k);
        }
    }
}
}

KERNEL(embed, 256, EmbedParams) {
    using namespace embed_op;
    u32 row = blockIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    u32 id = min_u32(token(p, row), p.features - 1);
    const u8* weight = p.weight + u64(id) * p.blocks * BLOCK;
    float* out = p.out + u64(row) * p.out_stride;
    switch (p.format) {
        case 0: return copy_row<0>(p, out, weight, id);
        case 1: return copy_row<1>(p, out, weight, id);
        case 2: return copy_row<2>(p, out, weight, id);
        case 3: return copy_row<3>(p, out, weight, id);
        case 5: return copy_row<5>(p, out, weight, id);
    }
    copy_row<4>(p, out, weight, id);
}
