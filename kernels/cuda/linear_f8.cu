// Products with f8 weights: x is rounded to bf16.
#include "linear_f8.cuh"

using namespace linear_op;

KERNEL(linear_f8_x, 256, LinearParams) {
    if (blockIdx.x < live_rows(p.live, p.rows)) round_row<Bf16s>(p, blockIdx.x, 1.0f);
}

KERNEL(linear_f8_8, 256, LinearParams) { few_rows<DirectF8, 1, 1>(p); }
KERNEL(linear_f8_16, 256, LinearParams) { few_rows<CopiedF8, 1, 2>(p); }
KERNEL(linear_f8_32, 256, LinearParams) { few_rows<CopiedF8, 2, 4>(p); }
KERNEL(linear_f8_64, 256, LinearParams) { few_rows<CopiedF8, 2, 8>(p); }
KERNEL(linear_f8_large, 256, LinearParams) { f8_tile<LargeTile>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_f8_small, 128, LinearParams) { f8_tile<SmallTile>(p, blockIdx.x, blockIdx.y); }
