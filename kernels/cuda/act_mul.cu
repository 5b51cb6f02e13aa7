// out = activation(gate) * up: a thread four columns of a row.
#include "common.cuh"
#include "activation.cuh"
#include "vector.cuh"

struct ActMulParams {
    float* out;
    // Rows of gate and up, `width` columns each.
    const float* gate_up;
    const u32* live;
    u32 rows;
    u32 width;
    u32 out_stride;
    u32 gate_up_stride;
    u32 function;
    u32 reserved;
};

namespace act_mul_op {
const u32 THREADS = 256;
}

KERNEL(act_mul, 256, ActMulParams) {
    u32 row = blockIdx.x, column = 4 * (blockIdx.y * act_mul_op::THREADS + threadIdx.x);
    if (column >= p.width || row >= live_rows(p.live, p.rows)) return;
    const float* gate = p.gate_up + u64(row) * p.gate_up_stride + column;
    u32 left = p.width - column;
    Floats4 a = load4(gate, left), up = load4(gate + p.width, left);
    for (u32 j = 0; j < 4; j++) a.v[j] = activation(a.v[j], p.function) * up.v[j];
    store4(p.out + u64(row) * p.out_stride + column, a, left);
}
