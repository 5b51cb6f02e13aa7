// What all kernels share. Compiled without contraction (nvcc -fmad=false, g++ -ffp-contract=off), so that bits are those
// of what is written: products and sums are rounded apart, and `fmaf` is one rounding.
#ifdef ANYFLEET_EMULATE
#include "emulate/simt.h"
#else
#include "machine.cuh"
#endif

const u32 WARP = 32;
const u32 EVERY_LANE = 0xffffffffu;

// Rows that are computed: `live` points to their number in the step's header, or to nothing where all are.
SHARED_DEVICE u32 live_rows(const u32* live, u32 rows) {
    if (!live) return rows;
    u32 n = *live;
    return n < rows ? n : rows;
}

SHARED_DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
SHARED_DEVICE u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }
SHARED_DEVICE u32 max_u32(u32 a, u32 b) { return a > b ? a : b; }

SHARED_DEVICE float infinity() { return bits_float(0x7f800000u); }
SHARED_DEVICE float not_a_number() { return bits_float(0x7fc00000u); }

SHARED_DEVICE float bf16_float(u16 x) { return bits_float(u32(x) << 16); }
SHARED_DEVICE u16 float_bf16(float x) { return u16(pack_bf16(x, 0.0f)); }
SHARED_DEVICE float rounded_bf16(float x) { return bf16_float(float_bf16(x)); }

// Sums and maxima of all lanes of a warp, the same in each; the order of a sum is one tree.
SHARED_DEVICE float warp_sum(float x) {
    for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(EVERY_LANE, x, i);
    return x;
}
SHARED_DEVICE float warp_max(float x) {
    for (int i = 16; i > 0; i /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, i));
    return x;
}
SHARED_DEVICE u32 warp_max(u32 x) {
    for (int i = 16; i > 0; i /= 2) x = max_u32(x, __shfl_xor_sync(EVERY_LANE, x, i));
    return x;
}

// Of crates/tensor/src/quant.rs: to nearest, ties to even, of magnitudes below 2^22.
SHARED_DEVICE float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }
// The factor of a scale: 0 where it is 0 or too small to have one.
SHARED_DEVICE float inverse_of(float scale) {
    float inverse = 1.0f / scale;
    return (float_bits(inverse) & 0x7fffffffu) < 0x7f800000u ? inverse : 0.0f;
}

// e^x with the bits of `sampling::exp` in crates/tensor.
SHARED_DEVICE float exact_exp(float x) {
    float shifted = fmaf(x, 1.44269504088896340736f, 12582912.0f);
    float n = shifted - 12582912.0f;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.693359375f, x));
    float series = 1.0f / 5040.0f;
    series = fmaf(series, r, 1.0f / 720.0f);
    series = fmaf(series, r, 1.0f / 120.0f);
    series = fmaf(series, r, 1.0f / 24.0f);
    series = fmaf(series, r, 1.0f / 6.0f);
    series = fmaf(series, r, 0.5f);
    series = fmaf(series, r, 1.0f);
    series = fmaf(series, r, 1.0f);
    float e = bits_float(float_bits(series) + (float_bits(shifted) << 23));
    // Chosen last, without branches. A device's own NaN has all bits set, and was shifted into a number.
    e = x < -87.3365f ? 0.0f : e;
    e = x > 88.72f ? infinity() : e;
    return x != x ? not_a_number() : e;
}

// tanh(x) with the bits of crates/cpu/src/simd/math.rs.
SHARED_DEVICE float tanh_of(float x) {
    float square = x * x;
    float series = -5.7049887e-3f;
    series = fmaf(series, square, 2.0639089e-2f);
    series = fmaf(series, square, -5.3739716e-2f);
    series = fmaf(series, square, 1.3331442e-1f);
    series = fmaf(series, square, -3.3333282e-1f);
    float near = fmaf(series * square, x, x);
    float far = 1.0f - 2.0f / (1.0f + exact_exp(x + x));
    return square > 0.625f * 0.625f ? far : near;
}
