// Elements of the caches of keys and values: words of one, two or four of them.
#if KV_F32
const PER_WORD: u32 = 1u;
#endif
#if KV_BF16
const PER_WORD: u32 = 2u;
#endif
#if KV_F16
const PER_WORD: u32 = 2u;
#endif
#if KV_I8
const PER_WORD: u32 = 4u;
#endif
#if KV_F8
const PER_WORD: u32 = 4u;
#endif

#if KV_F8
// E4M3. Magnitudes without an exponent count 2^-9ths: as an f32's bits they would be subnormal, which devices may flush.
fn from_f8(byte: u32) -> f32 {
    let magnitude = byte & 0x7fu;
    var bits = (magnitude << 20u) + (120u << 23u);
    bits = select(bits, bitcast<u32>(f32(magnitude) * 0.001953125), magnitude < 8u);
    bits = select(bits, 0x7fc00000u, magnitude == 0x7fu);
    return bitcast<f32>(bits | (byte & 0x80u) << 24u);
}

// The nearest, ties to even, and the largest for what is larger.
fn to_f8(x: f32) -> u32 {
    let bits = bitcast<u32>(x) & 0x7fffffffu;
    let sign = (bitcast<u32>(x) >> 24u) & 0x80u;
    if bits > 0x7f800000u {
        return 0x7fu;
    }
    // From 448 on.
    if bits >= 0x43e00000u {
        return sign | 0x7eu;
    }
    // Below 2^-6, in 2^-9ths; below 2^-10 nothing is left.
    if bits < 0x3c800000u {
        let shift = min(141u - (bits >> 23u), 25u);
        let mantissa = (bits & 0x7fffffu) | 0x800000u;
        let whole = mantissa >> shift;
        let rest = mantissa - (whole << shift);
        let half = 1u << (shift - 1u);
        return sign | (whole + u32(rest > half || (rest == half && (whole & 1u) == 1u)));
    }
    return sign | (((bits + 0x7ffffu + ((bits >> 20u) & 1u)) >> 20u) - 960u);
}
#endif

// Two elements from an even place in a head on; `scale` of bytes.
fn kv_pair(word: u32, second: bool, scale: f32) -> vec2<f32> {
#if KV_BF16
    return vec2<f32>(bf16_low(word), bf16_high(word));
#endif
#if KV_F16
    return vec2<f32>(from_f16(word & 0xffffu), from_f16(word >> 16u));
#endif
#if KV_I8
    let half = select(word, word >> 16u, second);
    let bytes = vec2<f32>(f32(bitcast<i32>(half << 24u) >> 24u), f32(bitcast<i32>(half << 16u) >> 24u)) * scale;
    return vec2<f32>(bitcast<f32>(to_bf16(bytes.x) << 16u), bitcast<f32>(to_bf16(bytes.y) << 16u));
#endif
#if KV_F8
    let half = select(word, word >> 16u, second);
    return vec2<f32>(from_f8(half & 0xffu), from_f8((half >> 8u) & 0xffu));
#endif
#if KV_F32
    return vec2<f32>(bitcast<f32>(word), 0.0);
#endif
}
