// out[t] = sum over j of weights[t, j] * x[places[t, j]] (+ residual[t]), in order: a thread four columns of a row.
#include "common.cuh"
#include "vector.cuh"

struct CombineParams {
    float* out;
    const float* x;
    const float* weights;
    const u32* places;
    const float* residual;
    const u32* live;
    u32 rows;
    u32 width;
    u32 per_token;
    // Rows of x.
    u32 pairs;
    u32 out_stride;
    u32 x_stride;
    u32 residual_stride;
    u32 reserved;
};

namespace combine_op {
const u32 THREADS = 256;
}

KERNEL(combine, 256, CombineParams) {
    u32 row = blockIdx.x, column = 4 * (blockIdx.y * combine_op::THREADS + threadIdx.x);
    if (column >= p.width || row >= live_rows(p.live, p.rows)) return;
    const u32* places = p.places + u64(row) * p.per_token;
    const float* weights = p.weights + u64(row) * p.per_token;
    u32 left = p.width - column;
    Floats4 sum = {};
    // Four rows are on their way at a time.
#pragma unroll 4
    for (u32 j = 0; j < p.per_token; j++) {
        Floats4 x = load4(p.x + u64(min_u32(places[j], p.pairs - 1)) * p.x_stride + column, left);
        for (u32 i = 0; i < 4; i++) sum.v[i] = fmaf(weights[j], x.v[i], sum.v[i]);
    }
    if (p.residual) {
        Floats4 more = load4(p.residual + u64(row) * p.residual_stride + column, left);
        for (u32 i = 0; i < 4; i++) sum.v[i] += more.v[i];
    }
    store4(p.out + u64(row) * p.out_stride + column, sum, left);
}
