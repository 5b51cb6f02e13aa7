// Four neighbours of a row of floats: one access where they start at sixteen bytes, four where they do not. Which thread
// has which columns is the same in both, so bits do not depend on where a row lies.
struct alignas(16) Floats4 {
    float v[4];
};

SHARED_DEVICE bool starts_at_16(const void* at) { return reinterpret_cast<u64>(at) % 16 == 0; }

// Of the `left` floats of the row from `x` on the first four; zeros past its end.
SHARED_DEVICE Floats4 load4(const float* x, u32 left) {
    if (left >= 4 && starts_at_16(x)) return *reinterpret_cast<const Floats4*>(x);
    Floats4 d;
    for (u32 j = 0; j < 4; j++) d.v[j] = j < left ? x[j] : 0.0f;
    return d;
}

SHARED_DEVICE void store4(float* out, const Floats4& x, u32 left) {
    if (left >= 4 && starts_at_16(out)) {
        *reinterpret_cast<Floats4*>(out) = x;
        return;
    }
    for (u32 j = 0; j < 4; j++) {
        if (j < left) out[j] = x.v[j];
    }
}
