// Experts of each row, and pairs in the order of experts and then of rows.
//
// A warp chooses those of a row: each lane has every 32nd expert's key in registers and the best of them; the best of all
// is taken k times. What a row gets depends on it alone. Then the stable sort: of each expert pairs before and of it are
// counted, and its own put in their places. Pairs are read 128 at a time, so that a lane's are neighbours, and ballots say
// how many of the expert come before one: no order of threads is seen.
//
//   route_few     one block for a few rows: a warp each, then an expert each
//   route_choose  a warp a row, for as many experts as it is named for
//   route_sort    a block an expert, of which each warp has a run of pairs, and one block for the list of hits
//
// With 128 experts of which a row takes 8: a token is one launch, some 500 operations of a warp to choose and four experts'
// eight pairs for each warp to sort. 8192 tokens choose in some 4 million operations of warps, over all processors, and
// sort in 129 blocks that read the 256 KiB of pairs twice from the L2 cache.
#include "common.cuh"

struct RouteParams {
    float* weights;
    u32* places;
    // The row of each place.
    u32* list;
    u32* offsets;
    u32* hits;
    const float* logits;
    const float* bias;
    const u32* live;
    // Scratch memory: the expert of each pair.
    u32* chosen;
    u32 rows;
    u32 experts;
    u32 per_token;
    u32 logits_stride;
    u32 sigmoid;
    u32 renormalise;
    float scale;
    // Groups of experts, how many of them are kept, and whether those with the highest sum of two; 0 groups: all are kept.
    u32 groups;
    u32 kept;
    u32 two_highest;
};

namespace route_op {

typedef RouteParams Params;

const u32 THREADS = 256, WARPS = THREADS / WARP;
const u32 SORT_THREADS = 512, SORT_WARPS = SORT_THREADS / WARP;
const u32 MOST_EXPERTS = 2048;
const u32 MOST_GROUPS = 64;
// Weights are divided by no less.
const float LEAST = 1e-20f;
// Pairs that a warp reads at a time.
const u32 STEP = 4 * WARP;

// Codes are ordered as numbers are; what is none is the least, and 0 is below all.
SHARED_DEVICE u32 code_of(float x) {
    u32 bits = float_bits(x != x ? -infinity() : x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Of softmax not divided yet.
SHARED_DEVICE float score_of(const Params& p, float logit, float most) {
    return p.sigmoid ? 1.0f / (1.0f + exact_exp(-logit)) : exact_exp(logit - most);
}

SHARED_DEVICE float number_of(u32 code) { return bits_float(code >> 31 ? code & 0x7fffffffu : ~code); }

// The two highest codes.
struct TwoHighest {
    u32 most, second;
    SHARED_DEVICE void add(u32 code) {
        second = max_u32(second, min_u32(most, code));
        most = max_u32(most, code);
    }
};

// Takes the experts of other groups than the best from the choice: a warp. A lane has the score of every 32nd group.
template <int N>
SHARED_DEVICE void keep_groups(const Params& p, u32 (&code)[N]) {
    u32 lane = threadIdx.x % WARP, size = p.experts / p.groups;
    u32 scores[MOST_GROUPS / WARP] = {};
    for (u32 group = 0; group < p.groups; group++) {
        TwoHighest best = {0, 0};
#pragma unroll
        for (int i = 0; i < N; i++) {
            if ((i * WARP + lane) / size == group) best.add(code[i]);
        }
        for (u32 i = WARP / 2; i > 0; i /= 2) {
            u32 most = __shfl_xor_sync(EVERY_LANE, best.most, i), second = __shfl_xor_sync(EVERY_LANE, best.second, i);
            best.add(most);
            best.add(second);
        }
        u32 score = best.most;
        if (p.two_highest && size > 1) score = code_of(number_of(best.most) + number_of(best.second));
#pragma unroll
        for (u32 i = 0; i < MOST_GROUPS / WARP; i++) {
            if (group == i * WARP + lane) scores[i] = score;
        }
    }
    u32 kept[MOST_GROUPS / WARP];
#pragma unroll
    for (u32 i = 0; i < MOST_GROUPS / WARP; i++) {
        u32 rank = 0, own = i * WARP + lane;
        for (u32 other = 0; other < p.groups; other++) {
            u32 score = 0;
#pragma unroll
            for (u32 j = 0; j < MOST_GROUPS / WARP; j++) {
                u32 of_lane = __shfl_sync(EVERY_LANE, scores[j], int(other % WARP));
                if (other / WARP == j) score = of_lane;
            }
            rank += score > scores[i] || (score == scores[i] && other < own);
        }
        kept[i] = __ballot_sync(EVERY_LANE, own < p.groups && rank < p.kept);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        u32 group = (i * WARP + lane) / size;
        u32 lanes = 0;
#pragma unroll
        for (u32 j = 0; j < MOST_GROUPS / WARP; j++) {
            if (group / WARP == j) lanes = kept[j];
        }
        if (!(lanes >> group % WARP & 1)) code[i] = 0;
    }
}

// A warp; a lane has at most N experts.
template <int N>
SHARED_DEVICE void choose_of(const Params& p, u32 row) {
    u32 lane = threadIdx.x % WARP;
    const float* logits = p.logits + u64(row) * p.logits_stride;
    float logit[N], most = -infinity(), sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        u32 expert = i * WARP + lane;
        logit[i] = expert < p.experts ? logits[expert] : -infinity();
        most = fmaxf(most, logit[i]);
    }
    most = warp_max(most);
    bool by_score = p.sigmoid || p.bias || p.two_highest;
    u32 code[N];
    if (!p.sigmoid) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i * WARP + lane < p.experts) sum += exact_exp(logit[i] - most);
        }
        sum = warp_sum(sum);
    }
    // Keys, of which 0 is none.
#pragma unroll
    for (int i = 0; i < N; i++) {
        u32 expert = i * WARP + lane;
        code[i] = 0;
        if (expert < p.experts) {
            float key = logit[i];
            if (by_score) {
                key = score_of(p, key, most);
                if (sum > 0.0f) key /= sum;
                if (p.bias) key += p.bias[expert];
            }
            code[i] = code_of(key);
        }
    }
    if (p.groups) keep_groups<N>(p, code);
    u64 first = u64(row) * p.per_token;
    float chosen_sum = 0.0f;
    for (u32 j = 0; j < p.per_token; j++) {
        u64 best = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            // Of equal keys the first.
            u64 key = u64(code[i]) << 32 | ~(i * WARP + lane);
            best = key > best ? key : best;
        }
        for (u32 i = WARP / 2; i > 0; i /= 2) {
            u64 other = __shfl_xor_sync(EVERY_LANE, best, i);
            best = other > best ? other : best;
        }
        u32 expert = ~u32(best);
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (i * WARP + lane == expert) code[i] = 0;
        }
        float score = score_of(p, logits[expert], most);
        chosen_sum += score;
        if (lane == 0) {
            p.chosen[first + j] = expert;
            p.weights[first + j] = score;
        }
    }
    float divisor = p.renormalise ? fmaxf(chosen_sum, LEAST) : p.sigmoid ? 1.0f : sum;
    __syncwarp();
    for (u32 j = lane; j < p.per_token; j += WARP) p.weights[first + j] = p.weights[first + j] / divisor * p.scale;
}

SHARED_DEVICE void choose(const Params& p, u32 row) {
    if (p.experts <= 4 * WARP) choose_of<4>(p, row);
    else if (p.experts <= 16 * WARP) choose_of<16>(p, row);
    else choose_of<MOST_EXPERTS / WARP>(p, row);
}
template <int N>
SHARED_DEVICE void choose_row(const Params& p) {
    u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row < live_rows(p.live, p.rows)) choose_of<N>(p, row);
}

// Pairs of lower experts and of this one among `from..to`, in all lanes.
struct Counts {
    u32 lower;
    u32 same;
};
SHARED_DEVICE Counts count(const Params& p, u32 from, u32 to, u32 expert) {
    Counts d = {0, 0};
#pragma unroll 4
    for (u32 pair = from + threadIdx.x % WARP; pair < to; pair += WARP) {
        u32 other = p.chosen[pair];
        d.lower += other < expert;
        d.same += other == expert;
    }
    for (u32 i = WARP / 2; i > 0; i /= 2) {
        d.lower += __shfl_xor_sync(EVERY_LANE, d.lower, i);
        d.same += __shfl_xor_sync(EVERY_LANE, d.same, i);
    }
    return d;
}

// Gives the expert's pairs among `from..to` their places, which begin at `place`.
SHARED_DEVICE void put(const Params& p, u32 from, u32 to, u32 expert, u32 place) {
    u32 lane = threadIdx.x % WARP;
#pragma unroll 2
    for (u32 start = from; start < to; start += STEP) {
        u32 own = 0, before = place;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 pair = start + 4 * lane + i;
            bool is = pair < to && p.chosen[pair] == expert;
            own |= u32(is) << i;
            u32 of_lanes = __ballot_sync(EVERY_LANE, is);
            before += __popc(of_lanes & ((1u << lane) - 1));
            place += __popc(of_lanes);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (own >> i & 1) {
                u32 pair = start + 4 * lane + i;
                p.places[pair] = before;
                p.list[before] = pair / p.per_token;
                before++;
            }
        }
    }
}

// The list of experts that have pairs: a warp.
SHARED_DEVICE void list_hits(const Params& p, const u32 (&has)[MOST_EXPERTS]) {
    u32 lane = threadIdx.x % WARP, hits = 0;
    for (u32 start = 0; start < p.experts; start += WARP) {
        u32 expert = start + lane;
        bool is = expert < p.experts && has[expert];
        u32 of_lanes = __ballot_sync(EVERY_LANE, is);
        if (is) p.hits[1 + hits + __popc(of_lanes & ((1u << lane) - 1))] = expert;
        hits += __popc(of_lanes);
    }
    if (lane == 0) p.hits[0] = hits;
}

struct Flags {
    u32 has[MOST_EXPERTS];
};
struct OfWarps {
    Counts counts[SORT_WARPS];
};

}

using namespace route_op;

KERNEL_OF_BLOCKS(route_few, 256, 1, RouteParams) {
    SHARED(Flags, flags);
    u32 warp = threadIdx.x / WARP, rows = live_rows(p.live, p.rows), pairs = rows * p.per_token;
    for (u32 row = warp; row < rows; row += WARPS) choose(p, row);
    __syncthreads();
    for (u32 expert = warp; expert < p.experts; expert += WARPS) {
        Counts counts = count(p, 0, pairs, expert);
        put(p, 0, pairs, expert, counts.lower);
        if (threadIdx.x % WARP == 0) {
            p.offsets[expert] = counts.lower;
            flags.has[expert] = counts.same;
        }
    }
    if (threadIdx.x == 0) p.offsets[p.experts] = pairs;
    __syncthreads();
    if (warp == 0) list_hits(p, flags.has);
}

KERNEL(route_choose_128, 256, RouteParams) { choose_row<4>(p); }
KERNEL(route_choose_512, 256, RouteParams) { choose_row<16>(p); }
KERNEL_OF_BLOCKS(route_choose_2048, 256, 1, RouteParams) { choose_row<64>(p); }

KERNEL_OF_BLOCKS(route_sort, 512, 2, RouteParams) {
    u32 expert = blockIdx.x, warp = threadIdx.x / WARP, pairs = live_rows(p.live, p.rows) * p.per_token;
    if (expert == p.experts) {
        SHARED(Flags, flags);
        for (u32 i = threadIdx.x; i < p.experts; i += SORT_THREADS) flags.has[i] = 0;
        __syncthreads();
        // Whoever writes writes the same.
        for (u32 pair = threadIdx.x; pair < pairs; pair += SORT_THREADS) flags.has[p.chosen[pair]] = 1;
        __syncthreads();
        if (warp == 0) list_hits(p, flags.has);
        if (threadIdx.x == 0) p.offsets[p.experts] = pairs;
        return;
    }
    SHARED(OfWarps, of_warps);
    u32 run = ceil_div(ceil_div(pairs, STEP), SORT_WARPS) * STEP;
    u32 from = min_u32(warp * run, pairs), to = min_u32(from + run, pairs);
    Counts counts = count(p, from, to, expert);
    if (threadIdx.x % WARP == 0) of_warps.counts[warp] = counts;
    __syncthreads();
    u32 lower = 0, before = 0;
    for (u32 i = 0; i < SORT_WARPS; i++) {
        lower += of_warps.counts[i].lower;
        if (i < warp) before += of_warps.counts[i].same;
    }
    if (threadIdx.x == 0) p.offsets[expert] = lower;
    put(p, from, to, expert, lower + before);
}
