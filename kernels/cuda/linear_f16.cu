// Products with f16 weights.
#include "linear_f16.cuh"

using namespace linear_op;

KERNEL(linear_f16_x, 256, LinearParams) {
    begin_parts(p);
    f16_x(p);
}

KERNEL(linear_f16_8, 256, LinearParams) { few_rows<F16Direct, 1, 1>(p); }
KERNEL(linear_f16_16, 256, LinearParams) { few_rows<F16, 1, 2>(p); }
KERNEL(linear_f16_32, 256, LinearParams) { few_rows<F16, 2, 4>(p); }
KERNEL_OF_BLOCKS(linear_f16_flat_32, 128, 2, LinearParams) {
    flat_floats<WholeWeights<Halves, false>, 4>(p, [&](u32 row) { return p.row_scales[row].scale; });
}
KERNEL_OF_BLOCKS(linear_f16_flat_64, 128, 2, LinearParams) {
    flat_floats<WholeWeights<Halves, false>, 8>(p, [&](u32 row) { return p.row_scales[row].scale; });
}
KERNEL(linear_f16_large, 256, LinearParams) { f16_tile<LargeTile>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_f16_small, 128, LinearParams) { f16_tile<SmallTile>(p, blockIdx.x, blockIdx.y); }
