// Products with bf16 weights: x is rounded to bf16.
#include "linear_16bit.cuh"

using namespace linear_op;

KERNEL(linear_bf16_x, 256, LinearParams) {
    begin_parts(p);
    if (blockIdx.x < live_rows(p.live, p.rows)) round_row<Bf16s>(p, blockIdx.x, 1.0f);
}

KERNEL(linear_bf16_8, 256, LinearParams) { few_rows<Direct<Bf16s>, 1, 1>(p); }
KERNEL(linear_bf16_16, 256, LinearParams) { few_rows<Copied<Bf16s>, 1, 2>(p); }
KERNEL(linear_bf16_32, 256, LinearParams) { few_rows<Copied<Bf16s>, 2, 4>(p); }
KERNEL_OF_BLOCKS(linear_bf16_flat_32, 128, 2, LinearParams) {
    flat_floats<WholeWeights<Bf16s, false>, 4>(p, [](u32) { return 1.0f; });
}
KERNEL_OF_BLOCKS(linear_bf16_flat_64, 128, 2, LinearParams) {
    flat_floats<WholeWeights<Bf16s, false>, 8>(p, [](u32) { return 1.0f; });
}
KERNEL(linear_bf16_large, 256, LinearParams) { bf16_tile<LargeTile>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_bf16_small, 128, LinearParams) { bf16_tile<SmallTile>(p, blockIdx.x, blockIdx.y); }
