// Packed weights: panels of LANES output features; a panel is a list of steps, a step a vec4<u32> of ELEMENTS input
// features for each lane, of f8 half of one. After the last panel come the multipliers, `[panel][group][lane]`: of q4 a byte
// for each group of 32 input features and output feature, of f8 the scales, a float for each group of 128. Then come the
// scales of q8 and q4, `[panel][lane]`: for matrix units, floats have the exponents of crates/tensor/src/halves.rs there.
//
// Of a gated weight, a panel has half its lanes of gates and, in the other half, what they are multiplied with.
const LANES: u32 = 16u;
const F32: u32 = 0u;
const BF16: u32 = 1u;
const F16: u32 = 2u;
const Q8: u32 = 3u;
const Q4: u32 = 4u;
const F8: u32 = 5u;

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
#if FORMAT_F8
const FORMAT: u32 = F8;
// As bf16 has it: K is cut alike, so that sums have the same bits.
const ELEMENTS: u32 = 8u;
#endif
// Steps of a group of f8.
const F8_STEPS: u32 = 16u;

fn signed_byte(word: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(word << (24u - 8u * i)) >> 24u);
}

fn nibble(word: u32, i: u32) -> f32 {
    return f32(bitcast<i32>(word << (28u - 4u * i)) >> 28u);
}

// What a byte of f8 stands for (crates/tensor/src/f8.rs); none is NaN. Subnormal ones are counted: a device may take
// subnormal floats for zeros.
fn from_f8(byte: u32) -> f32 {
    let magnitude = byte & 0x7fu;
    let normal = bitcast<f32>((magnitude << 20u) + 0x3c000000u);
    let value = select(normal, f32(magnitude) * 0.001953125, magnitude < 8u);
    return select(value, -value, (byte & 0x80u) != 0u);
}

// The step at a place among those of all lanes.
fn step_at(place: u32) -> vec4<u32> {
    if FORMAT == F8 {
        let pair = weight[place / 2u];
        return vec4<u32>(select(pair.xy, pair.zw, place % 2u == 1u), 0u, 0u);
    }
    return weight[place];
}

// What elements of step `s` of a lane are multiplied with, scales of whole output features apart.
fn multiplier_of(panel: u32, s: u32, lane: u32) -> f32 {
    if FORMAT == Q4 {
        let i = (panel * p.steps + s) * LANES + lane;
        return signed_byte(weight[p.multipliers + i / 16u][i % 16u / 4u], i % 4u);
    }
    if FORMAT == F8 {
        let i = (panel * ((p.steps + F8_STEPS - 1u) / F8_STEPS) + s / F8_STEPS) * LANES + lane;
        return bitcast<f32>(weight[p.multipliers + i / 4u][i % 4u]);
    }
    return 1.0;
}

// Element `i` of a step with its multiplier. Of f8 it is rounded twice, to f32 and to bf16, by its bits.
fn number(step: vec4<u32>, i: u32, multiplier: f32) -> f32 {
    if FORMAT == F8 {
        return bitcast<f32>(to_bf16(element(step, i) * multiplier) << 16u);
    }
    if FORMAT == Q4 {
        return element(step, i) * multiplier;
    }
    return element(step, i);
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
    if FORMAT == F8 {
        return from_f8(step[i / 4u] >> (8u * (i % 4u)));
    }
    return nibble(step[i / 8u], i % 8u);
}
