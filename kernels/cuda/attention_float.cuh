// Attention over caches of f16 or f32, with f32 products one by one: as in `attention_matrix.cuh`, for caches that are kept
// for their accuracy.
//
// The floor is the rate of multiply-adds, of sixteen rows whether they are there or not: sixteen for each element of the
// caches that is read. What a chunk needs is loaded before it is used, not meanwhile, so that copies and products of a block
// add up and only those of different blocks overlap; a thread has up to eight pieces of sixteen bytes on their way.
#include "attention.cuh"

namespace attention_float {
using namespace attention;

const u32 ROWS = 16;
// Half of the block has half of the rows each, a thread a key or every 64th column.
const u32 OWN = ROWS / 2;

struct Shared {
    Tile tile;
    // What some row sees, and what every row does.
    Range needed, common;
    float highest[WARPS][OWN];
    float sums[WARPS][OWN];
    // Thread r's, of row r: of this chunk, of the segment at hand, and of those before it.
    float shrink[ROWS];
    float total[ROWS];
    float all_highest[ROWS], all_total[ROWS];
    float before[ROWS], added[ROWS];
    Range seen[ROWS];
    // Where rows come from or go to: nothing where there is none.
    const float* from[ROWS];
    float* to[ROWS];
    // Of keys that no row sees: `NOWHERE`.
    u32 places[CHUNK];
};
const u32 NOWHERE = 0xffffffff;

// Columns D of keys and V of values; of latents, with fewer of values, these are the first ones of keys. Columns of the largest
// heads are loaded a slice at a time.
template <u32 D, u32 V, bool HALF>
struct Block {
    static const u32 SLICE = D <= 256 ? D : 192;
    static const u32 SLICES = D / SLICE;
    // Rows of a matrix begin in different banks.
    static const u32 ROW = SLICE + 4;
    static const u32 COLUMNS = V / 64;
    static const u32 SLICE_COLUMNS = SLICE / 64;

    const AttentionParams& p;
    Shared& shared;
    float* queries;
    // Keys, then values.
    float* cells;
    float* weights;
    u32 warp, lane, half;
    // The thread's key in a chunk, and its first column.
    u32 own;
    u32 width;
    // In shared memory, where they take no registers.
    const Tile& tile;
    const Range& needed;
    const Range& common;
    float sums[OWN][COLUMNS];
    float all[OWN][COLUMNS];
    float highest[OWN];
    // Thread r's, of row r.
    float own_highest;

    SHARED_DEVICE Block(const AttentionParams& p, Shared& shared, u8* memory)
        : p(p), shared(shared), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), half(threadIdx.x / CHUNK),
          own(threadIdx.x % CHUNK), width(ceil_div(p.size, 4) * 4), tile(shared.tile), needed(shared.needed),
          common(shared.common) {
        queries = reinterpret_cast<float*>(memory);
        cells = queries + ROWS * D;
        weights = cells + CHUNK * ROW;
    }

    SHARED_DEVICE u32 row_of(u32 i) const { return OWN * half + i; }

    SHARED_DEVICE void begin() {
        for (u32 r = warp; r < ROWS; r += WARPS) {
            const float* from = shared.from[r];
            for (u32 c = lane; c < width; c += WARP) queries[r * D + c] = from && c < p.size ? from[c] : 0.0f;
        }
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) all[i][j] = 0.0f;
        }
        begin_segment();
    }

    SHARED_DEVICE void begin_segment() {
        own_highest = LOWEST;
        if (threadIdx.x < ROWS) shared.total[threadIdx.x] = 0.0f;
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            highest[i] = LOWEST;
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) sums[i][j] = 0.0f;
        }
    }

    // Loads a slice of the chunk's keys, or values, that some row sees; zeros for the others.
    SHARED_DEVICE void load(const void* cache, u32 slice) {
        u32 begin = slice * SLICE, end = min_u32(width, begin + SLICE);
        if (p.whole) {
            load_whole(static_cast<const u8*>(cache), begin, end);
            return;
        }
        for (u32 key = warp; key < CHUNK; key += WARPS) {
            bool seen = shared.places[key] != NOWHERE;
            u64 first = seen ? u64(shared.places[key]) * p.size : 0;
            for (u32 c = begin + lane; c < end; c += WARP) {
                float x = 0.0f;
                if (seen && c < p.size) {
                    x = HALF ? half_float(static_cast<const u16*>(cache)[first + c])
                             : static_cast<const float*>(cache)[first + c];
                }
                cells[key * ROW + c - begin] = x;
            }
        }
    }

    // The same by pieces of sixteen bytes, of which a thread has several on their way before it needs the first. Eight threads
    // have 32 columns, and store in banks of their own: of f16, where each stores twice, those of two keys.
    SHARED_DEVICE void load_whole(const u8* cache, u32 begin, u32 end) {
        const u32 ELEMENTS = HALF ? 8 : 4, NEAR = HALF ? 4 : 8, KEYS = THREADS / NEAR, STEPS = SLICE / 32;
        const u32 TOGETHER = CHUNK / KEYS * STEPS < 8 ? CHUNK / KEYS : 8 / STEPS;
        u32 column = threadIdx.x % NEAR * ELEMENTS, key = threadIdx.x / NEAR;
#pragma unroll 1
        for (; key < CHUNK; key += TOGETHER * KEYS) {
            u32 places[TOGETHER];
            Words4 words[TOGETHER][STEPS];
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) places[i] = shared.places[key + i * KEYS];
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) {
                const u8* from = cache + (u64(places[i]) * p.size + begin + column) * (16 / ELEMENTS);
#pragma unroll
                for (u32 j = 0; j < STEPS; j++) {
                    bool there = places[i] != NOWHERE && begin + column + j * 32 < end;
                    words[i][j] = load_if(from + j * 32 * (16 / ELEMENTS), there);
                }
            }
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) {
#pragma unroll
                for (u32 j = 0; j < STEPS; j++) {
                    float* to = cells + (key + i * KEYS) * ROW + column + j * 32;
                    if (begin + column + j * 32 < end) store_wide(to, words[i][j]);
                }
            }
        }
    }

    static SHARED_DEVICE void store_wide(float* to, const Words4& words) {
        float4* out = reinterpret_cast<float4*>(to);
        if (HALF) {
            float v[8];
#pragma unroll
            for (u32 i = 0; i < 4; i++) halves_floats(v[2 * i], v[2 * i + 1], words.v[i]);
            out[0] = {v[0], v[1], v[2], v[3]};
            out[1] = {v[4], v[5], v[6], v[7]};
        } else {
            out[0] = {bits_float(words.v[0]), bits_float(words.v[1]), bits_float(words.v[2]), bits_float(words.v[3])};
        }
    }

    // Adds a slice to the products of the thread's key.
    SHARED_DEVICE void multiply(float (&scores)[OWN], u32 slice) {
        u32 begin = slice * SLICE, end = min_u32(width, begin + SLICE);
        const float* key = cells + own * ROW;
        for (u32 c = begin; c < end; c += 4) {
            float4 k = *reinterpret_cast<const float4*>(key + c - begin);
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
                float4 q = *reinterpret_cast<const float4*>(queries + row_of(i) * D + c);
                scores[i] = fmaf(q.w, k.w, fmaf(q.z, k.z, fmaf(q.y, k.y, fmaf(q.x, k.x, scores[i]))));
            }
        }
    }

    // Scores of the thread's key, of its products.
    SHARED_DEVICE void score(float (&scores)[OWN], u32 start, bool partial) {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            bool seen = !partial || shared.seen[row_of(i)].has(start + own);
            float score = scores[i] * p.scale;
            if (p.softcap != 0.0f) score = p.softcap * tanh_of(score);
            scores[i] = seen ? score : -infinity();
            float most = warp_max(scores[i]);
            if (lane == 0) shared.highest[warp][i] = most;
        }
    }

    // The highest score of row `i` of a half so far.
    SHARED_DEVICE float highest_of(float most, u32 half, u32 i) const {
        return fmaxf(most, fmaxf(shared.highest[2 * half][i], shared.highest[2 * half + 1][i]));
    }

    // Turns scores into weights.
    SHARED_DEVICE void weigh(const float (&scores)[OWN]) {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            highest[i] = highest_of(highest[i], half, i);
            float weight = exact_exp(scores[i] - highest[i]);
            weights[row_of(i) * CHUNK + own] = weight;
            float sum = warp_sum(weight);
            if (lane == 0) shared.sums[warp][i] = sum;
        }
        if (threadIdx.x < ROWS) {
            float most = highest_of(own_highest, threadIdx.x / OWN, threadIdx.x % OWN);
            shared.shrink[threadIdx.x] = exact_exp(own_highest - most);
            own_highest = most;
        }
    }

    // After the weights and their sums are there.
    SHARED_DEVICE void shrink_sums() {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            float shrink = shared.shrink[row_of(i)];
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) sums[i][j] *= shrink;
        }
        if (threadIdx.x < ROWS) {
            u32 r = threadIdx.x, first = 2 * (r / OWN), i = r % OWN;
            shared.total[r] = fmaf(shared.total[r], shared.shrink[r], shared.sums[first][i] + shared.sums[first + 1][i]);
        }
    }

    // Adds the weighted values. In a chunk that some row sees a part of, those that it does not see are left out: a weight
    // of 0 does not hide a value that is not finite.
    template <bool PARTIAL, u32 FIRST>
    SHARED_DEVICE void add_values(u32 start) {
        // Of the slice whose first column of a thread is this.
        const u32 COUNT = COLUMNS - FIRST < SLICE_COLUMNS ? COLUMNS - FIRST : SLICE_COLUMNS;
        for (u32 key = 0; key < CHUNK; key += 4) {
            float v[4][COUNT];
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
#pragma unroll
                for (u32 j = 0; j < COUNT; j++) v[k][j] = cells[(key + k) * ROW + own + 64 * j];
            }
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
                float4 w = *reinterpret_cast<const float4*>(weights + row_of(i) * CHUNK + key);
                float weight[4] = {w.x, w.y, w.z, w.w};
                Range seen = {0, 0};
                if (PARTIAL) seen = shared.seen[row_of(i)];
#pragma unroll
                for (u32 k = 0; k < 4; k++) {
                    bool has = !PARTIAL || seen.has(start + key + k);
#pragma unroll
                    for (u32 j = 0; j < COUNT; j++) {
                        float& sum = sums[i][FIRST + j];
                        sum = has ? fmaf(weight[k], v[k][j], sum) : sum;
                    }
                }
            }
        }
    }

    // The values from the thread's column FIRST on, of which the first slice is there.
    template <u32 FIRST>
    SHARED_DEVICE void add_slices(u32 start, bool partial) {
        if (partial) {
            add_values<true, FIRST>(start);
        } else {
            add_values<false, FIRST>(start);
        }
        if constexpr (FIRST + SLICE_COLUMNS < COLUMNS) {
            __syncthreads();
            load(p.v_cache, FIRST / SLICE_COLUMNS + 1);
            __syncthreads();
            add_slices<FIRST + SLICE_COLUMNS>(start, partial);
        }
    }

    SHARED_DEVICE void leave_segment(u32 segment) {
        if (threadIdx.x < ROWS) {
            float* record = record_of(p, tile, threadIdx.x, segment);
            if (record) {
                record[0] = own_highest;
                record[1] = shared.total[threadIdx.x];
            }
            shared.to[threadIdx.x] = record ? record + 2 : nullptr;
        }
        __syncthreads();
        write(sums);
    }

    SHARED_DEVICE void fold_segment() {
        if (threadIdx.x < ROWS) {
            u32 r = threadIdx.x;
            Fold fold = fold_of(shared.all_highest[r], own_highest);
            shared.before[r] = fold.before;
            shared.added[r] = fold.added;
            shared.all_highest[r] = fold.highest;
            shared.all_total[r] = folded(shared.all_total[r], fold.before, shared.total[r], fold.added);
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            float before = shared.before[row_of(i)], added = shared.added[row_of(i)];
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) all[i][j] = folded(all[i][j], before, sums[i][j], added);
        }
    }

    SHARED_DEVICE void finish() {
        // Nobody reads the factors of the last segment any more.
        if (p.sinks) __syncthreads();
        if (threadIdx.x < ROWS) {
            u32 r = threadIdx.x;
            shared.to[r] = head_of(p, tile, p.out, p.out_stride, p.value_size, r);
            if (p.sinks) {
                float sink = p.sinks[query_head(p, tile, r)];
                shared.before[r] = join_sink(sink, shared.all_highest[r], shared.all_total[r]);
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            float total = shared.all_total[row_of(i)], before = p.sinks ? shared.before[row_of(i)] : 1.0f;
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) all[i][j] = output(all[i][j] * before, total);
        }
        write(all);
    }

    SHARED_DEVICE void write(const float (&from)[OWN][COLUMNS]) const {
#pragma unroll
        for (u32 i = 0; i < OWN; i++) {
            float* to = shared.to[row_of(i)];
            if (!to) continue;
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) {
                if (own + 64 * j < p.value_size) to[own + 64 * j] = from[i][j];
            }
        }
    }

    SHARED_DEVICE void run() {
        Tile found;
        if (!find_tile(p, ROWS, found)) return;
        if (threadIdx.x == 0) {
            Range first = seen_by(p, found, 0), last = seen_by(p, found, found.count - 1);
            shared.tile = found;
            shared.needed = {first.low, last.end};
            shared.common = {last.low, first.end};
        }
        if (threadIdx.x < ROWS) {
            shared.seen[threadIdx.x] = seen_by(p, found, threadIdx.x);
            shared.from[threadIdx.x] = head_of(p, found, p.q, p.q_stride, p.size, threadIdx.x);
            shared.all_highest[threadIdx.x] = LOWEST;
            shared.all_total[threadIdx.x] = 0.0f;
        }
        __syncthreads();
        begin();
        Chunks chunks = chunks_of(needed);
        for (; chunks.more(); chunks = chunks.next()) {
            u32 start = chunks.start();
            bool partial = start < common.low || start + CHUNK > common.end;
            if (threadIdx.x < CHUNK) {
                shared.places[own] = needed.has(start + own) ? key_place(p, tile, start + own) : NOWHERE;
            }
            __syncthreads();
            float scores[OWN] = {};
            for (u32 slice = 0; slice < SLICES; slice++) {
                if (slice > 0) __syncthreads();
                load(p.k_cache, slice);
                __syncthreads();
                multiply(scores, slice);
            }
            score(scores, start, partial);
            __syncthreads();
            weigh(scores);
            load(p.v_cache, 0);
            __syncthreads();
            shrink_sums();
            add_slices<0>(start, partial);
            if (!chunks.ends_segment()) continue;
            if (p.records) {
                leave_segment(chunks.segment());
            } else {
                fold_segment();
            }
            begin_segment();
        }
        if (!p.records) finish();
    }
};
}

// As many blocks as 164 KiB of shared memory hold, and at most four: 128 registers a thread with four, 168 with three.
#define ATTENTION(name, D, HALF, BLOCKS)                          \
    KERNEL_OF_BLOCKS(name, 128, BLOCKS, AttentionParams) {        \
        SHARED_BYTES(memory);                                     \
        SHARED(attention_float::Shared, shared);                  \
        attention_float::Block<D, D, HALF>(p, shared, memory).run(); \
    }
// Of latents, with two sums for each of eight columns in registers.
#define LATENT_ATTENTION(name, D, V, HALF)                           \
    KERNEL_OF_BLOCKS(name, 128, 2, AttentionParams) {                \
        SHARED_BYTES(memory);                                        \
        SHARED(attention_float::Shared, shared);                     \
        attention_float::Block<D, V, HALF>(p, shared, memory).run(); \
    }
