// What matrix units can do at best: products of registers with themselves. For measurements.
#include "common.cuh"
#include "warpgroup.cuh"

struct RateParams {
    float* out;
    u32 rounds;
    u32 reserved;
};

namespace rate {
const u32 THREADS = 256;
// Products that do not wait for each other.
const u32 CHAINS = 8;
}

KERNEL(rate_bf16, 256, RateParams) {
    float sums[rate::CHAINS][4] = {};
    u32 a[4], b[2];
    for (u32 i = 0; i < 4; i++) a[i] = pack_bf16(float(threadIdx.x % 7), float(i));
    for (u32 i = 0; i < 2; i++) b[i] = pack_bf16(float(threadIdx.x % 5), float(i));
    for (u32 round = 0; round < p.rounds; round++) {
#pragma unroll
        for (u32 chain = 0; chain < rate::CHAINS; chain++) mma_bf16(sums[chain], a, b);
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 chain = 0; chain < rate::CHAINS; chain++) {
        for (u32 i = 0; i < 4; i++) sum += sums[chain][i];
    }
    p.out[blockIdx.x * rate::THREADS + threadIdx.x] = sum;
}

#ifdef HAS_WARPGROUPS
// The same of warpgroups, of which a block has two: 64 rows from registers by 128 columns from shared memory, four products
// a round.
KERNEL(rate_bf16_warpgroup, 256, RateParams) {
    SHARED_BYTES(memory);
    u8* columns = memory + (SWIZZLED_BLOCK - shared_address(memory) % SWIZZLED_BLOCK) % SWIZZLED_BLOCK;
    for (u32 i = threadIdx.x; i < 128 * SWIZZLED_LINE / 4; i += rate::THREADS) {
        reinterpret_cast<u32*>(columns)[i] = pack_bf16(float(i % 5), 1.0f);
    }
    shared_written();
    __syncthreads();
    float sums[64] = {};
    u32 a[4];
    for (u32 i = 0; i < 4; i++) a[i] = pack_bf16(float(threadIdx.x % 7), float(i));
    products_hold(sums);
    for (u32 round = 0; round < p.rounds; round++) {
        products_begin();
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            multiply_bf16<0>(sums, a, matrix_at(shared_address(columns) + 32 * k, 0, SWIZZLED_BLOCK), true);
        }
        products_commit();
        products_wait<1>();
    }
    products_wait<0>();
    products_hold(sums);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < 64; i++) sum += sums[i];
    p.out[blockIdx.x * rate::THREADS + threadIdx.x] = sum;
}
#endif
