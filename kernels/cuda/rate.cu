// What matrix units can do at best: products of registers with themselves. For measurements.
#include "common.cuh"

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
