// What all kernels share. `header` is the step header of crates/tensor/src/step.rs.
@group(0) @binding(1) var<storage, read> header: array<u32>;

// Workgroups of the first dimension of a grid; more go on in the second.
const GRID: u32 = 32768u;
// `live` of operations that compute every row.
const ALL: u32 = 0xffffffffu;
const INFINITY: f32 = 0x1.fffffep+127f;

fn grid_index(group: vec3<u32>) -> u32 {
    return group.y * GRID + group.x;
}

// Rows to compute: `live` is a word of the header.
fn live_rows(rows: u32, live: u32) -> u32 {
    if live == ALL {
        return rows;
    }
    return min(rows, header[live]);
}

fn bf16_low(pair: u32) -> f32 {
    return bitcast<f32>(pair << 16u);
}

fn bf16_high(pair: u32) -> f32 {
    return bitcast<f32>(pair & 0xffff0000u);
}

// To nearest, ties to even; a NaN stays one.
fn to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn from_f16(half: u32) -> f32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return bitcast<f32>(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13u);
    }
    if magnitude < 0x400u {
        // Subnormal: a whole number of 2^-24.
        let value = f32(magnitude) * 5.9604644775390625e-8;
        return select(value, -value, sign != 0u);
    }
    return bitcast<f32>(sign | ((magnitude << 13u) + 0x38000000u));
}

// To nearest, ties to even; what is too large becomes infinite.
fn to_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if magnitude >= 0x38800000u {
        return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
    }
    if magnitude <= 0x33000000u {
        return sign;
    }
    // Subnormal: the mantissa, shifted to units of 2^-24.
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    let shift = 126u - (magnitude >> 23u);
    let half = 1u << (shift - 1u);
    let whole = mantissa >> shift;
    let rest = mantissa & ((1u << shift) - 1u);
    return sign | (whole + select(0u, 1u, rest > half || (rest == half && (whole & 1u) == 1u)));
}

// 2^exponent, from -126 to 127.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

fn is_nan(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u;
}
