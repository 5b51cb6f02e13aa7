// out = x / sqrt(mean(x^2) + eps) * weight (+ residual): a block a row, whatever their number.
#include "common.cuh"
#include "block.cuh"
#include "vector.cuh"

struct NormParams {
    float* out;
    const float* x;
    const float* weight;
    const u32* live;
    // Or nothing; may be `out`.
    const float* residual;
    u32 rows;
    u32 width;
    u32 out_stride;
    u32 x_stride;
    float eps;
    u32 residual_stride;
};

namespace norm_op {
const u32 THREADS = 512;
// Columns of one round of the block.
const u32 ROUND = 4 * THREADS;
struct Shared {
    float sums[THREADS / WARP];
};
}

KERNEL(norm, 512, NormParams) {
    using namespace norm_op;
    SHARED(Shared, shared);
    u32 row = blockIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    const float* x = p.x + u64(row) * p.x_stride;
    float* out = p.out + u64(row) * p.out_stride;
    // The first columns of a thread stay in registers, and their weights arrive while the block adds up.
    u32 first = 4 * threadIdx.x, left = p.width - min_u32(first, p.width);
    Floats4 a = load4(x + first, left), w = load4(p.weight + first, left);
    float sum = 0.0f;
    for (u32 j = 0; j < 4; j++) sum = fmaf(a.v[j], a.v[j], sum);
    for (u32 i = first + ROUND; i < p.width; i += ROUND) {
        Floats4 b = load4(x + i, p.width - i);
        for (u32 j = 0; j < 4; j++) sum = fmaf(b.v[j], b.v[j], sum);
    }
    sum = block_sum(sum, shared.sums);
    float scale = 1.0f / sqrtf(sum / float(p.width) + p.eps);
    for (u32 i = first; i < p.width; i += ROUND) {
        if (i > first) a = load4(x + i, p.width - i), w = load4(p.weight + i, p.width - i);
        Floats4 d;
        for (u32 j = 0; j < 4; j++) d.v[j] = a.v[j] * scale * w.v[j];
        if (p.residual) {
            Floats4 r = load4(p.residual + u64(row) * p.residual_stride + i, p.width - i);
            for (u32 j = 0; j < 4; j++) d.v[j] += r.v[j];
        }
        store4(out + i, d, p.width - i);
    }
}
