// What the kernels of `linear` share: their parameters, how x is read, and what becomes of a sum.
//
// A product's fragment is 16 output features by 8 rows of x: the weights are its first factor. Lane l holds of the sums
// of features l/4 (two) and l/4 + 8 (two) those of rows 2(l%4) and the next; a gated matrix has gate and up in these two
// features, so that one lane has both.
#include "common.cuh"
#include "activation.cuh"
#include "vector.cuh"
#include "weight.cuh"

// Of a row of x as bytes (crates/tensor/src/quant.rs): the scales of it and of its rest, which is below 0 where it has none.
// Of a row as f16 (crates/tensor/src/halves.rs): what its sums are multiplied with, and no rest.
struct RowScales {
    float scale;
    float rest;
};

struct LinearParams {
    float* out;
    const float* x;
    const u8* weight;
    const u8* multipliers;
    const float* scales;
    const float* bias;
    const float* residual;
    const u32* live;
    // Scratch memory: x as the product takes it, of bytes and f16 the scales, and of bytes the rests.
    u8* copy;
    u8* rests;
    RowScales* row_scales;
    // Where parts of K that are blocks of their own leave their sums, and of each tile how many of them have ended.
    u8* part_sums;
    u32* ended;
    u32 rows;
    u32 width;
    // Output features, and panels of them.
    u32 features;
    u32 panels;
    // Blocks of a row of weights, and of the eighth of them that is summed by itself.
    u32 blocks;
    u32 segment;
    // Bytes of a row of `copy`.
    u32 copy_bytes;
    u32 x_stride;
    u32 out_stride;
    u32 residual_stride;
    u32 layout;
    u32 function;
    // Rows of x begin at whole vectors of four and end with one.
    u32 vectors;
    // Groups of rows, of which a block computes one, where there are few.
    u32 groups;
    // Bytes of a panel's multipliers: of q4 what their name says, of f8 scales.
    u32 panel_multipliers;
    // Of 32 numbers of a row of `copy`, words 4t + s lie at piece s, place t: as products of warpgroups take sixteen columns.
    u32 turned;
    // Parts of K, and tiles that are cut into such: one, and none, where a block has all of K.
    u32 parts;
    u32 cut_tiles;
};

// `layout`: output features as they are; with gates beside them; and the same where the activation is wanted.
const u32 PLAIN = 0;
const u32 GATED = 1;
const u32 GATED_ACTIVATION = 2;

// Parts of K whose sums are added in order at the end, on every path: that is the sum.
const u32 SEGMENTS = 8;

namespace linear_op {

// Sixteen bytes that others read, too.
SHARED_DEVICE Words4 load(const void* from) { return *static_cast<const Words4*>(from); }
SHARED_DEVICE void store(void* to, const Words4& words) { *static_cast<Words4*>(to) = words; }
SHARED_DEVICE void store_word(void* to, u32 word) { *static_cast<u32*>(to) = word; }
struct alignas(8) Words2 {
    u32 v[2];
};
SHARED_DEVICE Words2 load_two(const void* from) { return *static_cast<const Words2*>(from); }

// Input features from k on, a multiple of four, of a row of x; zeros past the last. Vectors are whole: see `vectors`.
SHARED_DEVICE Floats4 load_vector(const LinearParams& p, const float* x, u32 k, bool wanted) {
    Words4 words = load_if(x + k, wanted && k < p.width);
    Floats4 d;
#pragma unroll
    for (int i = 0; i < 4; i++) d.v[i] = bits_float(words.v[i]);
    return d;
}
// The same of any x.
SHARED_DEVICE Floats4 load_x(const LinearParams& p, const float* x, u32 k) {
    if (p.vectors) return load_vector(p, x, k, true);
    Floats4 d;
#pragma unroll
    for (int i = 0; i < 4; i++) d.v[i] = k + i < p.width ? x[k + i] : 0.0f;
    return d;
}

// Where rows of x are: row `row` from row `first` on begins `x_index` rows behind `x_base`. Rows of experts are listed:
// grouped_linear.cuh.
SHARED_DEVICE const float* x_base(const LinearParams& p, u32 first) { return p.x + u64(first) * p.x_stride; }
SHARED_DEVICE u32 x_index(const LinearParams&, u32, u32 row) { return row; }
template <class P>
SHARED_DEVICE const float* x_row(const P& p, u32 row) {
    return x_base(p, 0) + u64(x_index(p, 0, row)) * p.x_stride;
}
// The same of the row that a lane has of a fragment, which is the only one.
SHARED_DEVICE const float* x_of_lane(const LinearParams& p, u32 row) { return p.x + u64(row) * p.x_stride; }

// What a word of weights and of x holds, and what it is multiplied by.
struct Bf16s {
    typedef float Sum;
    static SHARED_DEVICE u32 pack(float low, float high) { return pack_bf16(low, high); }
    static SHARED_DEVICE void mma(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(sum, a, b); }
};
struct Halves {
    typedef float Sum;
    static SHARED_DEVICE u32 pack(float low, float high) { return pack_f16(low, high); }
    static SHARED_DEVICE void mma(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(sum, a, b); }
};
struct Bytes {
    typedef int Sum;
    static SHARED_DEVICE void mma(int (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_s8(sum, a, b); }
};

// Products of sixteen bytes a lane: of features l/4 and l/4 + 8, and of a row of x. Which of them meet in a product is
// free, as long as both sides agree.
template <class Word>
SHARED_DEVICE void multiply(typename Word::Sum (&sum)[4], const Words4 (&w)[2], const Words4& x) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        u32 a[4] = {w[0].v[i], w[1].v[i], w[0].v[i + 1], w[1].v[i + 1]};
        u32 b[2] = {x.v[i], x.v[i + 1]};
        Word::mma(sum, a, b);
    }
}

SHARED_DEVICE bool has_rest(const RowScales& scales) { return scales.rest >= 0.0f; }
// The sum over K of bytes, as a number: `quant.rs`. The rest is added last.
SHARED_DEVICE float with_rest(float value, int rest, const RowScales& scales) {
    return has_rest(scales) ? fmaf(float(rest), scales.rest, value) : value;
}

SHARED_DEVICE void add_and_store(const LinearParams& p, u32 row, u32 feature, float value) {
    if (feature >= p.features) return;
    if (p.bias) value += p.bias[feature];
    if (p.residual) value += p.residual[u64(row) * p.residual_stride + feature];
    p.out[u64(row) * p.out_stride + feature] = value;
}

// Ends two sums of a row of x: those of rows i and i + 8 of a panel.
SHARED_DEVICE void finish(const LinearParams& p, u32 panel, u32 i, u32 row, float low, float high) {
    if (p.scales) {
        low *= p.scales[panel * PANEL + i];
        high *= p.scales[panel * PANEL + i + 8];
    }
    if (p.layout == PLAIN) {
        add_and_store(p, row, panel * PANEL + i, low);
        add_and_store(p, row, panel * PANEL + i + 8, high);
        return;
    }
    u32 half = p.features / 2, feature = panel * 8 + i;
    if (feature >= half) return;
    if (p.layout == GATED) {
        add_and_store(p, row, feature, low);
        add_and_store(p, row, half + feature, high);
        return;
    }
    if (p.bias) {
        low += p.bias[feature];
        high += p.bias[half + feature];
    }
    p.out[u64(row) * p.out_stride + feature] = activation(low, p.function) * high;
}

}
