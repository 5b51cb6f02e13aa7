// Products with heads' f8 matrices.
#include "linear_f8.cuh"
#include "head_linear.cuh"

using namespace linear_op;

KERNEL(head_f8_x, 256, HeadParams) {
    LinearParams of = head_of(p);
    if (blockIdx.x < live_rows(of.live, of.rows)) round_row<Bf16s>(of, blockIdx.x, 1.0f);
}

KERNEL(head_f8_8, 256, HeadParams) { few_rows<DirectF8, 1, 1>(head_of(p)); }
KERNEL(head_f8_32, 256, HeadParams) { few_rows<CopiedF8, 2, 4>(head_of(p)); }
KERNEL_OF_BLOCKS(head_f8_small, 128, 3, HeadParams) { f8_tile<SmallTile>(head_of(p), blockIdx.x, blockIdx.y); }
