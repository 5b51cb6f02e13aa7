// Elements of the caches of keys and values, [P, G, p, d], and the scales [P, G, p] of those of bytes.
#include "common.cuh"

// Types, as crates/cuda/src/ops/mod.rs numbers them.
const u32 KV_F32 = 0;
const u32 KV_BF16 = 1;
const u32 KV_F16 = 2;
const u32 KV_I8 = 3;

// The largest head that kernels take.
const u32 HEAD_MOST = 256;

namespace kv {
// Place of a token's head, in heads.
SHARED_DEVICE u32 place(u32 page, u32 groups, u32 group, u32 page_size, u32 offset) {
    return (page * groups + group) * page_size + offset;
}

// Two of four bytes (0 and 1, or 2 and 3) of a head with this scale, as bf16: byte times scale, rounded. The bytes are
// given with their top bits turned: as the low bits of 2^23 they are their value + 128, which spares a conversion, of which
// a multiprocessor does a quarter as many as additions.
SHARED_DEVICE u32 bf16_pair(u32 turned, u32 selector, float scale) {
    float low = bits_float(__byte_perm(turned, 0x4b000000u, selector & 0xffffu)) - 8388736.0f;
    float high = bits_float(__byte_perm(turned, 0x4b000000u, selector >> 16)) - 8388736.0f;
    return pack_bf16(low * scale, high * scale);
}
const u32 FIRST_PAIR = 0x76517650u;
const u32 SECOND_PAIR = 0x76537652u;
}
