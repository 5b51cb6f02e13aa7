// Combines the segments that blocks of `attention` left: a block a token row, a query head and up to 256 elements.
#include "attention.cuh"

namespace attention_merge_op {
using namespace attention;

// What the row sees, of the sequence that has it. Each warp looks for itself.
SHARED_DEVICE bool find_row(const AttentionParams& p, u32 row, Range& seen) {
    u32 entries = live_rows(p.live, p.sequences), lane = threadIdx.x % WARP;
    for (u32 begin = 0; begin < entries; begin += WARP) {
        const u32* seq = p.seqs + u64(min_u32(begin + lane, entries - 1)) * p.seqs_stride;
        u32 at = row - seq[0], rows = seq[1], context = seq[2];
        bool has = begin + lane < entries && at < rows && rows <= context;
        u32 lanes = __ballot_sync(EVERY_LANE, has);
        if (!lanes) continue;
        seen = seen_before(p, __shfl_sync(EVERY_LANE, context - rows + at + 1, __ffs(int(lanes)) - 1));
        return true;
    }
    return false;
}
}

KERNEL(attention_merge, 256, AttentionParams) {
    using namespace attention_merge_op;
    u32 row = blockIdx.x, element = blockIdx.z * blockDim.x + threadIdx.x, lane = threadIdx.x % WARP;
    Range seen;
    if (!find_row(p, row, seen)) return;
    u32 count = min_u32((seen.end - 1) / SEGMENT - seen.low / SEGMENT + 1, p.slots);
    u32 length = p.value_size + 2;
    const float* record = records_of(p, row, blockIdx.y);
    float all_highest = LOWEST, total = 0.0f, sum = 0.0f;
    for (u32 begin = 0; begin < count; begin += WARP) {
        u32 here = min_u32(WARP, count - begin);
        // All that the thread needs of these segments is asked for at once.
        const float* from = record + u64(begin) * length + 2 + element;
        float values[WARP];
#pragma unroll
        for (u32 i = 0; i < WARP; i++) values[i] = i < here && element < p.value_size ? from[u64(i) * length] : 0.0f;
        // A lane's segment: what is before it has a maximum that needs no order, so the factors of 32 are found at once.
        bool mine = begin + lane < count;
        float highest = mine ? record[u64(begin + lane) * length] : LOWEST;
        float most = highest;
        for (u32 step = 1; step < WARP; step *= 2) {
            float lower = __shfl_up_sync(EVERY_LANE, most, step);
            if (lane >= step) most = fmaxf(lower, most);
        }
        most = fmaxf(all_highest, most);
        float before = __shfl_up_sync(EVERY_LANE, most, 1);
        Fold fold = fold_of(lane == 0 ? all_highest : before, highest);
        float weights = mine ? record[u64(begin + lane) * length + 1] : 0.0f;
        all_highest = __shfl_sync(EVERY_LANE, most, int(WARP) - 1);
#pragma unroll
        for (u32 i = 0; i < WARP; i++) {
            if (i >= here) break;
            float a = __shfl_sync(EVERY_LANE, fold.before, int(i));
            float b = __shfl_sync(EVERY_LANE, fold.added, int(i));
            float w = __shfl_sync(EVERY_LANE, weights, int(i));
            total = folded(total, a, w, b);
            sum = folded(sum, a, values[i], b);
        }
    }
    if (p.sinks) sum *= join_sink(p.sinks[blockIdx.y], all_highest, total);
    if (element < p.value_size) p.out[u64(row) * p.out_stride + u64(blockIdx.y) * p.value_size + element] = output(sum, total);
}
