// Products with heads' bf16 matrices.
#include "linear_16bit.cuh"
#include "head_linear.cuh"

using namespace linear_op;

KERNEL(head_bf16_x, 256, HeadParams) {
    LinearParams of = head_of(p);
    if (blockIdx.x < live_rows(of.live, of.rows)) round_row<Bf16s>(of, blockIdx.x, 1.0f);
}

KERNEL(head_bf16_8, 256, HeadParams) { few_rows<Direct<Bf16s>, 1, 1>(head_of(p)); }
KERNEL(head_bf16_32, 256, HeadParams) { few_rows<Copied<Bf16s>, 2, 4>(head_of(p)); }
KERNEL_OF_BLOCKS(head_bf16_small, 128, 3, HeadParams) { bf16_tile<SmallTile>(head_of(p), blockIdx.x, blockIdx.y); }
