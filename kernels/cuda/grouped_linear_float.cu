// Products with experts' f32 matrices.
#include "linear_float.cuh"
#include "grouped_linear.cuh"

using namespace linear_op;

KERNEL_OF_BLOCKS(grouped_f32_4, 256, 2, GroupedParams) {
    visit_groups<4>(p, [](const ExpertParams& of, u32 group) {
        float_few::rows<4>(of, group, blockIdx.x * float_few::PANELS);
    });
}
KERNEL(grouped_f32_small, 256, GroupedParams) {
    visit_tile(p, float_tile::SIZE, [](const ExpertParams& of, u32 tile) { float_tile::rows(of, tile, blockIdx.x); });
}
