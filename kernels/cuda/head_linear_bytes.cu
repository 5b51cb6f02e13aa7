// Products with heads' q8 and q4 matrices.
#include "linear_bytes.cuh"
#include "head_linear.cuh"

using namespace linear_op;

KERNEL(head_q8_x, 256, HeadParams) { bytes_x::bytes<bytes_x::AsTheyLie>(head_of(p)); }
KERNEL(head_q4_x, 256, HeadParams) { bytes_x::bytes<bytes_x::AsNibbles>(head_of(p)); }

KERNEL(head_q8_8, 256, HeadParams) { few_rows<Q8, 1, 1>(head_of(p)); }
KERNEL(head_q8_32, 256, HeadParams) { few_rows<Q8, 2, 4>(head_of(p)); }
KERNEL_OF_BLOCKS(head_q8_small, 128, 2, HeadParams) {
    bytes_tile<SmallTile, CopiedWeights<SmallTile>>(head_of(p), blockIdx.x, blockIdx.y);
}

KERNEL(head_q4_8, 256, HeadParams) { few_rows<Q4, 1, 1>(head_of(p)); }
// Nibbles of two panels are more than registers hold.
KERNEL(head_q4_32, 256, HeadParams) { few_rows<Q4, 1, 4>(head_of(p)); }
KERNEL_OF_BLOCKS(head_q4_small, 128, 3, HeadParams) {
    bytes_tile<SmallTile, SpreadWeights<SmallTile>>(head_of(p), blockIdx.x, blockIdx.y);
}
