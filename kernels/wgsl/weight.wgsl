// Packed weights: panels of LANES output features; a panel is a list of steps, a step a vec4<u32> of ELEMENTS input
// features for each lane. After the last panel come the multipliers of q4, a byte for each group of 32 input features
// and output feature, `[panel][group][lane]`, and the scales of q8 and q4, `[panel][lane]`: for matrix units, floats have
// the exponents of crates/tensor/src/halves.rs there.
//
// Of a gated weight, a panel has half its lanes of gates and, in the other half, what they are multiplied with.
const LANES: u32 = 16u;
const F32: u32 = 0u;
const BF16: u32 = 1u;
const F16: u32 = 2u;
const Q8: u32 = 3u;
const Q4: u32 = 4u;

#if FORMAT_F32
const FORMAT: u32 = F32;
const ELEMENTS: u32 = 4u;
#endif
#if FORMAT_BF16
const FORMAT: u32 = BF16;
const ELEMENTS: u32 = 8u;
#endif
#if FORMAT_F16
const FORMAT: u32 = F16;
const ELEMENTS: u32 = 8u;
#endif
#if FORMAT_Q8
const FORMAT: u32 = Q8;
const ELEMENTS: u32 = 16u;
#endif
#if FORMAT_Q4
const FORMAT: u32 = Q4;
const ELEMENTS: u32 = 32u;
#endif

fn signed_byte(word: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(word << (24u - 8u * i)) >> 24u);
}

fn nibble(word: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(word << (28u - 4u * i)) >> 28u);
}

// Element `i` of a step, without scale and multiplier.
fn element(step: vec4<u32>, i: u32) -> f32 {
    if FORMAT == F32 {
        return bitcast<f32>(step[i]);
    }
    if FORMAT == BF16 {
        let pair = step[i / 2u];
        return select(bf16_low(pair), bf16_high(pair), i % 2u == 1u);
    }
    if FORMAT == F16 {
        return from_f16((step[i / 2u] >> (16u * (i % 2u))) & 0xffffu);
    }
    if FORMAT == Q8 {
        return signed_byte(step[i / 4u], i % 4u);
    }
    return nibble(step[i / 8u], i % 8u);
}
