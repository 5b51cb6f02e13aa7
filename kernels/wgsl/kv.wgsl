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
#if KV_F32
    return vec2<f32>(bitcast<f32>(word), 0.0);
#endif
}
