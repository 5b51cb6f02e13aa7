// Attention of many rows over caches of bf16 on a Hopper: `attention_matrix.cuh` with products of a warpgroup, which is a block.
// Products are of the same sixteen columns in the same order, maxima and sums of weights in the same tree, and so the bits
// are its bits where a device adds sixteen products the same way in both.
//
// Warp w has rows 16w.. of a tile and the scores of all keys of a chunk, so nothing is exchanged between warps: weights go
// from the scores' registers to the product with the values. Queries, keys and values lie in panels of 64 columns, a row a
// line. One block waits for copies while others of the multiprocessor compute: two of head 128 fit, three of
// head 64.
#include "attention.cuh"
#include "warpgroup.cuh"

namespace attention_warpgroup {
using namespace attention;

const u32 ROWS = 64;
const u32 PANEL_COLUMNS = 64;
const u32 PANEL_BYTES = CHUNK * SWIZZLED_LINE;
static_assert(ROWS == CHUNK, "queries lie as keys do");

struct Shared {
    Tile tile;
    // What some row sees, and what every row does.
    Range needed, common;
    Range seen[ROWS];
    // Where rows come from, and go to: nothing where there is none.
    const float* from[ROWS];
    float* to[ROWS];
    // Of the keys of this chunk and the next.
    u32 places[2][CHUNK];
};

#ifdef HAS_WARPGROUPS
// Columns D. Sizes as crates/cuda/src/ops/attention.rs knows them.
template <u32 D>
struct Block {
    static const u32 PANELS = D / PANEL_COLUMNS;
    static const u32 STEPS = CHUNK / 16;

    const AttentionParams& p;
    Shared& shared;
    u8* queries;
    u8* keys;
    u8* values;
    u32 warp, lane;
    // Columns: the size in whole sixteens.
    u32 width;
    // In shared memory, where they take no registers.
    const Tile& tile;
    const Range& needed;
    const Range& common;
    // Of a lane's two rows: of the segment at hand, and of those before it.
    float sums[PANELS][32];
    float all[PANELS][32];
    float highest[2], total[2], shrink[2];
    float all_highest[2], all_total[2];

    SHARED_DEVICE Block(const AttentionParams& p, Shared& shared, u8* memory)
        : p(p), shared(shared), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), width(ceil_div(p.size, 16) * 16),
          tile(shared.tile), needed(shared.needed), common(shared.common) {
        queries = memory + (SWIZZLED_BLOCK - shared_address(memory) % SWIZZLED_BLOCK) % SWIZZLED_BLOCK;
        keys = queries + PANELS * PANEL_BYTES;
        values = keys + PANELS * PANEL_BYTES;
    }

    // Where sixteen bytes of a row are, from column c on.
    static SHARED_DEVICE u32 place_of(u32 row, u32 c) {
        return c / PANEL_COLUMNS * PANEL_BYTES + swizzled(row, c % PANEL_COLUMNS / 8);
    }
    SHARED_DEVICE u32 row_of(u32 h) const { return 16 * warp + 8 * h + lane / 4; }

    SHARED_DEVICE void begin() {
#pragma unroll 4
        for (u32 i = threadIdx.x; i < ROWS * D / 2; i += THREADS) {
            u32 r = i / (D / 2), c = i % (D / 2) * 2;
            const float* from = shared.from[r];
            bool there = from && c < p.size;
            u32 pair = there ? pack_bf16(from[c], from[c + 1]) : 0;
            *reinterpret_cast<u32*>(queries + place_of(r, c) + c % 8 * 2) = pair;
            // Columns that no copy fills are multiplied, too.
            if (c >= width) *reinterpret_cast<u32*>(keys + place_of(r, c) + c % 8 * 2) = 0;
        }
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) {
#pragma unroll
            for (u32 i = 0; i < 32; i++) all[n][i] = 0.0f;
        }
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            all_highest[h] = LOWEST;
            all_total[h] = 0.0f;
        }
        begin_segment();
    }

    SHARED_DEVICE void begin_segment() {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            highest[h] = LOWEST;
            total[h] = 0.0f;
        }
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) {
#pragma unroll
            for (u32 i = 0; i < 32; i++) sums[n][i] = 0.0f;
        }
    }

    // Starts to copy those keys of the chunk at `start` that are in `range`; zeros for the others, which may be anything.
    SHARED_DEVICE void copy(u8* to, const void* cache, const u32* places, u32 start, Range range) const {
        const u16* cells = static_cast<const u16*>(cache);
        if (p.whole) {
            const u32 PARTS = D / 8;
            u32 c = threadIdx.x % PARTS * 8;
            if (c >= width) return;
#pragma unroll 4
            for (u32 key = threadIdx.x / PARTS; key < CHUNK; key += THREADS / PARTS) {
                bool wanted = range.has(start + key) && c < p.size;
                const u16* from = wanted ? cells + u64(places[key]) * p.size + c : cells;
                copy_async(to + place_of(key, c), from, wanted);
            }
            return;
        }
#pragma unroll 1
        for (u32 key = warp; key < CHUNK; key += WARPS) {
            bool seen = range.has(start + key);
            u64 first = seen ? u64(places[key]) * p.size : 0;
#pragma unroll 1
            for (u32 c = lane; c < width; c += WARP) {
                u16* at = reinterpret_cast<u16*>(to + place_of(key, c)) + c % 8;
                *at = seen && c < p.size ? cells[first + c] : 0;
            }
        }
    }

    // What was copied is there for products of the whole block.
    template <int LEFT>
    SHARED_DEVICE void arrive() const {
        copy_wait<LEFT>();
        shared_written();
        __syncthreads();
    }

    SHARED_DEVICE void score(float (&scores)[32]) const {
        u32 a = shared_address(queries), b = shared_address(keys);
        products_begin();
#pragma unroll
        for (u32 k = 0; k < D; k += 16) {
            u32 at = k / PANEL_COLUMNS * PANEL_BYTES + k % PANEL_COLUMNS * 2;
            multiply_bf16(scores, matrix_at(a + at, 0, SWIZZLED_BLOCK), matrix_at(b + at, 0, SWIZZLED_BLOCK), k > 0);
        }
        products_commit();
        products_wait<0>();
        products_hold(scores);
    }

    // Turns scores into weights, in the layout of products; those that a row does not see are without weight. Their sum
    // is of the rounded ones, so that the weights that are used add up to 1.
    SHARED_DEVICE void weigh(u32 (&weights)[STEPS * 4], float (&scores)[32], u32 start, bool partial) {
#pragma unroll
        for (u32 i = 0; i < 32; i++) scores[i] *= p.scale;
        if (p.softcap != 0.0f) {
#pragma unroll
            for (u32 i = 0; i < 32; i++) scores[i] = p.softcap * tanh_of(scores[i]);
        }
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            float most = highest[h], part[STEPS];
            if (partial) {
                Range seen = shared.seen[row_of(h)];
#pragma unroll
                for (u32 i = 0; i < 16; i++) {
                    float& score = scores[i / 2 * 4 + 2 * h + i % 2];
                    score = seen.has(start + i / 2 * 8 + lane % 4 * 2 + i % 2) ? score : -infinity();
                }
            }
            float own = LOWEST;
#pragma unroll
            for (u32 i = 0; i < 16; i++) own = fmaxf(own, scores[i / 2 * 4 + 2 * h + i % 2]);
            own = fmaxf(own, __shfl_xor_sync(EVERY_LANE, own, 1));
            own = fmaxf(own, __shfl_xor_sync(EVERY_LANE, own, 2));
            most = fmaxf(most, own);
            shrink[h] = exact_exp(highest[h] - most);
            highest[h] = most;
#pragma unroll
            for (u32 k = 0; k < STEPS; k++) {
                float two[2];
#pragma unroll
                for (u32 n = 0; n < 2; n++) {
                    const float* at = scores + (2 * k + n) * 4 + 2 * h;
                    u32 pair = pack_bf16(exact_exp(at[0] - most), exact_exp(at[1] - most));
                    weights[4 * k + 2 * n + h] = pair;
                    two[n] = bf16_float(u16(pair)) + bf16_float(u16(pair >> 16));
                }
                part[k] = two[0] + two[1];
                part[k] += __shfl_xor_sync(EVERY_LANE, part[k], 1);
                part[k] += __shfl_xor_sync(EVERY_LANE, part[k], 2);
            }
            total[h] = fmaf(total[h], shrink[h], (part[0] + part[1]) + (part[2] + part[3]));
        }
    }

    SHARED_DEVICE void shrink_sums() {
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) {
#pragma unroll
            for (u32 i = 0; i < 32; i++) sums[n][i] *= shrink[i / 2 % 2];
        }
    }

    // Starts to add the weighted values of a panel of columns.
    SHARED_DEVICE void multiply_values(float (&to)[32], const u32 (&weights)[STEPS * 4], u32 n) const {
#pragma unroll
        for (u32 k = 0; k < STEPS; k++) {
            u32 at = shared_address(values) + n * PANEL_BYTES + k * 16 * SWIZZLED_LINE;
            u32 a[4] = {weights[4 * k], weights[4 * k + 1], weights[4 * k + 2], weights[4 * k + 3]};
            multiply_bf16<1>(to, a, matrix_at(at, PANEL_BYTES, SWIZZLED_BLOCK), true);
        }
    }

    SHARED_DEVICE void add_values(u32 (&weights)[STEPS * 4]) {
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) products_hold(sums[n]);
        products_hold(weights);
        products_begin();
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) multiply_values(sums[n], weights, n);
        products_commit();
        products_wait<0>();
#pragma unroll
        for (u32 n = 0; n < PANELS; n++) products_hold(sums[n]);
        products_read(weights, p.reserved != 0, shared.places);
    }

    // Whether some value of the chunk is not finite.
    SHARED_DEVICE bool has_odd_values() const {
        bool odd = false;
#pragma unroll 1
        for (u32 key = warp; key < CHUNK; key += WARPS) {
            for (u32 c = 2 * lane; c < width; c += 2 * WARP) {
                u32 pair = *reinterpret_cast<const u32*>(values + place_of(key, c) + c % 8 * 2);
                odd = odd || (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
            }
        }
        return __syncthreads_or(odd);
    }

    // A weight of 0 does not hide a value that is not finite: tokens take turns, each with the values that it sees. Its
    // sums are those of tiles where the others' keys are not there.
    SHARED_DEVICE void add_values_in_turns(u32 (&weights)[STEPS * 4], const u32* places, u32 start) {
#pragma unroll 1
        for (u32 r = 0; r < tile.count;) {
            Range seen = shared.seen[r];
            copy(values, p.v_cache, places, start, seen);
            copy_commit();
            arrive<0>();
            bool keep[2] = {shared.seen[row_of(0)].end == seen.end, shared.seen[row_of(1)].end == seen.end};
#pragma unroll
            for (u32 n = 0; n < PANELS; n++) {
                float sum[32];
#pragma unroll
                for (u32 i = 0; i < 32; i++) sum[i] = sums[n][i];
                products_hold(sum);
                products_hold(weights);
                products_begin();
                multiply_values(sum, weights, n);
                products_commit();
                products_wait<0>();
                products_hold(sum);
                products_read(weights, p.reserved != 0, shared.places);
#pragma unroll
                for (u32 i = 0; i < 32; i++) sums[n][i] = keep[i / 2 % 2] ? sum[i] : sums[n][i];
            }
            __syncthreads();
            while (r < tile.count && shared.seen[r].end == seen.end) r++;
        }
    }

    SHARED_DEVICE void fold_segment() {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            Fold fold = fold_of(all_highest[h], highest[h]);
            all_highest[h] = fold.highest;
            all_total[h] = folded(all_total[h], fold.before, total[h], fold.added);
#pragma unroll
            for (u32 n = 0; n < PANELS; n++) {
#pragma unroll
                for (u32 i = 0; i < 16; i++) {
                    u32 at = i / 2 * 4 + 2 * h + i % 2;
                    all[n][at] = folded(all[n][at], fold.before, sums[n][at], fold.added);
                }
            }
        }
    }

    SHARED_DEVICE void finish() {
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            u32 r = row_of(h);
            float* to = shared.to[r];
            if (!to) continue;
            float before = p.sinks ? join_sink(p.sinks[query_head(p, tile, r)], all_highest[h], all_total[h]) : 1.0f;
#pragma unroll
            for (u32 i = 0; i < PANELS * 8; i++) {
                u32 column = i * 8 + lane % 4 * 2;
                if (column >= p.value_size) continue;
                const float* from = all[i / 8] + i % 8 * 4 + 2 * h;
                to[column] = output(from[0] * before, all_total[h]);
                to[column + 1] = output(from[1] * before, all_total[h]);
            }
        }
    }

    SHARED_DEVICE u32 key_of(Chunks chunks) const {
        u32 at = chunks.start() + threadIdx.x % CHUNK;
        return chunks.more() && needed.has(at) ? key_place(p, tile, at) : 0;
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
            u32 r = threadIdx.x;
            shared.seen[r] = seen_by(p, found, r);
            shared.from[r] = head_of(p, found, p.q, p.q_stride, p.size, r);
            shared.to[r] = head_of(p, found, p.out, p.out_stride, p.value_size, r);
        }
        __syncthreads();
        Chunks chunks = chunks_of(needed);
        if (!chunks.more()) return;
        u32 turn = 0;
        if (threadIdx.x < CHUNK) shared.places[turn][threadIdx.x] = key_of(chunks);
        begin();
        __syncthreads();
        copy(keys, p.k_cache, shared.places[turn], chunks.start(), needed);
        copy_commit();
        while (chunks.more()) {
            u32 start = chunks.start();
            bool partial = start < common.low || start + CHUNK > common.end;
            Chunks next = chunks.next();
            // The keys are there, and nobody reads the values before them any more.
            arrive<0>();
            copy(values, p.v_cache, shared.places[turn], start, needed);
            copy_commit();
            u32 next_place = key_of(next);
            float scores[32];
            score(scores);
            if (threadIdx.x < CHUNK) shared.places[turn ^ 1][threadIdx.x] = next_place;
            // Nobody reads the keys any more.
            __syncthreads();
            if (next.more()) copy(keys, p.k_cache, shared.places[turn ^ 1], next.start(), needed);
            copy_commit();
            u32 weights[STEPS * 4];
            weigh(weights, scores, start, partial);
            arrive<1>();
            shrink_sums();
            bool differ = partial && common.end != needed.end;
            if (differ && has_odd_values()) {
                add_values_in_turns(weights, shared.places[turn], start);
            } else {
                add_values(weights);
            }
            if (chunks.ends_segment()) {
                fold_segment();
                begin_segment();
            }
            chunks = next;
            turn ^= 1;
        }
        finish();
    }
};
#endif
}
