// Products with heads' f16 matrices.
#include "linear_f16.cuh"
#include "head_linear.cuh"

using namespace linear_op;

KERNEL(head_f16_x, 256, HeadParams) { f16_x(head_of(p)); }

KERNEL(head_f16_8, 256, HeadParams) { few_rows<F16Direct, 1, 1>(head_of(p)); }
KERNEL(head_f16_32, 256, HeadParams) { few_rows<F16, 2, 4>(head_of(p)); }
KERNEL_OF_BLOCKS(head_f16_small, 128, 3, HeadParams) { f16_tile<SmallTile>(head_of(p), blockIdx.x, blockIdx.y); }
