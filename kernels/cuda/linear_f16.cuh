// Products with f16 weights: a row of x is multiplied with a power of two that brings its largest magnitude just below the
// end of f16 and rounded to f16, as crates/tensor/src/halves.rs states, and its sums are multiplied back.
//
// Weights are used as they lie: a power of two would change none of them, but for subnormal ones of a feature that has
// magnitudes from 2^15 on, which are exact here. Products are between 2^-48 and 2^31, so sums neither overflow nor lose
// their small ends before they are multiplied back.
#include "linear_16bit.cuh"

namespace linear_op {

// Of halves.rs. Magnitudes are bits: as integers they are in order, and what is not finite is above all others.
SHARED_DEVICE int exponent_of(u32 largest) {
    int exponent = 141 - int(largest >> 23);
    return largest == 0 ? 0 : exponent < 126 ? exponent : 126;
}
SHARED_DEVICE float power_of_two(int exponent) { return bits_float(u32(exponent + 127) << 23); }

SHARED_DEVICE u32 larger(u32 largest, const Floats4& x) {
#pragma unroll
    for (int i = 0; i < 4; i++) largest = max_u32(largest, float_bits(x.v[i]) & 0x7fffffffu);
    return largest;
}

// What each warp of a block has seen.
struct Largest {
    u32 of[SEGMENTS];
};

// From a copy that `linear_f16_x` made.
struct F16 : Copied<Halves> {
    SHARED_DEVICE float factor(const LinearParams& p, const Few& few, u32 row) const {
        return p.row_scales[few.first_row + row].scale;
    }
};

// Eight rows at most, which a block measures while its first weights are on their way.
struct F16Direct : Direct<Halves> {
    // Warps that share a row.
    u32 each;
    const Largest* seen;

    template <class P>
    SHARED_DEVICE void measure(const P& p, const Few& few) {
        SHARED(Largest, largest);
        u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        seen = &largest;
        each = few.rows > 4 ? 1 : few.rows > 2 ? 2 : SEGMENTS / few.rows;
        u32 row = warp / each, most = 0;
        if (row < few.rows) {
            const float* x = x_row(p, few.first_row + row);
#pragma unroll 4
            for (u32 k = (warp % each * WARP + lane) * 4; k < p.width; k += each * WARP * 4) {
                most = larger(most, load_vector(p, x, k, true));
            }
        }
        most = warp_max(most);
        if (lane == 0) largest.of[warp] = most;
        __syncthreads();
        if (lane / 4 < few.rows) up = power_of_two(exponent(lane / 4));
    }
    SHARED_DEVICE int exponent(u32 row) const {
        u32 most = 0;
        for (u32 i = 0; i < each; i++) most = max_u32(most, seen->of[row * each + i]);
        return exponent_of(most);
    }
    SHARED_DEVICE float factor(const LinearParams&, const Few&, u32 row) const { return power_of_two(-exponent(row)); }
};

template <class T>
SHARED_DEVICE void f16_tile(const LinearParams& p, u32 row_tile, u32 feature_tile) {
    tile_16bit<T, Halves>(p, row_tile, feature_tile, [&](u32 row) { return p.row_scales[row].scale; });
}

// A row for each block of 256 threads.
template <class P>
SHARED_DEVICE void f16_x(const P& p) {
    SHARED(Largest, largest);
    u32 row = blockIdx.x, most = 0;
    if (row >= live_rows(p.live, p.rows)) return;
    const float* x = x_row(p, row);
    for (u32 k = threadIdx.x * 4; k < p.width; k += 256 * 4) most = larger(most, load_x(p, x, k));
    most = warp_max(most);
    if (threadIdx.x % WARP == 0) largest.of[threadIdx.x / WARP] = most;
    __syncthreads();
    for (u32 i = 0; i < SEGMENTS; i++) most = max_u32(most, largest.of[i]);
    int exponent = exponent_of(most);
    if (threadIdx.x == 0) p.row_scales[row] = {power_of_two(-exponent), -1.0f};
    round_row<Halves>(p, row, power_of_two(exponent));
}

}
