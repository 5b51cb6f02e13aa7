// out = the sum of what several ranks have, added in their order: a thread four elements.
#include "common.cuh"
#include "vector.cuh"

struct SumRanksParams {
    float* out;
    // Of each rank `count` elements, one rank after the other.
    const float* parts;
    u32 count;
    u32 ranks;
};

namespace sum_ranks_op {
const u32 THREADS = 256;
}

KERNEL(sum_ranks, 256, SumRanksParams) {
    u32 first = 4 * (blockIdx.x * sum_ranks_op::THREADS + threadIdx.x);
    if (first >= p.count) return;
    u32 left = p.count - first;
    Floats4 sum = load4(p.parts + first, left);
    for (u32 rank = 1; rank < p.ranks; rank++) {
        Floats4 part = load4(p.parts + u64(rank) * p.count + first, left);
        for (u32 j = 0; j < 4; j++) sum.v[j] += part.v[j];
    }
    store4(p.out + first, sum, left);
}
