// Kernels that try the emulation of what warpgroups do (kernels/tests/emulation_warpgroup.rs).
#include "selftest.h"

// The dynamic memory from the first block of lines on.
SHARED_DEVICE u8* lines_of(u8* memory) {
    return memory + (SWIZZLED_BLOCK - shared_address(memory) % SWIZZLED_BLOCK) % SWIZZLED_BLOCK;
}
SHARED_DEVICE void put(u8* lines, u32 line, u32 column, u16 value) {
    *reinterpret_cast<u16*>(lines + swizzled(line, column / 8) + column % 8 * 2) = value;
}

// y[64][64] = n times x[64][16] times the transpose of w[64][16], of bf16. Of `mode` bit 0: x in shared memory; bit 1: w in
// columns; 4: sums are read before they are waited for; 8: w is overwritten before.
KERNEL(test_products, 128, TestParams) {
    SHARED_BYTES(memory);
    u8 *a_lines = lines_of(memory), *b_lines = a_lines + 64 * SWIZZLED_LINE;
    const u16 *x = reinterpret_cast<const u16*>(p.x), *w = reinterpret_cast<const u16*>(p.w);
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    // Behind what is not multiplied: the columns of a line are at byte 32.
    for (u32 i = threadIdx.x; i < 64 * 16; i += 128) {
        put(a_lines, i / 16, 16 + i % 16, x[i]);
        if (p.mode & 2) {
            put(b_lines, i % 16, i / 16, w[i]);
        } else {
            put(b_lines, i / 16, 16 + i % 16, w[i]);
        }
    }
    shared_written();
    __syncthreads();
    u32 row = warp * 16 + lane / 4, a[4];
    for (u32 i = 0; i < 4; i++) a[i] = p.x[(row + i % 2 * 8) * 8 + lane % 4 + i / 2 * 4];
    u32 from = shared_address(b_lines);
    u64 matrix = p.mode & 2 ? matrix_at(from, 0, SWIZZLED_BLOCK) : matrix_at(from + 32, 0, SWIZZLED_BLOCK);
    float sum[32];
    for (u32 i = 0; i < p.n; i++) {
        products_hold(sum);
        products_begin();
        if (p.mode & 1) {
            u64 rows = matrix_at(shared_address(a_lines) + 32, 0, SWIZZLED_BLOCK);
            multiply_bf16(sum, rows, matrix, i > 0);
        } else if (p.mode & 2) {
            multiply_bf16<1>(sum, a, matrix, i > 0);
        } else {
            multiply_bf16<0>(sum, a, matrix, i > 0);
        }
        products_commit();
    }
    if (p.mode & 8) put(b_lines, 0, 16, 0x7fc0);
    float early = sum[0];
    products_wait<0>();
    products_hold(sum);
    if (p.mode & 4) sum[0] = early;
    for (u32 i = 0; i < 32; i++) {
        u32 column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        p.y[(row + i / 2 % 2 * 8) * 64 + column] = float_bits(sum[i]);
    }
}

struct TestBarriers {
    Barrier full[2], empty[2];
};

// y[t] = the sum of what is at line t % 8 of n tiles of eight lines, that thread 128 brings. mode 0 is right; 1 does not wait
// for tiles, 2 not for those who read them.
KERNEL(test_tiles, 160, TestParams) {
    SHARED_BYTES(memory);
    SHARED(TestBarriers, barriers);
    u8* lines = lines_of(memory);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < 2; i++) {
            barrier_init(barriers.full[i], 1);
            barrier_init(barriers.empty[i], 128);
        }
        barriers_ready();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        for (u32 tile = 0; tile < p.n && threadIdx.x == 128; tile++) {
            u32 stage = tile % 2, phase = tile / 2 % 2;
            if (p.mode != 2) barrier_wait(barriers.empty[stage], phase ^ 1);
            barrier_expect(barriers.full[stage], SWIZZLED_BLOCK);
            copy_tile(lines + stage * SWIZZLED_BLOCK, p.map, 64 * (tile % 2), 8 * (tile / 2), barriers.full[stage]);
        }
        return;
    }
    u32 sum = 0;
    for (u32 tile = 0; tile < p.n; tile++) {
        u32 stage = tile % 2, phase = tile / 2 % 2;
        if (p.mode != 1) barrier_wait(barriers.full[stage], phase);
        for (u32 piece = 0; piece < 8; piece++) {
            const u16* at = reinterpret_cast<const u16*>(lines + stage * SWIZZLED_BLOCK + swizzled(threadIdx.x % 8, piece));
            for (u32 i = 0; i < 8; i++) sum += at[i] * (piece * 8 + i + 1);
        }
        // The last come when the others are through.
        sync_some(1, 128);
        barrier_arrive(barriers.empty[stage]);
    }
    p.y[threadIdx.x] = sum;
}

// Each mode is an error.
KERNEL(test_wrong_warpgroup, 128, TestParams) {
    SHARED_BYTES(memory);
    SHARED(Barrier, barrier);
    float sum[32] = {};
    u32 a[4] = {};
    u64 matrix = matrix_at(shared_address(lines_of(memory)), 0, SWIZZLED_BLOCK);
    if (p.mode > 0 && threadIdx.x == 0) barrier_init(barrier, 1);
    __syncthreads();
    switch (p.mode) {
        case 0: barrier_wait(barrier, 0); break;
        case 1: barrier_wait(barrier, 0); break;
        case 2: multiply_bf16<0>(sum, a, matrix, true); break;
        case 3:
            products_begin();
            multiply_bf16<0>(sum, a, matrix, true);
            products_commit();
            break;
        case 4:
            products_begin();
            multiply_bf16<0>(sum, a, matrix_at(0, 0, SWIZZLED_BLOCK), true);
            products_commit();
            products_wait<0>();
            break;
        case 5:
            if (threadIdx.x < 64) sync_some(1, 128);
            break;
        case 6:
            if (threadIdx.x == 0) copy_tile(lines_of(memory) + 128, p.map, 0, 0, barrier);
            break;
        case 7:
            if (threadIdx.x == 0) copy_tile(lines_of(memory), p.map, 0, 0, barrier);
            break;
        case 8:
            products_begin();
            multiply_bf16<0>(sum, a, matrix + (threadIdx.x % WARP == 5), true);
    }
    p.y[threadIdx.x] = float_bits(sum[0]);
}
