// Elements of the caches of keys and values, [P, G, p, d], and the scales [P, G, p] of those of bytes.
#include "common.cuh"

// Types, as crates/cuda/src/ops/mod.rs numbers them.
const u32 KV_F32 = 0;
const u32 KV_BF16 = 1;
const u32 KV_F16 = 2;
const u32 KV_I8 = 3;
const u32 KV_F8 = 4;

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

// Two of four floats of eight bits (E4M3) as bf16, but NaN, which reads as 480. Their bits in the place of an f32's are
// 2^-120 times the number, those without an exponent included, and the product has no bits that bf16 lacks.
SHARED_DEVICE u32 f8_pair(u32 word, u32 selector) {
    u32 halves = __byte_perm(word, 0, selector), magnitudes = halves & 0x7f007f00u;
    const float SCALE = 1329227995784915872903807060280344576.0f;
    float low = bits_float(magnitudes << 12) * SCALE;
    float high = bits_float((magnitudes & 0x7f000000u) >> 4) * SCALE;
    return __byte_perm(float_bits(low), float_bits(high), 0x7632u) | (halves & 0x80008000u);
}
const u32 FIRST_F8 = 0x1404u;
const u32 SECOND_F8 = 0x3424u;
// The top bits of those of four that are NaN.
SHARED_DEVICE u32 f8_nans(u32 word) { return ((word & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u; }
// 0x7fc0 in each half whose byte is NaN, by the same selectors.
SHARED_DEVICE u32 f8_nan_pair(u32 nans, u32 selector) {
    u32 halves = __byte_perm(nans, 0, selector);
    return halves - (halves >> 9);
}

// The nearest byte, ties to even: `f8::encode` of crates/tensor.
SHARED_DEVICE u8 f8_of(float x) {
    u32 sign = float_bits(x) >> 24 & 0x80u, bits = float_bits(x) & 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7f;
    // From 448 on.
    if (bits >= 0x43e00000u) return u8(sign | 0x7e);
    // Below 2^-6: steps of 2^-9, as those of f32 from 2^14 on.
    if (bits < 0x3c800000u) return u8(sign | (float_bits(bits_float(bits) + 16384.0f) - 0x46800000u));
    return u8(sign | (((bits + 0x7ffffu + (bits >> 20 & 1u)) >> 20) - 960u));
}
}
