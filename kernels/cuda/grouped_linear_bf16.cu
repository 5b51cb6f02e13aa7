// Products with experts' bf16 matrices.
#include "linear_16bit.cuh"
#include "grouped_linear.cuh"

using namespace linear_op;

KERNEL(grouped_bf16_x, 256, GroupedParams) {
    ExpertParams all = all_places(p);
    if (blockIdx.x < live_rows(all.live, all.rows)) round_row<Bf16s>(all, blockIdx.x, 1.0f);
}

KERNEL(grouped_bf16_8, 256, GroupedParams) { grouped_direct<Direct<Bf16s>>(p); }
KERNEL(grouped_bf16_16, 256, GroupedParams) { grouped_few<Copied<Bf16s>, 1, 2>(p); }
KERNEL(grouped_bf16_32, 256, GroupedParams) { grouped_few<Copied<Bf16s>, 2, 4>(p); }
KERNEL(grouped_bf16_large, 256, GroupedParams) {
    visit_tile(p, LargeTile::ROWS, [](const ExpertParams& of, u32 tile) { bf16_tile<LargeTile>(of, tile, blockIdx.x); });
}
KERNEL_OF_BLOCKS(grouped_bf16_small, 128, 3, GroupedParams) {
    visit_tile(p, SmallTile::ROWS, [](const ExpertParams& of, u32 tile) { bf16_tile<SmallTile>(of, tile, blockIdx.x); });
}
