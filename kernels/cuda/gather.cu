// out[r] = x[rows[r]]: a thread four columns of a row.
#include "common.cuh"
#include "vector.cuh"

struct GatherParams {
    float* out;
    const float* x;
    const u32* index;
    const u32* live;
    u32 rows;
    u32 width;
    u32 out_stride;
    u32 x_stride;
    u32 x_rows;
    u32 reserved;
};

namespace gather_op {
const u32 THREADS = 256;
}

KERNEL(gather, 256, GatherParams) {
    u32 row = blockIdx.x, column = 4 * (blockIdx.y * gather_op::THREADS + threadIdx.x);
    if (column >= p.width || row >= live_rows(p.live, p.rows)) return;
    u32 source = min_u32(p.index[row], p.x_rows - 1), left = p.width - column;
    Floats4 a = load4(p.x + u64(source) * p.x_stride + column, left);
    store4(p.out + u64(row) * p.out_stride + column, a, left);
}
