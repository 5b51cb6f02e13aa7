// Products with q8 and q4 weights.
#include "linear_bytes.cuh"

using namespace linear_op;

KERNEL(linear_q8_x, 256, LinearParams) {
    begin_parts(p);
    bytes_x::bytes<bytes_x::AsTheyLie>(p);
}
KERNEL(linear_q4_x, 256, LinearParams) {
    begin_parts(p);
    bytes_x::bytes<bytes_x::AsNibbles>(p);
}

KERNEL(linear_q8_8, 256, LinearParams) { few_rows<Q8, 1, 1>(p); }
KERNEL(linear_q8_16, 256, LinearParams) { few_rows<Q8, 1, 2>(p); }
KERNEL(linear_q8_32, 256, LinearParams) { few_rows<Q8, 2, 4>(p); }
KERNEL_OF_BLOCKS(linear_q8_flat_32, 128, 3, LinearParams) { flat_bytes<FlatQ8, 4>(p); }
KERNEL_OF_BLOCKS(linear_q8_flat_64, 128, 2, LinearParams) { flat_bytes<FlatQ8, 8>(p); }
KERNEL(linear_q8_large, 256, LinearParams) { bytes_tile<LargeTile, CopiedWeights<LargeTile>>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_q8_small, 128, LinearParams) { bytes_tile<SmallTile, CopiedWeights<SmallTile>>(p, blockIdx.x, blockIdx.y); }

KERNEL(linear_q4_8, 256, LinearParams) { few_rows<Q4, 1, 1>(p); }
KERNEL(linear_q4_16, 256, LinearParams) { few_rows<Q4, 1, 2>(p); }
KERNEL(linear_q4_32, 256, LinearParams) { few_rows<Q4, 2, 4>(p); }
KERNEL_OF_BLOCKS(linear_q4_flat_32, 128, 3, LinearParams) { flat_bytes<FlatQ4, 4>(p); }
KERNEL_OF_BLOCKS(linear_q4_flat_64, 128, 2, LinearParams) { flat_bytes<FlatQ4, 8>(p); }
KERNEL(linear_q4_large, 256, LinearParams) { bytes_tile<LargeTile, SpreadWeights<LargeTile>>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_q4_small, 128, LinearParams) { bytes_tile<SmallTile, SpreadWeights<SmallTile>>(p, blockIdx.x, blockIdx.y); }
