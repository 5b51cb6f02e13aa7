// Products with experts' f8 matrices.
#include "linear_f8.cuh"
#include "grouped_linear.cuh"

using namespace linear_op;

KERNEL(grouped_f8_x, 256, GroupedParams) {
    ExpertParams all = all_places(p);
    if (blockIdx.x < live_rows(all.live, all.rows)) round_row<Bf16s>(all, blockIdx.x, 1.0f);
}

KERNEL(grouped_f8_8, 256, GroupedParams) { grouped_direct<DirectF8>(p); }
KERNEL(grouped_f8_16, 256, GroupedParams) { grouped_few<CopiedF8, 1, 2>(p); }
KERNEL(grouped_f8_32, 256, GroupedParams) { grouped_few<CopiedF8, 2, 4>(p); }
KERNEL(grouped_f8_large, 256, GroupedParams) {
    visit_tile(p, LargeTile::ROWS, [](const ExpertParams& of, u32 tile) { f8_tile<LargeTile>(of, tile, blockIdx.x); });
}
KERNEL_OF_BLOCKS(grouped_f8_small, 128, 3, GroupedParams) {
    visit_tile(p, SmallTile::ROWS, [](const ExpertParams& of, u32 tile) { f8_tile<SmallTile>(of, tile, blockIdx.x); });
}
