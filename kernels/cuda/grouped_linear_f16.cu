// Products with experts' f16 matrices.
#include "linear_f16.cuh"
#include "grouped_linear.cuh"

using namespace linear_op;

KERNEL(grouped_f16_x, 256, GroupedParams) { f16_x(all_places(p)); }

KERNEL(grouped_f16_8, 256, GroupedParams) { grouped_direct<F16Direct>(p); }
KERNEL(grouped_f16_16, 256, GroupedParams) { grouped_few<F16, 1, 2>(p); }
KERNEL(grouped_f16_32, 256, GroupedParams) { grouped_few<F16, 2, 4>(p); }
KERNEL(grouped_f16_large, 256, GroupedParams) {
    visit_tile(p, LargeTile::ROWS, [](const ExpertParams& of, u32 tile) { f16_tile<LargeTile>(of, tile, blockIdx.x); });
}
KERNEL_OF_BLOCKS(grouped_f16_small, 128, 3, GroupedParams) {
    visit_tile(p, SmallTile::ROWS, [](const ExpertParams& of, u32 tile) { f16_tile<SmallTile>(of, tile, blockIdx.x); });
}
