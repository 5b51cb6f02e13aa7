// What all threads of a block make together: as many warps as `of_warps` has words, which are free again on return. Four
// are read at a time: more would take registers from what is around.

// The highest of all threads'.
template <u32 WARPS>
SHARED_DEVICE u64 block_max(u64 x, u64 (&of_warps)[WARPS]) {
    for (u32 i = WARP / 2; i > 0; i /= 2) {
        u64 y = __shfl_xor_sync(EVERY_LANE, x, i);
        x = x > y ? x : y;
    }
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
#pragma unroll 4
    for (u32 i = 0; i < WARPS; i++) x = x > of_warps[i] ? x : of_warps[i];
    __syncthreads();
    return x;
}

// The sum of all threads up to this one, and of all.
template <u32 WARPS>
SHARED_DEVICE u64 block_scan(u64 x, u64 (&of_warps)[WARPS], u64& total) {
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (u32 i = 1; i < WARP; i *= 2) {
        u64 y = __shfl_up_sync(EVERY_LANE, x, i);
        if (lane >= i) x += y;
    }
    if (lane == WARP - 1) of_warps[warp] = x;
    __syncthreads();
    total = 0;
#pragma unroll 4
    for (u32 i = 0; i < WARPS; i++) {
        if (i < warp) x += of_warps[i];
        total += of_warps[i];
    }
    __syncthreads();
    return x;
}

// The same in each thread; its order is one tree for each warp, and then that of warps.
template <u32 WARPS>
SHARED_DEVICE float block_sum(float x, float (&of_warps)[WARPS]) {
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0.0f;
    for (u32 i = 0; i < WARPS; i++) x += of_warps[i];
    __syncthreads();
    return x;
}

// True in the one of `blocks` blocks that comes here last; it sees what the others wrote before. `ended` is 0 at first.
SHARED_DEVICE bool block_is_last(u32* ended, u32 blocks, u32& shared) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) shared = atomicAdd(ended, 1u) + 1 == blocks;
    __syncthreads();
    bool last = shared != 0;
    if (last) __threadfence();
    return last;
}
