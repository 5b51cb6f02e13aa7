// Arithmetic with the bits of crates/tensor/src/{quant,sampling}.rs, as far as the device's fma is one rounding.

// a / b to nearest, ties to even, by long division: a device's own quotient may be off by some units. What is too small
// to be normal becomes zero.
fn divide(a: f32, b: f32) -> f32 {
    let sign = (bitcast<u32>(a) ^ bitcast<u32>(b)) & 0x80000000u;
    let high = bitcast<u32>(a) & 0x7fffffffu;
    let low = bitcast<u32>(b) & 0x7fffffffu;
    if high > 0x7f800000u || low > 0x7f800000u {
        return bitcast<f32>(0x7fc00000u | sign);
    }
    if high < 0x00800000u || low == 0x7f800000u {
        return bitcast<f32>(sign);
    }
    if low < 0x00800000u || high == 0x7f800000u {
        return bitcast<f32>(sign | 0x7f800000u);
    }
    var exponent = i32(high >> 23u) - i32(low >> 23u) + 127;
    var rest = (high & 0x7fffffu) | 0x800000u;
    let by = (low & 0x7fffffu) | 0x800000u;
    if rest < by {
        rest <<= 1u;
        exponent -= 1;
    }
    var q = 0u;
    for (var i = 0u; i < 24u; i++) {
        q <<= 1u;
        if rest >= by {
            rest -= by;
            q |= 1u;
        }
        rest <<= 1u;
    }
    if rest > by || (rest == by && (q & 1u) == 1u) {
        q += 1u;
    }
    if q == 0x1000000u {
        q = 0x800000u;
        exponent += 1;
    }
    if exponent <= 0 {
        return bitcast<f32>(sign);
    }
    if exponent >= 255 {
        return bitcast<f32>(sign | 0x7f800000u);
    }
    return bitcast<f32>(sign | u32(exponent) << 23u | (q & 0x7fffffu));
}

// A product that is rounded before it is used: no compiler merges it into a sum.
fn product(a: f32, b: f32) -> f32 {
    return clamp(a * b, -INFINITY, INFINITY);
}

// A product as it is, rounded: no compiler merges it into a sum. Unlike `product`, it may be infinite or not a number.
fn rounded(product: f32) -> f32 {
    let finite = (bitcast<u32>(product) & 0x7fffffffu) < 0x7f800000u;
    return select(product, clamp(product, -INFINITY, INFINITY), finite);
}

// e^x with the bits of `sampling::exp`.
fn exact_exp(x: f32) -> f32 {
    if x < -87.3365 {
        return 0.0;
    }
    if x > 88.72 {
        return INFINITY;
    }
    // x * log2(e) to the nearest whole number, ties to even, as if the product were not rounded before.
    let log2_e = 1.44269504088896340736;
    var n = round(x * log2_e);
    let rest = fma(x, log2_e, -n);
    if rest > 0.5 || (rest == 0.5 && i32(n) % 2 != 0) {
        n += 1.0;
    } else if rest < -0.5 || (rest == -0.5 && i32(n) % 2 != 0) {
        n -= 1.0;
    }
    // The first product is exact; taken apart, so that no compiler adds the two factors of n first.
    let r = fma(n, 2.1219444e-4, x - product(n, 0.693359375));
    var series = 1.0 / 5040.0;
    series = fma(series, r, 1.0 / 720.0);
    series = fma(series, r, 1.0 / 120.0);
    series = fma(series, r, 1.0 / 24.0);
    series = fma(series, r, 1.0 / 6.0);
    series = fma(series, r, 0.5);
    series = fma(series, r, 1.0);
    series = fma(series, r, 1.0);
    return bitcast<f32>(bitcast<u32>(series) + (bitcast<u32>(i32(n)) << 23u));
}
