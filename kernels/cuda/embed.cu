// out[t] = scale * weight[ids[t]], widened: a block a row.
#include "common.cuh"
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

SHARED_DEVICE float element(const EmbedParams& p, const u8* row, u32 id, u32 k) {
    switch (p.format) {
        case 0: return reinterpret_cast<const float*>(row)[k];
        case 1: return bf16_float(reinterpret_cast<const u16*>(row)[k]);
        case 2: return half_float(reinterpret_cast<const u16*>(row)[k]);
        case 3: return float(reinterpret_cast<const i8*>(row)[k]) * p.scales[id];
        case 5: {
            float d[4], scale = *reinterpret_cast<const float*>(p.multipliers + f8_scale(id, k / BLOCK, p.blocks));
            f8_floats(d, row[f8_place(k)]);
            return rounded_bf16(d[0] * scale);
        }
    }
    Q4Place place = q4_place(k);
    int q = i8(place.high ? row[place.byte] & 0xf0 : row[place.byte] << 4) >> 4;
    int multiplier = i8(p.multipliers[q4_multipliers(id, k / Q4_BLOCK, p.blocks) + k % Q4_BLOCK / Q4_GROUP]);
    return float(q * multiplier) * p.scales[id];
}
}

KERNEL(embed, 256, EmbedParams) {
    u32 row = blockIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    u32 id = min_u32(embed_op::token(p, row), p.features - 1);
    const u8* weight = p.weight + u64(id) * p.blocks * BLOCK;
    float* out = p.out + u64(row) * p.out_stride;
    for (u32 k = threadIdx.x; k < p.width; k += embed_op::THREADS) {
        out[k] = embed_op::element(p, weight, id, k) * p.scale;
    }
}
