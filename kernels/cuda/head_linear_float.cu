// Products with heads' f32 matrices.
#include "linear_float.cuh"
#include "head_linear.cuh"

using namespace linear_op;

KERNEL(head_f32_8, 256, HeadParams) {
    float_few::rows<8>(head_of(p), blockIdx.x % p.linear.groups, blockIdx.x / p.linear.groups * float_few::PANELS);
}
KERNEL(head_f32_small, 256, HeadParams) { float_tile::rows(head_of(p), blockIdx.x, blockIdx.y); }
