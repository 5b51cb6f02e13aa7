// 64-bit unsigned integers: low word, high word.
fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn less(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

fn multiply_words(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let middle = a1 * b0 + ((a0 * b0) >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a * b, a1 * b1 + (middle >> 16u) + (other >> 16u));
}

// The upper half of the 128-bit product.
fn multiply_high(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = multiply_words(a.x, b.x);
    var middle = add(multiply_words(a.x, b.y), vec2<u32>(low.y, 0u));
    let other = add(multiply_words(a.y, b.x), vec2<u32>(middle.x, 0u));
    return add(multiply_words(a.y, b.y), add(vec2<u32>(middle.y, 0u), vec2<u32>(other.y, 0u)));
}
