// Products with experts' q8 and q4 matrices.
#include "linear_bytes.cuh"
#include "grouped_linear.cuh"

namespace linear_op {

template <class T, class Weights>
SHARED_DEVICE void grouped_tile(const GroupedParams& params) {
    visit_tile(params, T::ROWS, [](const ExpertParams& p, u32 tile) { bytes_tile<T, Weights>(p, tile, blockIdx.x); });
}

}

using namespace linear_op;

KERNEL(grouped_q8_x, 256, GroupedParams) { bytes_x::bytes<bytes_x::AsTheyLie>(all_places(p)); }
KERNEL(grouped_q4_x, 256, GroupedParams) { bytes_x::bytes<bytes_x::AsNibbles>(all_places(p)); }

KERNEL(grouped_q8_8, 256, GroupedParams) { grouped_few<Q8, 1, 1>(p); }
KERNEL(grouped_q8_16, 256, GroupedParams) { grouped_few<Q8, 1, 2>(p); }
KERNEL(grouped_q8_32, 256, GroupedParams) { grouped_few<Q8, 2, 4>(p); }
KERNEL(grouped_q8_large, 256, GroupedParams) { grouped_tile<LargeTile, CopiedWeights<LargeTile>>(p); }
KERNEL_OF_BLOCKS(grouped_q8_small, 128, 2, GroupedParams) { grouped_tile<SmallTile, CopiedWeights<SmallTile>>(p); }

KERNEL(grouped_q4_8, 256, GroupedParams) { grouped_few<Q4, 1, 1>(p); }
KERNEL(grouped_q4_16, 256, GroupedParams) { grouped_few<Q4, 1, 2>(p); }
KERNEL(grouped_q4_32, 256, GroupedParams) { grouped_few<Q4, 2, 4>(p); }
KERNEL(grouped_q4_large, 256, GroupedParams) { grouped_tile<LargeTile, SpreadWeights<LargeTile>>(p); }
KERNEL_OF_BLOCKS(grouped_q4_small, 128, 3, GroupedParams) { grouped_tile<SmallTile, SpreadWeights<SmallTile>>(p); }
