// Kernels that try the emulation (kernels/tests/emulation.rs); those with a defect are named for it.
#include "selftest.h"

SHARED_DEVICE u32 flat_thread() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
SHARED_DEVICE u32 flat_block() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }

struct WarpSums {
    float of[32];
};

// y[block] = sum of x[0..n].
KERNEL(test_sum, 1024, TestParams) {
    SHARED(WarpSums, sums);
    SHARED(u32, warps);
    u32 t = flat_thread(), threads = blockDim.x * blockDim.y * blockDim.z;
    float sum = 0.0f;
    for (u32 i = t; i < p.n; i += threads) sum += bits_float(p.x[i]);
    sum = warp_sum(sum);
    if (t % WARP == 0) sums.of[t / WARP] = sum;
    if (t == 0) warps = threads / WARP;
    __syncthreads();
    if (t < WARP) {
        sum = warp_sum(t < warps ? sums.of[t] : 0.0f);
        if (t == 0) p.y[flat_block()] = float_bits(sum);
    }
}

// y[place in the grid] = the words of its indices.
KERNEL(test_indices, 1024, TestParams) {
    u32* y = p.y + (flat_block() * blockDim.x * blockDim.y * blockDim.z + flat_thread()) * 4;
    y[0] = threadIdx.x | threadIdx.y << 8 | threadIdx.z << 16;
    y[1] = blockIdx.x | blockIdx.y << 8 | blockIdx.z << 16;
    y[2] = blockDim.x | blockDim.y << 8 | blockDim.z << 16;
    y[3] = gridDim.x | gridDim.y << 8 | gridDim.z << 16;
}

// n rounds of reversing a block's words. mode 0 is right; 1 lacks the barrier before the reads, 2 that behind them.
KERNEL(test_reverse, 1024, TestParams) {
    SHARED_BYTES(bytes);
    u32* words = reinterpret_cast<u32*>(bytes);
    u32 t = threadIdx.x, value = p.x[t];
    for (u32 round = 0; round < p.n; round++) {
        words[t] = value + 1;
        if (p.mode != 1) __syncthreads();
        value = words[blockDim.x - 1 - t];
        if (p.mode != 2) __syncthreads();
    }
    p.y[blockIdx.x * blockDim.x + t] = value;
}

// Half of a warp writes for the other half. mode 0 is right; 1 lacks __syncwarp.
KERNEL(test_warp_reverse, 32, TestParams) {
    SHARED(WarpSums, words);
    u32 t = threadIdx.x;
    words.of[t] = float(t);
    if (p.mode == 0) __syncwarp();
    p.y[t] = u32(int(words.of[31 - t]));
}

// Each warp: d[16][8] += a[16][16] b[16][8], of x, w and y, row by row; lanes as machine.cuh says.
template <class Multiply>
SHARED_DEVICE void test_mma(const TestParams& p, Multiply multiply) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = lane / 4, pair = lane % 4;
    const u32* x = p.x + warp * 16 * 8;
    const u16* w = reinterpret_cast<const u16*>(p.w) + warp * 16 * 8;
    u32* y = p.y + warp * 16 * 8;
    u32 a[4] = {x[row * 8 + pair], x[(row + 8) * 8 + pair], x[row * 8 + pair + 4], x[(row + 8) * 8 + pair + 4]}, b[2];
    for (u32 i = 0; i < 2; i++) {
        u32 k = pair * 2 + i * 8;
        b[i] = w[k * 8 + row] | u32(w[(k + 1) * 8 + row]) << 16;
    }
    float d[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) d[i] = bits_float(y[(row + i / 2 * 8) * 8 + pair * 2 + i % 2]);
    for (u32 i = 0; i < p.n; i++) multiply(d, a, b);
#pragma unroll
    for (u32 i = 0; i < 4; i++) y[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = float_bits(d[i]);
}
KERNEL(test_mma_bf16, 256, TestParams) {
    test_mma(p, [](float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(d, a, b); });
}
KERNEL(test_mma_f16, 256, TestParams) {
    test_mma(p, [](float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(d, a, b); });
}

// The same of bytes: a[16][32] and b[32][8].
KERNEL(test_mma_s8, 256, TestParams) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = lane / 4, quad = lane % 4;
    const u32* x = p.x + warp * 16 * 8;
    const u8* w = reinterpret_cast<const u8*>(p.w) + warp * 32 * 8;
    u32* y = p.y + warp * 16 * 8;
    u32 a[4] = {x[row * 8 + quad], x[(row + 8) * 8 + quad], x[row * 8 + quad + 4], x[(row + 8) * 8 + quad + 4]};
    u32 b[2] = {0, 0};
    for (u32 i = 0; i < 8; i++) b[i / 4] |= u32(w[(quad * 4 + i / 4 * 16 + i % 4) * 8 + row]) << (i % 4 * 8);
    int d[4];
    for (u32 i = 0; i < 4; i++) d[i] = int(y[(row + i / 2 * 8) * 8 + quad * 2 + i % 2]);
    for (u32 i = 0; i < p.n; i++) mma_s8(d, a, b);
    for (u32 i = 0; i < 4; i++) y[(row + i / 2 * 8) * 8 + quad * 2 + i % 2] = u32(d[i]);
}

// x: four 8x8 matrices. y[lane] = its words of them; mode 1: transposed.
KERNEL(test_ldmatrix, 32, TestParams) {
    SHARED_BYTES(bytes);
    u32 lane = threadIdx.x;
    Words4 row = load_once(p.x + lane * 4);
    *reinterpret_cast<Words4*>(bytes + lane * 16) = row;
    __syncwarp();
    u32 d[4];
    if (p.mode) {
        ldmatrix_transposed(d, bytes + lane * 16);
    } else {
        ldmatrix(d, bytes + lane * 16);
    }
    for (u32 i = 0; i < 4; i++) p.y[lane * 4 + i] = d[i];
}

const u32 STAGES = 3;
struct Stages {
    alignas(16) u32 of[STAGES][128 * 4];
};

// y[t] = sum of four words of each of n chunks; half the threads do not want theirs of the last. Each thread copies
// for another. mode 0 is right; 1 waits for one group too few, 2 for none.
KERNEL(test_pipeline, 128, TestParams) {
    SHARED(Stages, stages);
    u32 t = threadIdx.x, sum = 0;
    for (u32 chunk = 0; chunk < STAGES - 1; chunk++) {
        if (chunk < p.n) copy_async(&stages.of[chunk][t * 4], p.x + (chunk * 128 + t) * 4);
        copy_commit();
    }
    for (u32 chunk = 0; chunk < p.n; chunk++) {
        if (p.mode == 0) copy_wait<STAGES - 2>();
        if (p.mode == 1) copy_wait<STAGES - 1>();
        __syncthreads();
        u32 next = chunk + STAGES - 1;
        u32* stage = &stages.of[next % STAGES][t * 4];
        if (next < p.n) copy_async(stage, p.x + (next * 128 + t) * 4, next + 1 < p.n || t % 2);
        copy_commit();
        for (u32 i = 0; i < 4; i++) sum += stages.of[chunk % STAGES][(127 - t) * 4 + i];
    }
    p.y[t] = sum;
}

// The same with one stage. mode 0 is right; 1 lacks the barrier between reading it and starting to fill it anew.
KERNEL(test_refill, 128, TestParams) {
    SHARED(Stages, stages);
    u32 t = threadIdx.x, sum = 0;
    for (u32 chunk = 0; chunk < p.n; chunk++) {
        copy_async(&stages.of[0][t * 4], p.x + (chunk * 128 + t) * 4);
        copy_commit();
        __syncthreads();
        copy_wait<0>();
        __syncthreads();
        for (u32 i = 0; i < 4; i++) sum += stages.of[0][(127 - t) * 4 + i];
        if (p.mode == 0) __syncthreads();
    }
    p.y[t] = sum;
}

KERNEL(test_atomics, 256, TestParams) {
    u32 t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&p.y[0], 1);
    atomicAdd(reinterpret_cast<int*>(&p.y[1]), -2);
    atomicAdd(reinterpret_cast<float*>(&p.y[2]), 0.5f);
    atomicMax(&p.y[3], t);
    atomicMin(reinterpret_cast<int*>(&p.y[4]), -int(t));
    atomicOr(&p.y[5], 1u << t % 32);
    u32 seen = p.y[6];
    for (;;) {
        u32 old = atomicCAS(&p.y[6], seen, seen + 3);
        if (old == seen) break;
        seen = old;
    }
    p.y[8 + t] = atomicExch(&p.y[7], t);
    atomicAdd(reinterpret_cast<u64*>(p.y + 8 + gridDim.x * blockDim.x), 0x100000001ull);
    __threadfence();
}

// Threads from n on leave; the others meet. mode 1: only every second warp stays instead.
KERNEL(test_leave, 1024, TestParams) {
    SHARED(u32, count);
    u32 t = threadIdx.x;
    if (t == 0) count = 0;
    __syncthreads();
    if (p.mode ? t / WARP % 2 : t >= p.n) return;
    atomicAdd(&count, 1);
    u32 staying = u32(__syncthreads_count(1));
    if (p.mode) staying += __ballot_sync(EVERY_LANE, t & 1);
    __syncthreads();
    p.y[t] = count + (staying << 16);
}

// Votes, barriers with votes, and shuffles of parts of a warp.
KERNEL(test_votes, 64, TestParams) {
    u32 t = threadIdx.x, lane = t % WARP, y = t * 16;
    p.y[y] = __ballot_sync(EVERY_LANE, lane % 3 == 0);
    p.y[y + 1] = u32(__any_sync(EVERY_LANE, t == 40)) | u32(__all_sync(EVERY_LANE, t < 40)) << 1;
    p.y[y + 2] = u32(__syncthreads_or(t == 5)) | u32(__syncthreads_or(0)) << 1;
    p.y[y + 3] = u32(__syncthreads_and(t < 64)) | u32(__syncthreads_and(t != 5)) << 1;
    p.y[y + 4] = u32(__syncthreads_count(t % 4 == 1));
    p.y[y + 5] = __shfl_sync(EVERY_LANE, t, 3, 8);
    p.y[y + 6] = __shfl_up_sync(EVERY_LANE, t, 2, 16);
    p.y[y + 7] = __shfl_down_sync(EVERY_LANE, t, 2, 16);
    p.y[y + 8] = __shfl_xor_sync(EVERY_LANE, t, 5);
    u64 wide = __shfl_sync(EVERY_LANE, u64(t) << 32 | 7u, int(31 - lane));
    p.y[y + 9] = u32(wide >> 32) + u32(wide);
    // Halves of a warp part and go through different collectives.
    u32 mine = 0;
    if (lane < 16) {
        for (u32 i = 0; i < 3; i++) mine += __shfl_xor_sync(0xffffu, t, 1);
    } else {
        mine = __ballot_sync(0xffff0000u, lane & 1);
        __syncwarp(0xffff0000u);
    }
    p.y[y + 10] = mine;
    p.y[y + 11] = float_bits(warp_max(float(t % 13)));
}

// y[i] of x[i]: the words of host and device that have no other test.
KERNEL(test_words, 32, TestParams) {
    for (u32 i = threadIdx.x; i < p.n; i += blockDim.x) {
        u32 x = p.x[2 * i], w = p.x[2 * i + 1], *y = p.y + i * 19;
        u64 both = u64(w) << 32 | x;
        y[0] = u32(__clz(int(x)));
        y[1] = u32(__clzll(i64(both)));
        y[2] = u32(__popc(x));
        y[3] = u32(__ffs(int(x)));
        y[4] = __brev(x);
        y[5] = __umulhi(x, w);
        y[6] = u32(__umul64hi(both, both) >> 32);
        y[7] = __byte_perm(x, w, 0xb715);
        y[8] = u32(__dp4a(int(x), int(w), 5));
        y[9] = pack_bf16(bits_float(x), bits_float(w));
        y[10] = float_half(bits_float(x));
        y[11] = float_bits(half_float(u16(x)));
        y[12] = min(x, 5) + max(int(x), 5u);
        y[13] = float_bits(fmaf(bits_float(x), 1.5f, bits_float(w)));
        y[14] = pack_f16(bits_float(x), bits_float(w));
        float numbers[4];
        f8_floats(numbers, x);
        for (u32 j = 0; j < 4; j++) y[15 + j] = float_bits(numbers[j]);
    }
}

// Each mode is an error.
KERNEL(test_wrong, 128, TestParams) {
    SHARED_BYTES(bytes);
    SHARED(WarpSums, words);
    u32 t = threadIdx.x, a[4] = {}, b[2] = {};
    float d[4] = {};
    switch (p.mode) {
        case 0:  // One half meets where the other half never comes.
            if (t < 64) __syncthreads();
            else __shfl_sync(t < 96 ? EVERY_LANE : 1u << t % WARP | 2u, t, 0);
            break;
        case 1:
            if (t == 37) return;
            mma_bf16(d, a, b);
            break;
        case 2:
            __syncwarp(t == 9 ? 1u : EVERY_LANE);
            break;
        case 3:
            if (t < 32) __syncthreads();
            else __syncthreads_or(1);
            break;
        case 4: copy_async(bytes + 4 * t, p.x); break;
        case 5: copy_async(bytes, p.x + 1); break;
        case 6: load_once(p.x + 1); break;
        case 7:
            if (t == 0) reinterpret_cast<volatile u32*>(bytes)[p.n / 4] = 1;
            break;
        case 8:
            if (t == 0) reinterpret_cast<volatile float*>(words.of)[32] = 1.0f;
            break;
        case 9: ldmatrix(a, p.x); break;
        case 10: copy_async(bytes + p.n, p.x); break;
        case 11:
            if (t % WARP < 8) __ballot_sync(0xffffu, 1);
            else if (t % WARP < 16) __any_sync(0xffffu, 1);
            break;
        case 12: copy_async(words.of, p.x); break;
        case 13: __trap();
    }
    p.y[t] = float_bits(d[0] + words.of[0]) + a[0];
}
