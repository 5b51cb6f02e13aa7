// Products with f32 weights.
#include "linear_float.cuh"

using namespace linear_op;

KERNEL(linear_f32_8, 256, LinearParams) {
    float_few::rows<8>(p, blockIdx.x % p.groups, blockIdx.x / p.groups * float_few::PANELS);
}
KERNEL(linear_f32_small, 256, LinearParams) { float_tile::rows(p, blockIdx.x, blockIdx.y); }
