// Log-probabilities and the next token, by the definition in crates/tensor/src/sampling.rs.
//
// A row is read in parts of PART tokens, a block each, so that one row keeps many processors busy. Three kernels:
//   sample_parts  the highest keys of a part, its sum of exponentials, its adjusted logits where the row has any
//   sample_weigh  block 0 reports the row: log-probabilities, and the token of rows that are not random. Of random rows
//                 with top-k or top-p, the others sum weights by bins of the exponent; who ends last finds the cut
//   sample_draw   sums what is kept of each part of random rows; who ends last draws
// Every row is read once: 4 bytes a token are the floor. Adjusted logits are written and are read in the logits' place
// from there on. Random rows are read once more, with top-k or top-p twice more, and then once by a single block for each
// of the cuts, unless the list of the first holds the second. More such passes are needed only where more than THREADS
// tokens share a bin. Dead rows, and other rows in kernels they do not need, cost the start of their blocks.
//
// Weights are integers, so atomic sums of them are exact in any order. The order of the sum of exponentials is that of
// threads and parts: it depends on the vocabulary alone.
#include "common.cuh"
#include "block.cuh"
#include "sampling.cuh"
#include "vector.cuh"

namespace sample_op {

const u32 THREADS = 512, WARPS = THREADS / WARP;
// Tokens of a part: four a thread. A row has at most THREADS parts (`record` of crates/cuda/src/ops/sample.rs).
const u32 PART = 4 * THREADS;
const u32 TOP = 20;
// Neighbouring threads whose highest key is compared with other groups'; their tokens.
const u32 GROUP = 8, GROUPS = THREADS / GROUP, GROUP_TOKENS = 4 * GROUP;
// Bins of the exponent, a thread each. Those below e^-27.73 weigh nothing; the last bin has them all.
const u32 BINS = THREADS;
const float BINS_PER_E = 18.4f;

// What is known of a part. 184 bytes (crates/cuda/src/ops/sample.rs).
struct Part {
    // The highest keys in order; 0 where there are fewer tokens.
    u64 top[TOP];
    // The highest after adjustment.
    u64 adjusted;
    // The weight that is kept.
    u64 kept;
    // Of e^(logit - highest); 0 where the highest is infinite.
    float sum;
    u32 reserved;
};

// What is known of a row. 6176 bytes.
struct Row {
    // Of each bin.
    u64 masses[BINS];
    u32 counts[BINS];
    // The lowest key that is kept.
    u64 cut;
    // The highest after adjustment.
    u64 top;
    float max;
    float log_sum;
    // Blocks that have ended.
    u32 weighed;
    u32 drawn;
};

}  // namespace sample_op

struct SampleKernelParams {
    const float* logits;
    const u32* sampling;
    const u32* adjust;
    const u32* masks;
    u32* ids;
    float* logprobs;
    u32* top_ids;
    float* top_logprobs;
    const u32* live;
    // Scratch memory: `[rows][parts]`, `[rows]` and `[rows][adjusted_stride]`.
    sample_op::Part* parts;
    sample_op::Row* state;
    float* adjusted;
    u32 rows;
    u32 vocab;
    u32 part_count;
    u32 logits_stride;
    u32 sampling_stride;
    u32 adjust_rows;
    u32 adjust_stride;
    u32 mask_rows;
    u32 masks_stride;
    u32 top_ids_stride;
    u32 top_logprobs_stride;
    u32 adjusted_stride;
};

namespace sample_op {

typedef SampleKernelParams Params;

SHARED_DEVICE const Sampling& sampling_of(const Params& p, u32 row) {
    return *reinterpret_cast<const Sampling*>(p.sampling + u64(row) * p.sampling_stride);
}
SHARED_DEVICE Part* parts_of(const Params& p, u32 row) { return p.parts + u64(row) * p.part_count; }
SHARED_DEVICE const float* logits_of(const Params& p, u32 row) { return p.logits + u64(row) * p.logits_stride; }

SHARED_DEVICE bool is_adjusted(const Sampling& s) { return s.mode <= RANDOM && (s.adjust_len > 0 || s.mask > 0); }
// The bits of the tokens that may be chosen; null where all may.
SHARED_DEVICE const u32* mask_of(const Params& p, const Sampling& s) {
    bool none = s.mode > RANDOM || s.mask == 0 || s.mask > p.mask_rows;
    return none ? nullptr : p.masks + u64(s.mask - 1) * p.masks_stride;
}
SHARED_DEVICE bool is_cut(const Sampling& s, u32 vocab) {
    return s.mode == RANDOM && ((s.top_k > 0 && s.top_k < vocab) || s.top_p < 1.0f);
}
// What a token is chosen by.
SHARED_DEVICE const float* chosen_by(const Params& p, const Sampling& s, u32 row) {
    return is_adjusted(s) ? p.adjusted + u64(row) * p.adjusted_stride : logits_of(p, row);
}

struct Weigher {
    float max;
    float inverse;
    SHARED_DEVICE Weigher(u64 top, const Sampling& s) : max(key_logit(top)), inverse(1.0f / s.temperature) {}
    SHARED_DEVICE u64 weight(float l) const { return ::weight(l, max, inverse); }
    // Of no lower a logit, no higher.
    SHARED_DEVICE u32 bin(float l) const {
        return u32(fminf(-exponent(l, max, inverse) * BINS_PER_E, float(BINS - 1)));
    }
    // The lowest code that a bin has, or would have: codes of lower bins are higher.
    SHARED_DEVICE u32 lowest(u32 b) const {
        u32 low = code_of(-infinity()), high = code_of(max);
        while (low < high) {
            u32 middle = low + (high - low) / 2;
            if (bin(logit_of(middle)) <= b) high = middle;
            else low = middle + 1;
        }
        return high;
    }
};

// Calls visit(id, logit) for the thread's tokens of a part.
template <class Visit>
SHARED_DEVICE void visit_part(const float* x, u32 part, u32 vocab, Visit visit) {
    u32 id = part * PART + 4 * threadIdx.x;
    if (id >= vocab) return;
    Floats4 a = load4(x + id, vocab - id);
    for (u32 j = 0; j < 4; j++) {
        if (id + j < vocab) visit(id + j, clean(a.v[j]));
    }
}
// Calls visit(key) for the thread's keys of a row that lie in low..=last. Four reads are under way at a time: one block
// has to draw what its processor can. Most tokens only pass by, so what is done with others is there once and not unrolled.
template <class Visit>
SHARED_DEVICE void visit_range(const float* x, u32 vocab, u64 low, u64 last, Visit visit) {
    const u32 AHEAD = 4;
    for (u32 from = 4 * threadIdx.x; from < vocab; from += AHEAD * PART) {
        Floats4 a[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; i++) {
            u32 id = from + i * PART;
            if (id < vocab) a[i] = load4(x + from + i * PART, vocab - id);
        }
        u32 inside = 0;
#pragma unroll
        for (u32 i = 0; i < 4 * AHEAD; i++) {
            u32 id = from + i / 4 * PART + i % 4;
            if (id < vocab && rank_key(clean(a[i / 4].v[i % 4]), id) - low <= last - low) inside |= 1u << i;
        }
        for (; inside; inside &= inside - 1) {
            u32 i = u32(__ffs(int(inside))) - 1, id = from + i / 4 * PART + i % 4;
            visit(rank_key(clean(x[id]), id));
        }
    }
}

SHARED_DEVICE u32 keys_above(const u64* keys, u32 count, u64 key) {
    u32 above = 0;
#pragma unroll 4
    for (u32 i = 0; i < count; i++) above += keys[i] > key;
    return above;
}

struct PartShared {
    float part[PART];
    u64 groups[GROUPS];
    // Of the groups with the TOP highest.
    u64 candidates[TOP * GROUP_TOKENS];
    u64 warps[WARPS];
    u64 highest;
    u64 least;
    float sums[WARPS];
    u32 count;
};

// Of `count` entries in ascending order of tokens, how many lie below `token`: all threads probe in each round.
SHARED_DEVICE u32 entries_below(const u32* entries, u32 stride, u32 count, u32 token) {
    u32 low = 0;
    while (count > 0) {
        u32 step = ceil_div(count, THREADS), at = threadIdx.x * step;
        u32 below = __syncthreads_count(at < count && entries[u64(low + at) * stride] < token);
        if (below == 0) break;
        u32 passed = (below - 1) * step + 1;
        low += passed;
        count = min_u32(step - 1, count - passed);
    }
    return low;
}

// Adjusts the thread's logits and writes them.
SHARED_DEVICE void adjust_part(const Params& p, const Sampling& s, u32 row, u32 part, Floats4& l, PartShared& shared) {
    u32 base = part * PART, id = base + 4 * threadIdx.x;
    u32 start = min_u32(s.adjust_start, p.adjust_rows), count = min_u32(s.adjust_len, p.adjust_rows - start);
    const u32* entries = p.adjust + u64(start) * p.adjust_stride;
    u32 first = entries_below(entries, p.adjust_stride, count, base);
    u32 end = entries_below(entries, p.adjust_stride, count, base + PART);
    for (u32 j = 0; j < 4; j++) shared.part[4 * threadIdx.x + j] = l.v[j];
    __syncthreads();
    for (u32 i = first + threadIdx.x; i < end; i += THREADS) {
        const u32* at = entries + u64(i) * p.adjust_stride;
        Adjust entry = {at[0], at[1], at[2], bits_float(at[3])};
        u32 place = entry.token - base;
        if (place < PART) shared.part[place] = adjusted(shared.part[place], entry, s);
    }
    __syncthreads();
    const u32* mask = mask_of(p, s);
    // The four share a word.
    u32 bits = mask && id < p.vocab ? mask[id / 32] >> id % 32 : ~0u;
    for (u32 j = 0; j < 4; j++) l.v[j] = bits >> j & 1 ? shared.part[4 * threadIdx.x + j] : -infinity();
    if (id < p.vocab) store4(p.adjusted + u64(row) * p.adjusted_stride + id, l, p.vocab - id);
}

struct Histogram {
    u32 counts[BINS];
    // Masses in pieces of a number of bits that their sums, too, fit a word.
    u32 pieces[4][BINS];
};
// Of at most 2^11 and 2^20 tokens: weights have 41 bits.
const u32 PART_BITS = 21, ROW_BITS = 12;

SHARED_DEVICE void empty(Histogram& h) {
    h.counts[threadIdx.x] = 0;
    for (u32 i = 0; i < 4; i++) h.pieces[i][threadIdx.x] = 0;
    __syncthreads();
}
template <u32 BITS>
SHARED_DEVICE void add(Histogram& h, u32 bin, u64 mass) {
    atomicAdd(&h.counts[bin], 1u);
    for (u32 i = 0; i * BITS < 41; i++) {
        u32 piece = u32(mass >> (i * BITS)) & ((1u << BITS) - 1);
        if (piece) atomicAdd(&h.pieces[i][bin], piece);
    }
}
template <u32 BITS>
SHARED_DEVICE u64 mass_of(const Histogram& h, u32 bin) {
    u64 mass = 0;
    for (u32 i = 0; i * BITS < 41; i++) mass += u64(h.pieces[i][bin]) << (i * BITS);
    return mass;
}

// A place in the ranking: in which bin (of a thread's own), what the bin has and what all above it have.
struct Place {
    u32 bin;
    u32 count;
    u64 above;
    u64 mass_above;
};

struct WeighShared {
    Histogram histogram;
    u64 list[THREADS];
    u64 ranked[THREADS];
    u64 warps[WARPS];
    Place place;
    u64 least;
    float sums[WARPS];
    u32 count;
    u32 last;
};

// Finds where a row's prefix ends that has some number of tokens and some weight.
struct Cutter {
    const float* x;
    const Row& row;
    Weigher weigher;
    u32 vocab;
    WeighShared& shared;
    // `ranked` has this many keys, from the highest of the row on.
    u32 complete;

    // The first bin by which `want` tokens and `want_mass` are reached; bins are in descending order of their keys. It stays
    // in shared memory, where it takes no registers, until the next is found.
    SHARED_DEVICE const Place& reached(u32 count, u64 mass, u32 want, u64 want_mass, u64 above, u64 mass_above) {
        u64 ignored;
        u64 n = above + block_scan(count, shared.warps, ignored);
        u64 m = mass_above + block_scan(mass, shared.warps, ignored);
        bool before = n - count >= want && m - mass >= want_mass;
        if (n >= want && m >= want_mass && !before) shared.place = {threadIdx.x, count, n - count, m - mass};
        __syncthreads();
        return shared.place;
    }

    // Ranks the keys of low..=last, at most THREADS.
    SHARED_DEVICE u32 rank(u64 low, u64 last) {
        if (threadIdx.x == 0) shared.count = 0;
        __syncthreads();
        visit_range(x, vocab, low, last, [&](u64 key) {
            u32 at = atomicAdd(&shared.count, 1u);
            if (at < THREADS) shared.list[at] = key;
        });
        __syncthreads();
        u32 count = min_u32(shared.count, THREADS);
        if (threadIdx.x < count) {
            u64 key = shared.list[threadIdx.x];
            shared.ranked[keys_above(shared.list, count, key)] = key;
        }
        __syncthreads();
        return count;
    }

    // The lowest key of the shortest prefix of `want` tokens and `want_mass`, and the prefix's mass.
    SHARED_DEVICE u64 cut(u32 want, u64 want_mass, u64& prefix) {
        u32 count = complete;
        u64 above = 0, mass_above = 0;
        if (complete == 0) {
            u32 own = threadIdx.x;
            const Place& at = reached(row.counts[own], row.masses[own], want, want_mass, 0, 0);
            prefix = at.mass_above;
            // From there on nothing weighs: it need not be cut.
            if (at.bin == BINS - 1) return 0;
            u64 low = u64(weigher.lowest(at.bin)) << 32, last = ~0ull;
            if (at.bin > 0) last = (u64(weigher.lowest(at.bin - 1)) << 32) - 1;
            bool whole = at.above + at.count <= THREADS;
            if (whole) {
                last = ~0ull;
            } else {
                while (at.count > THREADS && low < last) narrow(low, last, want, want_mass, at);
            }
            count = rank(low, last);
            if (whole) {
                complete = count;
            } else {
                above = at.above;
                mass_above = at.mass_above;
            }
        }
        bool mine = threadIdx.x < count;
        u64 key = mine ? shared.ranked[threadIdx.x] : 0, mass = mine ? weigher.weight(key_logit(key)) : 0;
        const Place& at = reached(mine, mass, want, want_mass, above, mass_above);
        key = shared.ranked[at.bin];
        prefix = at.mass_above + weigher.weight(key_logit(key));
        return key;
    }

    // Brings the keys low..=last, where `at` is, to one of up to BINS equal pieces, which it then is.
    SHARED_DEVICE void narrow(u64& low, u64& last, u32 want, u64 want_mass, const Place& at) {
        u32 shift = 0;
        while ((last - low) >> shift >= BINS) shift++;
        empty(shared.histogram);
        visit_range(x, vocab, low, last, [&](u64 key) {
            add<ROW_BITS>(shared.histogram, u32((last - key) >> shift), weigher.weight(key_logit(key)));
        });
        __syncthreads();
        u32 own = threadIdx.x;
        u64 mass = mass_of<ROW_BITS>(shared.histogram, own);
        const Place& piece = reached(shared.histogram.counts[own], mass, want, want_mass, at.above, at.mass_above);
        last -= u64(piece.bin) << shift;
        if ((last - low) >> shift > 0) low = last - ((1ull << shift) - 1);
    }
};

SHARED_DEVICE void report(const Params& p, const Sampling& s, u32 row, WeighShared& shared) {
    const Part* parts = parts_of(p, row);
    u32 own = threadIdx.x;
    bool mine = own < p.part_count;
    u64 first = mine ? parts[own].top[0] : 0;
    u64 highest = block_max(first, shared.warps);
    u64 top = block_max(mine ? parts[own].adjusted : 0, shared.warps);
    float max = key_logit(highest);
    float sum = mine && !is_infinite(max) ? parts[own].sum * exact_exp(key_logit(first) - max) : 0.0f;
    float log_sum = float(exact_ln(block_sum(sum, shared.sums)));
    // Where all are banned, the highest of the logits as they were: of those that a mask allows, if it allows any.
    bool banned = key_logit(top) == -infinity();
    u64 chosen = banned ? highest : top;
    const u32* mask = mask_of(p, s);
    if (banned && mask) {
        u64 allowed = 0;
        for (u32 id = own; id < p.vocab; id += THREADS) {
            u64 key = mask[id / 32] >> id % 32 & 1 ? rank_key(clean(logits_of(p, row)[id]), id) : 0;
            allowed = key > allowed ? key : allowed;
        }
        allowed = block_max(allowed, shared.warps);
        chosen = allowed ? allowed : chosen;
    }
    // No part whose first lies below the TOP highest firsts has one of the TOP highest.
    shared.list[own] = first;
    if (own == 0) {
        shared.least = 1;
        shared.count = 0;
    }
    __syncthreads();
    if (mine && keys_above(shared.list, p.part_count, first) == TOP - 1) shared.least = first;
    __syncthreads();
    for (u32 i = own; i < p.part_count * TOP; i += THREADS) {
        u64 key = parts[i / TOP].top[i % TOP];
        if (key >= shared.least) shared.ranked[atomicAdd(&shared.count, 1u)] = key;
    }
    __syncthreads();
    u32* ids = p.top_ids + u64(row) * p.top_ids_stride;
    float* logprobs = p.top_logprobs + u64(row) * p.top_logprobs_stride;
    if (own < shared.count) {
        u64 key = shared.ranked[own];
        u32 place = keys_above(shared.ranked, shared.count, key);
        if (place < TOP) {
            ids[place] = key_id(key);
            logprobs[place] = logprob(key_logit(key), max, log_sum);
        }
    } else if (own < TOP) {
        ids[own] = ~0u;
        logprobs[own] = -infinity();
    }
    if (own > 0) return;
    Row& state = p.state[row];
    state.top = top;
    state.max = max;
    state.log_sum = log_sum;
    // Random rows get another later.
    u32 id = s.mode > RANDOM ? s.target : key_id(chosen);
    p.ids[row] = id;
    p.logprobs[row] = logprob(clean(logits_of(p, row)[min_u32(id, p.vocab - 1)]), max, log_sum);
}

struct DrawShared {
    u64 warps[WARPS];
    u64 before;
    u32 part;
    u32 last;
};

// The weights of the thread's tokens of a part, 0 where they are not kept.
SHARED_DEVICE void kept(u64 (&masses)[4], const float* x, u32 part, u32 vocab, const Weigher& w, u64 cut, u64 least) {
    for (u32 j = 0; j < 4; j++) masses[j] = 0;
    visit_part(x, part, vocab, [&](u32 id, float l) {
        u64 mass = w.weight(l);
        if (rank_key(l, id) >= cut && mass >= least) masses[id % 4] = mass;
    });
}

}  // namespace sample_op

// Blocks of 512 threads: three a multiprocessor have 40 registers a thread, two have 64.
KERNEL_OF_BLOCKS(sample_parts, 512, 3, SampleKernelParams) {
    using namespace sample_op;
    SHARED(PartShared, shared);
    u32 part = blockIdx.x, row = blockIdx.y;
    if (row >= live_rows(p.live, p.rows)) return;
    const Sampling& s = sampling_of(p, row);
    Part& out = parts_of(p, row)[part];
    Row& state = p.state[row];
    // The kernels that follow add to these.
    if (is_cut(s, p.vocab)) {
        for (u32 i = part * THREADS + threadIdx.x; i < BINS; i += p.part_count * THREADS) {
            state.masses[i] = 0;
            state.counts[i] = 0;
        }
    }
    if (part == 0 && threadIdx.x == 0) {
        state.cut = 0;
        state.weighed = 0;
        state.drawn = 0;
    }
    u32 first = part * PART + 4 * threadIdx.x, tokens = first < p.vocab ? min_u32(p.vocab - first, 4) : 0;
    Floats4 l;
    visit_part(logits_of(p, row), part, p.vocab, [&](u32 id, float logit) { l.v[id % 4] = logit; });
    // Made anew each time: kept, the four take eight registers.
    auto key_of = [&](u32 j) -> u64 { return j < tokens ? rank_key(l.v[j], first + j) : 0; };
    auto best_of_four = [&]() {
        u64 best = 0;
        for (u32 j = 0; j < 4; j++) best = key_of(j) > best ? key_of(j) : best;
        return best;
    };
    u64 best = best_of_four();
    // No group whose highest key lies below the TOP highest of groups has one of the TOP highest.
    for (u32 i = 1; i < GROUP; i *= 2) {
        u64 other = __shfl_xor_sync(EVERY_LANE, best, i);
        best = best > other ? best : other;
    }
    if (threadIdx.x % GROUP == 0) shared.groups[threadIdx.x / GROUP] = best;
    if (threadIdx.x == 0) {
        shared.least = 1;
        shared.count = 0;
    }
    __syncthreads();
    if (threadIdx.x < GROUPS) {
        u64 key = shared.groups[threadIdx.x];
        u32 above = keys_above(shared.groups, GROUPS, key);
        if (key && above == 0) shared.highest = key;
        if (key && above == TOP - 1) shared.least = key;
    }
    __syncthreads();
    u64 highest = shared.highest;
    float max = key_logit(highest), sum = 0.0f;
    for (u32 j = 0; j < 4; j++) {
        if (key_of(j) >= shared.least) shared.candidates[atomicAdd(&shared.count, 1u)] = key_of(j);
        if (j < tokens && !is_infinite(max)) sum += exact_exp(l.v[j] - max);
    }
    // Candidates are all there when it returns.
    sum = block_sum(sum, shared.sums);
    for (u32 i = threadIdx.x; i < shared.count; i += THREADS) {
        u64 key = shared.candidates[i];
        u32 place = keys_above(shared.candidates, shared.count, key);
        if (place < TOP) out.top[place] = key;
    }
    if (threadIdx.x < TOP && threadIdx.x >= shared.count) out.top[threadIdx.x] = 0;
    u64 top = highest;
    if (is_adjusted(s)) {
        adjust_part(p, s, row, part, l, shared);
        top = block_max(best_of_four(), shared.warps);
    }
    if (threadIdx.x == 0) {
        out.adjusted = top;
        out.sum = sum;
    }
}

KERNEL_OF_BLOCKS(sample_weigh, 512, 2, SampleKernelParams) {
    using namespace sample_op;
    SHARED(WeighShared, shared);
    u32 row = blockIdx.y;
    if (row >= live_rows(p.live, p.rows)) return;
    const Sampling& s = sampling_of(p, row);
    if (blockIdx.x == 0) {
        report(p, s, row, shared);
        return;
    }
    if (!is_cut(s, p.vocab)) return;
    u64 top = block_max(threadIdx.x < p.part_count ? parts_of(p, row)[threadIdx.x].adjusted : 0, shared.warps);
    if (key_logit(top) == -infinity()) return;
    Row& state = p.state[row];
    Weigher weigher(top, s);
    const float* x = chosen_by(p, s, row);
    empty(shared.histogram);
    visit_part(x, blockIdx.x - 1, p.vocab, [&](u32, float l) {
        add<PART_BITS>(shared.histogram, weigher.bin(l), weigher.weight(l));
    });
    __syncthreads();
    u32 own = threadIdx.x, count = shared.histogram.counts[own];
    u64 mass = mass_of<PART_BITS>(shared.histogram, own), total;
    if (count) atomicAdd(&state.counts[own], count);
    if (mass) atomicAdd(&state.masses[own], mass);
    if (!block_is_last(&state.weighed, p.part_count, shared.last)) return;
    Cutter cutter = {x, state, weigher, p.vocab, shared, 0};
    block_scan(state.masses[own], shared.warps, total);
    // A loop for the sake of the code's size: first top-k, then top-p of what that keeps.
#pragma unroll 1
    for (u32 step = 0; step < 2; step++) {
        bool by_count = step == 0;
        if (by_count ? s.top_k == 0 || s.top_k >= p.vocab : s.top_p >= 1.0f) continue;
        u64 want_mass = by_count ? 0 : top_p_mass(total, s.top_p);
        u64 key = cutter.cut(by_count ? s.top_k : 1, want_mass, total);
        if (own == 0 && key > state.cut) state.cut = key;
    }
}

KERNEL_OF_BLOCKS(sample_draw, 512, 3, SampleKernelParams) {
    using namespace sample_op;
    SHARED(DrawShared, shared);
    u32 row = blockIdx.y, own = threadIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    const Sampling& s = sampling_of(p, row);
    if (s.mode != RANDOM) return;
    Row& state = p.state[row];
    if (key_logit(state.top) == -infinity()) return;
    Part* parts = parts_of(p, row);
    const float* x = chosen_by(p, s, row);
    Weigher weigher(state.top, s);
    u64 cut = state.cut, least = fixed_point(unit_clamped(s.min_p)), masses[4], total;
    kept(masses, x, blockIdx.x, p.vocab, weigher, cut, least);
    block_scan(masses[0] + masses[1] + masses[2] + masses[3], shared.warps, total);
    if (own == 0) parts[blockIdx.x].kept = total;
    if (!block_is_last(&state.drawn, p.part_count, shared.last)) return;
    // The part whose running sum first exceeds the number, then the token there.
    u64 mass = own < p.part_count ? parts[own].kept : 0, sum = block_scan(mass, shared.warps, total);
    u64 number = __umul64hi(random_bits(s), total);
    if (sum > number && sum - mass <= number) {
        shared.part = own;
        shared.before = sum - mass;
    }
    __syncthreads();
    u32 part = shared.part;
    kept(masses, x, part, p.vocab, weigher, cut, least);
    mass = masses[0] + masses[1] + masses[2] + masses[3];
    sum = shared.before + block_scan(mass, shared.warps, total);
    if (sum <= number || sum - mass > number) return;
    u32 j = 0;
    for (sum -= mass; j < 3; j++) {
        sum += masses[j];
        if (sum > number) break;
    }
    u32 id = part * PART + 4 * own + j;
    p.ids[row] = id;
    p.logprobs[row] = logprob(clean(logits_of(p, row)[id]), state.max, state.log_sum);
}
