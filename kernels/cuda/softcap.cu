// x = cap * tanh(x / cap), in place: a thread four columns of a row.
#include "common.cuh"
#include "vector.cuh"

struct SoftcapParams {
    float* x;
    const u32* live;
    u32 rows;
    u32 width;
    u32 stride;
    float cap;
};

namespace softcap_op {
const u32 THREADS = 256;
}

KERNEL(softcap, 256, SoftcapParams) {
    u32 row = blockIdx.x, column = 4 * (blockIdx.y * softcap_op::THREADS + threadIdx.x);
    if (column >= p.width || row >= live_rows(p.live, p.rows)) return;
    float* x = p.x + u64(row) * p.stride + column;
    u32 left = p.width - column;
    float inverse = 1.0f / p.cap;
    Floats4 a = load4(x, left);
    for (u32 j = 0; j < 4; j++) a.v[j] = tanh_of(a.v[j] * inverse) * p.cap;
    store4(x, a, left);
}
