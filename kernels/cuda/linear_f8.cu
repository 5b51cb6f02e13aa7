// Products with f8 weights: x is rounded to bf16.
#include "linear_f8.cuh"

using namespace linear_op;

KERNEL(linear_f8_x, 256, LinearParams) {
    begin_parts(p);
    if (blockIdx.x < live_rows(p.live, p.rows)) round_row<Bf16s>(p, blockIdx.x, 1.0f);
}

KERNEL(linear_f8_8, 256, LinearParams) { few_rows<DirectF8, 1, 1>(p); }
KERNEL(linear_f8_16, 256, LinearParams) { few_rows<CopiedF8, 1, 2>(p); }
KERNEL(linear_f8_32, 256, LinearParams) { few_rows<CopiedF8, 2, 4>(p); }
KERNEL_OF_BLOCKS(linear_f8_flat_32, 128, 3, LinearParams) {
    flat_floats<FlatF8, 4>(p, [](u32) { return 1.0f; });
}
KERNEL_OF_BLOCKS(linear_f8_flat_64, 128, 2, LinearParams) {
    flat_floats<FlatF8, 8>(p, [](u32) { return 1.0f; });
}
KERNEL(linear_f8_large, 256, LinearParams) { f8_tile<LargeTile>(p, blockIdx.x, blockIdx.y); }
KERNEL(linear_f8_small, 128, LinearParams) { f8_tile<SmallTile>(p, blockIdx.x, blockIdx.y); }

// For a library of products: rows of weights as the bf16 numbers that they read as, in the order of input features. A thread
// takes sixteen bytes.
struct WidenParams {
    LinearParams linear;
    u8* out;
    // The first panel.
    u32 first;
    u32 reserved;
};

KERNEL(linear_f8_widen, 256, WidenParams) {
    const LinearParams& q = p.linear;
    u32 row = p.first * PANEL + blockIdx.x, at = blockIdx.y * 256 + threadIdx.x, block = at / 4, t = at % 4;
    if (block >= q.blocks) return;
    Words4 bytes = load_once(q.weight + (u64(row) * q.blocks + block) * BLOCK + t * 16);
    float scale = *reinterpret_cast<const float*>(q.multipliers + f8_scale(row, block, q.blocks));
    u8* to = p.out + (u64(blockIdx.x) * q.blocks + block) * (2 * BLOCK) + t * 16;
    store(to, widened(bytes, 0, scale));
    store(to + BLOCK, widened(bytes, 1, scale));
}
