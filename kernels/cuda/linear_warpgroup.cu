// Products of many rows with bf16 and f16 weights by warpgroups.
#include "linear_warpgroup.cuh"

using namespace linear_op;

#ifdef HAS_WARPGROUPS
namespace {
struct WarpgroupBf16s {
    template <int TRANSPOSED>
    static SHARED_DEVICE void multiply(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
        multiply_bf16<TRANSPOSED>(d, a, b, add);
    }
};
struct WarpgroupHalves {
    template <int TRANSPOSED>
    static SHARED_DEVICE void multiply(float (&d)[64], const u32 (&a)[4], u64 b, bool add) {
        multiply_f16<TRANSPOSED>(d, a, b, add);
    }
};
}

KERNEL_OF_BLOCKS(linear_bf16_warpgroup, 384, 1, WarpgroupParams) {
    warpgroup_tiles<WarpgroupBf16s>(p, [](u32) { return 1.0f; });
}
KERNEL_OF_BLOCKS(linear_f16_warpgroup, 384, 1, WarpgroupParams) {
    warpgroup_tiles<WarpgroupHalves>(p, [&](u32 row) { return p.linear.row_scales[row].scale; });
}
#endif
