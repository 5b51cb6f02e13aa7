// Attention over caches of bf16, of eight bits, or bytes with scales: both products in matrix units, queries and weights rounded to bf16.
//
// Four warps have a tile. Of a chunk, warp w computes the scores of keys 16w to 16w + 15 for all rows and keeps them in
// registers; what warps exchange in shared memory is the rows' maxima, the weights, and their sums. Then each has every
// fourth sixteen columns of the product with the values. Keys and values have one tile of shared memory each: the values
// of a chunk come while its scores are computed, the next keys while the values are multiplied, and the blocks of a
// multiprocessor (five of head 128 on an H100, narrow) fill what gaps are left.
//
// The floor of few rows is the bytes of the caches at the memory's rate: a wait is for a copy, and 16 rows of matrix
// products are idle time. The floor of many is the matrix units' rate; shared memory allows about half of it.
#include "attention.cuh"

namespace attention_mma {
using namespace attention;

template <u32 M>
struct Shared {
    Tile tile;
    // What some row sees, and what every row does.
    Range needed, common;
    // By warp: of its sixteen keys.
    float highest[WARPS][M];
    float sums[WARPS][M];
    float before[M], added[M];
    // Of the segment at hand, and of those before it: thread r's, of row r.
    float total[M];
    float all_highest[M], all_total[M];
    Range seen[M];
    // Where rows come from or go to: nothing where there is none.
    const float* from[M];
    float* to[M];
    // Of the keys of this chunk and the next.
    u32 places[2][CHUNK];
};

// Weights of a row, in elements: the rest keeps rows of a matrix in different banks, as do those below.
const u32 WEIGHT_ROW = CHUNK + 8;

// Columns D of keys and V of values, rows M, and the type of caches. Fewer columns of values: these are the first ones of keys,
// which stay until they are multiplied. Sizes as crates/cuda/src/ops/attention.rs knows them.
template <u32 D, u32 V, u32 M, u32 KV>
struct Block {
    static const bool LATENT = V < D;
    static const u32 ROW = D + 8;
    static const u32 STRIPS = M / 16;
    // Sixteen columns each.
    static const u32 PAIRS = V / 64;
    static const bool BYTES = KV != KV_BF16, SCALED = KV == KV_I8;
    static const u32 CELL = BYTES ? 1 : 2;
    // Bytes of a head as it is copied; those of latents lie in the second half of the row that they become.
    static const u32 COPY_ROW = LATENT ? 2 * ROW : D * CELL + 16;

    const AttentionParams& p;
    Shared<M>& shared;
    u16* queries;
    u16* weights;
    // As matrix units take them; with bytes, keys and values in turn.
    u16* keys;
    u16* values;
    u8* copied_keys;
    u8* copied_values;
    u32 warp, lane;
    // Columns of keys and of values: their size in whole sixteens.
    u32 width, value_width;
    // In shared memory, where they take no registers.
    const Tile& tile;
    const Range& needed;
    const Range& common;
    float sums[STRIPS][PAIRS][2][4];
    float all[STRIPS][PAIRS][2][4];
    float highest[STRIPS][2];
    float shrink[STRIPS][2];
    // Thread r's, of row r.
    float own_highest, own_shrink;

    SHARED_DEVICE Block(const AttentionParams& p, Shared<M>& shared, u8* memory)
        : p(p), shared(shared), warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), width(ceil_div(p.size, 16) * 16),
          value_width(ceil_div(p.value_size, 16) * 16), tile(shared.tile), needed(shared.needed), common(shared.common) {
        queries = reinterpret_cast<u16*>(memory);
        weights = queries + M * ROW;
        keys = weights + M * WEIGHT_ROW;
        u8* after = reinterpret_cast<u8*>(keys + CHUNK * ROW);
        values = BYTES || LATENT ? keys : reinterpret_cast<u16*>(after);
        u8* rows = reinterpret_cast<u8*>(keys);
        copied_keys = !BYTES ? rows : LATENT ? rows + D : after;
        copied_values = LATENT ? copied_keys : BYTES ? after + CHUNK * COPY_ROW : reinterpret_cast<u8*>(values);
    }

    // The row of element 2h or 2h + 1 of a lane in a strip of sixteen.
    SHARED_DEVICE u32 row_of(u32 strip, u32 h) const { return 16 * strip + 8 * h + lane / 4; }
    // The first of two neighbouring columns that a lane has in a tile of eight of sixteen.
    SHARED_DEVICE u32 column_of(u32 pair, u32 n) const { return (WARPS * pair + warp) * 16 + 8 * n + 2 * (lane % 4); }
    // Products are of all strips: they are done before a branch would be.
    SHARED_DEVICE bool strip_has_rows(u32 strip) const { return STRIPS == 1 || 16 * strip < tile.count; }

    SHARED_DEVICE void begin() {
        // A few loads are under way at a time.
#pragma unroll 4
        for (u32 i = threadIdx.x; i < M * D / 2; i += THREADS) {
            u32 r = i / (D / 2), c = i % (D / 2) * 2;
            const float* from = shared.from[r];
            bool there = from && c < p.size;
            *reinterpret_cast<u32*>(queries + r * ROW + c) = there ? pack_bf16(from[c], from[c + 1]) : 0;
        }
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
#pragma unroll
            for (u32 i = 0; i < PAIRS * 8; i++) all[m][i / 8][i / 4 % 2][i % 4] = 0.0f;
        }
        begin_segment();
    }

    SHARED_DEVICE void begin_segment() {
        own_highest = LOWEST;
        if (threadIdx.x < M) shared.total[threadIdx.x] = 0.0f;
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
            highest[m][0] = highest[m][1] = LOWEST;
#pragma unroll
            for (u32 i = 0; i < PAIRS * 8; i++) sums[m][i / 8][i / 4 % 2][i % 4] = 0.0f;
        }
    }

    // Starts to copy those keys of the chunk at `start` that are in `range`; zeros for the others, which may be anything.
    SHARED_DEVICE void copy(u8* to, const void* cache, const u32* places, u32 start, Range range) const {
        const u8* cells = static_cast<const u8*>(cache);
        u32 bytes = p.size * CELL;
        if (p.whole) {
            const u32 PARTS = D * CELL / 16;
            const bool EVEN = THREADS % PARTS == 0;
            u32 part = threadIdx.x % PARTS;
            if (EVEN && 16 * part >= width * CELL) return;
#pragma unroll 4
            for (u32 i = 0; i < PARTS * CHUNK / THREADS; i++) {
                u32 key = threadIdx.x / PARTS + i * (THREADS / PARTS);
                if (!EVEN) {
                    key = (threadIdx.x + i * THREADS) / PARTS;
                    part = (threadIdx.x + i * THREADS) % PARTS;
                    if (16 * part >= width * CELL) continue;
                }
                bool wanted = range.has(start + key) && 16 * part < bytes;
                const u8* from = wanted ? cells + u64(places[key]) * bytes + 16 * part : cells;
                copy_async(to + key * COPY_ROW + 16 * part, from, wanted);
            }
            return;
        }
#pragma unroll 1
        for (u32 key = warp; key < CHUNK; key += WARPS) {
            bool seen = range.has(start + key);
            u64 first = seen ? u64(places[key]) * p.size : 0;
#pragma unroll 1
            for (u32 c = lane; c < width; c += WARP) {
                bool wanted = seen && c < p.size;
                if (BYTES) {
                    to[key * COPY_ROW + c] = wanted ? cells[first + c] : 0;
                } else {
                    const u16* halves = static_cast<const u16*>(cache);
                    reinterpret_cast<u16*>(to)[key * ROW + c] = wanted ? halves[first + c] : 0;
                }
            }
        }
    }

    // Brings a thread's key, or value, from bytes to bf16.
    SHARED_DEVICE void widen(u16* to, const u8* from, float scale, bool seen) const {
        u32 key = threadIdx.x % CHUNK;
        for (u32 c = 16 * (threadIdx.x / CHUNK); c < width; c += 16 * (THREADS / CHUNK)) {
            Words4 bytes = *reinterpret_cast<const Words4*>(from + key * COPY_ROW + c);
            Words4 wide[2];
            if (SCALED) widen_i8(wide, bytes, scale, seen);
            else widen_f8(wide, bytes, seen);
            Words4* at = reinterpret_cast<Words4*>(to + key * ROW + c);
            at[0] = wide[0];
            at[1] = wide[1];
        }
    }

    // Brings the warp's sixteen keys, of latents, from bytes to bf16 where they lie: sixteen bytes a lane at a time, in order.
    // The first n parts of a row become what lies before its part n + 1, so none is overwritten before it is read.
    SHARED_DEVICE void widen_latents() const {
        const u32 PARTS = D / 16, TOGETHER = 3;
        u8* rows = copied_keys + 16 * warp * COPY_ROW;
        u16* wide_rows = keys + 16 * warp * ROW;
#pragma unroll 1
        for (u32 first = 0; first < 16 * PARTS; first += TOGETHER * WARP) {
            Words4 bytes[TOGETHER];
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) {
                u32 part = first + i * WARP + lane, key = part / PARTS, c = part % PARTS * 16;
                if (c < width) bytes[i] = *reinterpret_cast<const Words4*>(rows + key * COPY_ROW + c);
            }
            __syncwarp();
#pragma unroll
            for (u32 i = 0; i < TOGETHER; i++) {
                u32 part = first + i * WARP + lane, key = part / PARTS, c = part % PARTS * 16;
                if (c >= width) continue;
                Words4 wide[2];
                widen_f8(wide, bytes[i], true);
                Words4* at = reinterpret_cast<Words4*>(wide_rows + key * ROW + c);
                at[0] = wide[0];
                at[1] = wide[1];
            }
            __syncwarp();
        }
    }

    // Sixteen signed bytes.
    SHARED_DEVICE void widen_i8(Words4 (&wide)[2], const Words4& bytes, float scale, bool seen) const {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 turned = bytes.v[i] ^ 0x80808080u;
            wide[i / 2].v[i % 2 * 2] = seen ? kv::bf16_pair(turned, kv::FIRST_PAIR, scale) : 0;
            wide[i / 2].v[i % 2 * 2 + 1] = seen ? kv::bf16_pair(turned, kv::SECOND_PAIR, scale) : 0;
        }
    }

    // Sixteen floats of eight bits.
    SHARED_DEVICE void widen_f8(Words4 (&wide)[2], const Words4& bytes, bool seen) const {
        u32 nans = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            wide[i / 2].v[i % 2 * 2] = seen ? kv::f8_pair(bytes.v[i], kv::FIRST_F8) : 0;
            wide[i / 2].v[i % 2 * 2 + 1] = seen ? kv::f8_pair(bytes.v[i], kv::SECOND_F8) : 0;
            nans |= kv::f8_nans(bytes.v[i]);
        }
        // There are none, but for a model gone wrong.
        if (!seen || nans == 0) return;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            nans = kv::f8_nans(bytes.v[i]);
            wide[i / 2].v[i % 2 * 2] |= kv::f8_nan_pair(nans, kv::FIRST_F8);
            wide[i / 2].v[i % 2 * 2 + 1] |= kv::f8_nan_pair(nans, kv::SECOND_F8);
        }
    }

    // Scores of the warp's sixteen keys, in the layout of products; those that a row does not see are without weight.
    SHARED_DEVICE void score(float (&scores)[STRIPS][2][4], u32 start, bool partial) {
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
#pragma unroll
            for (u32 i = 0; i < 8; i++) scores[m][i / 4][i % 4] = 0.0f;
        }
        const u16* key = keys + (16 * warp + lane / 16 * 8 + lane % 8) * ROW + lane / 8 % 2 * 8;
        const u16* query = queries + lane % 16 * ROW + lane / 16 * 8;
#pragma unroll 2
        for (u32 k = 0; k < width; k += 16) {
            u32 b[4];
            ldmatrix(b, key + k);
            u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (u32 m = 0; m < STRIPS; m++) {
                u32 a[4];
                ldmatrix(a, query + 16 * m * ROW + k);
                mma_bf16(scores[m][0], a, first);
                mma_bf16(scores[m][1], a, second);
            }
        }
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
            if (!strip_has_rows(m)) continue;
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                float most = LOWEST;
#pragma unroll
                for (u32 i = 0; i < 4; i++) scores[m][i / 2][2 * h + i % 2] *= p.scale;
                if (p.softcap != 0.0f) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        float& score = scores[m][i / 2][2 * h + i % 2];
                        score = p.softcap * tanh_of(score);
                    }
                }
                if (partial) {
                    Range seen = shared.seen[row_of(m, h)];
#pragma unroll
                    for (u32 i = 0; i < 4; i++) {
                        u32 at = start + 16 * warp + 8 * (i / 2) + 2 * (lane % 4) + i % 2;
                        float& score = scores[m][i / 2][2 * h + i % 2];
                        score = seen.has(at) ? score : -infinity();
                    }
                }
#pragma unroll
                for (u32 i = 0; i < 4; i++) most = fmaxf(most, scores[m][i / 2][2 * h + i % 2]);
                most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, 1));
                most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, 2));
                if (lane % 4 == 0) shared.highest[warp][row_of(m, h)] = most;
            }
        }
    }

    SHARED_DEVICE float highest_of(float most, u32 r) const {
#pragma unroll
        for (u32 w = 0; w < WARPS; w++) most = fmaxf(most, shared.highest[w][r]);
        return most;
    }

    // Turns scores into weights. Their sum is of the rounded ones, so that the weights that are used add up to 1.
    SHARED_DEVICE void weigh(const float (&scores)[STRIPS][2][4]) {
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
            if (!strip_has_rows(m)) continue;
#pragma unroll
            for (u32 h = 0; h < 2; h++) {
                u32 r = row_of(m, h);
                float most = highest_of(highest[m][h], r), sums[2];
                shrink[m][h] = exact_exp(highest[m][h] - most);
                highest[m][h] = most;
#pragma unroll
                for (u32 n = 0; n < 2; n++) {
                    u32 pair = pack_bf16(exact_exp(scores[m][n][2 * h] - most), exact_exp(scores[m][n][2 * h + 1] - most));
                    *reinterpret_cast<u32*>(weights + r * WEIGHT_ROW + 16 * warp + 8 * n + 2 * (lane % 4)) = pair;
                    sums[n] = bf16_float(u16(pair)) + bf16_float(u16(pair >> 16));
                }
                float sum = sums[0] + sums[1];
                sum += __shfl_xor_sync(EVERY_LANE, sum, 1);
                sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
                if (lane % 4 == 0) shared.sums[warp][r] = sum;
            }
        }
        if (threadIdx.x < M) {
            float most = highest_of(own_highest, threadIdx.x);
            own_shrink = exact_exp(own_highest - most);
            own_highest = most;
        }
    }

    // After the weights and their sums are there.
    SHARED_DEVICE void shrink_sums() {
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
            if (!strip_has_rows(m)) continue;
#pragma unroll
            for (u32 i = 0; i < PAIRS * 8; i++) sums[m][i / 8][i / 4 % 2][i % 4] *= shrink[m][i / 2 % 2];
        }
        if (threadIdx.x < M) {
            u32 r = threadIdx.x;
            float sum = (shared.sums[0][r] + shared.sums[1][r]) + (shared.sums[2][r] + shared.sums[3][r]);
            shared.total[r] = fmaf(shared.total[r], own_shrink, sum);
        }
    }

    // Adds the weighted values; with ONE_TOKEN, to rows of the query before `end` alone.
    template <bool ONE_TOKEN>
    SHARED_DEVICE void add_values(u32 end) {
        const u16* weight = weights + lane % 16 * WEIGHT_ROW + lane / 16 * 8;
        const u16* value = values + lane % 16 * ROW + lane / 16 * 8;
        bool keep[STRIPS][2];
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
#pragma unroll
            for (u32 h = 0; h < 2; h++) keep[m][h] = !ONE_TOKEN || shared.seen[row_of(m, h)].end == end;
        }
        // Turns are rare.
#pragma unroll (ONE_TOKEN ? 1 : CHUNK / 16)
        for (u32 k = 0; k < CHUNK; k += 16) {
            u32 a[STRIPS][4];
#pragma unroll
            for (u32 m = 0; m < STRIPS; m++) ldmatrix(a[m], weight + 16 * m * WEIGHT_ROW + k);
#pragma unroll
            for (u32 pair = 0; pair < PAIRS; pair++) {
                u32 column = (WARPS * pair + warp) * 16;
                if (column >= value_width) continue;
                u32 b[4];
                ldmatrix_transposed(b, value + k * ROW + column);
#pragma unroll
                for (u32 n = 0; n < 2; n++) {
                    u32 half[2] = {b[2 * n], b[2 * n + 1]};
#pragma unroll
                    for (u32 m = 0; m < STRIPS; m++) {
                        float (&to)[4] = sums[m][pair][n];
                        float sum[4] = {to[0], to[1], to[2], to[3]};
                        mma_bf16(sum, a[m], half);
#pragma unroll
                        for (u32 i = 0; i < 4; i++) to[i] = keep[m][i / 2] ? sum[i] : to[i];
                    }
                }
            }
        }
    }

    // Whether some value of the chunk is not finite.
    SHARED_DEVICE bool has_odd_values() const {
        bool odd = false;
#pragma unroll 1
        for (u32 key = warp; key < CHUNK; key += WARPS) {
            for (u32 c = 2 * lane; c < value_width; c += 2 * WARP) {
                u32 pair = *reinterpret_cast<const u32*>(values + key * ROW + c);
                odd = odd || (pair & 0x7f80u) == 0x7f80u || (pair & 0x7f800000u) == 0x7f800000u;
            }
        }
        return __syncthreads_or(odd);
    }

    // A weight of 0 does not hide a value that is not finite: tokens take turns, each with the values that it sees. Its
    // sums are those of tiles where the others' keys are not there.
    SHARED_DEVICE void add_values_in_turns(const u32* places, u32 start, float scale) {
#pragma unroll 1
        for (u32 r = 0; r < tile.count;) {
            Range seen = shared.seen[r];
            if (BYTES && !LATENT) {
                widen(values, copied_values, scale, seen.has(start + threadIdx.x % CHUNK));
            } else {
                copy(copied_values, p.v_cache, places, start, seen);
                copy_commit();
                copy_wait<0>();
            }
            __syncthreads();
            if (BYTES && LATENT) {
                widen_latents();
                __syncthreads();
            }
            add_values<true>(seen.end);
            __syncthreads();
            while (r < tile.count && shared.seen[r].end == seen.end) r++;
        }
    }

    SHARED_DEVICE void leave_segment(u32 segment) {
        if (threadIdx.x < M) {
            float* record = record_of(p, tile, threadIdx.x, segment);
            if (record) {
                record[0] = own_highest;
                record[1] = shared.total[threadIdx.x];
            }
            shared.to[threadIdx.x] = record ? record + 2 : nullptr;
        }
        __syncthreads();
        each_row([&](u32 m, u32 h, u32 r) { write(shared.to[r], m, h, sums); });
    }

    SHARED_DEVICE void fold_segment() {
        if (threadIdx.x < M) {
            u32 r = threadIdx.x;
            Fold fold = fold_of(shared.all_highest[r], own_highest);
            shared.before[r] = fold.before;
            shared.added[r] = fold.added;
            shared.all_highest[r] = fold.highest;
            shared.all_total[r] = folded(shared.all_total[r], fold.before, shared.total[r], fold.added);
        }
        __syncthreads();
        each_row([&](u32 m, u32 h, u32 r) {
            float before = shared.before[r], added = shared.added[r];
#pragma unroll
            for (u32 i = 0; i < PAIRS * 4; i++) {
                float& to = all[m][i / 4][i / 2 % 2][2 * h + i % 2];
                to = folded(to, before, sums[m][i / 4][i / 2 % 2][2 * h + i % 2], added);
            }
        });
    }

    SHARED_DEVICE void finish() {
        // Nobody reads the factors of the last segment any more.
        if (p.sinks) __syncthreads();
        if (threadIdx.x < M) {
            u32 r = threadIdx.x;
            shared.to[r] = head_of(p, tile, p.out, p.out_stride, p.value_size, r);
            if (p.sinks) {
                float sink = p.sinks[query_head(p, tile, r)];
                shared.before[r] = join_sink(sink, shared.all_highest[r], shared.all_total[r]);
            }
        }
        __syncthreads();
        each_row([&](u32 m, u32 h, u32 r) {
            float total = shared.all_total[r], before = p.sinks ? shared.before[r] : 1.0f;
#pragma unroll
            for (u32 i = 0; i < PAIRS * 4; i++) {
                float& to = all[m][i / 4][i / 2 % 2][2 * h + i % 2];
                to = output(to * before, total);
            }
            write(shared.to[r], m, h, all);
        });
    }

    template <class F>
    SHARED_DEVICE void each_row(F f) {
#pragma unroll
        for (u32 m = 0; m < STRIPS; m++) {
            if (!strip_has_rows(m)) continue;
#pragma unroll
            for (u32 h = 0; h < 2; h++) f(m, h, row_of(m, h));
        }
    }

    SHARED_DEVICE void write(float* to, u32 m, u32 h, const float (&from)[STRIPS][PAIRS][2][4]) const {
        if (!to) return;
#pragma unroll
        for (u32 i = 0; i < PAIRS * 2; i++) {
            u32 column = column_of(i / 2, i % 2);
            if (column >= p.value_size) continue;
            to[column] = from[m][i / 2][i % 2][2 * h];
            to[column + 1] = from[m][i / 2][i % 2][2 * h + 1];
        }
    }

    // A thread's key of a chunk: where it is, and its scales.
    struct Key {
        u32 place;
        float k_scale, v_scale;
    };
    SHARED_DEVICE Key key_of(Chunks chunks) const {
        u32 at = chunks.start() + threadIdx.x % CHUNK;
        Key key = {0, 0.0f, 0.0f};
        if (!chunks.more() || !needed.has(at)) return key;
        key.place = key_place(p, tile, at);
        if (SCALED) {
            key.k_scale = p.k_scales[key.place];
            key.v_scale = p.v_scales[key.place];
        }
        return key;
    }

    SHARED_DEVICE void run() {
        Tile found;
        if (!find_tile(p, M, found)) return;
        if (threadIdx.x == 0) {
            Range first = seen_by(p, found, 0), last = seen_by(p, found, found.count - 1);
            shared.tile = found;
            shared.needed = {first.low, last.end};
            shared.common = {last.low, first.end};
        }
        if (threadIdx.x < M) {
            u32 r = threadIdx.x;
            shared.seen[r] = seen_by(p, found, r);
            shared.from[r] = head_of(p, found, p.q, p.q_stride, p.size, r);
            shared.all_highest[r] = LOWEST;
            shared.all_total[r] = 0.0f;
        }
        __syncthreads();
        Chunks chunks = chunks_of(needed);
        if (!chunks.more()) return;
        Key key = key_of(chunks);
        u32 turn = 0;
        if (threadIdx.x < CHUNK) shared.places[turn][threadIdx.x] = key.place;
        begin();
        __syncthreads();
        copy(copied_keys, p.k_cache, shared.places[turn], chunks.start(), needed);
        copy_commit();
        while (chunks.more()) {
            u32 start = chunks.start();
            bool partial = start < common.low || start + CHUNK > common.end;
            Chunks next = chunks.next();
            // The keys are there, and nobody reads the values before them any more.
            copy_wait<0>();
            __syncthreads();
            if (BYTES && LATENT) widen_latents();
            else if (BYTES) widen(keys, copied_keys, key.k_scale, true);
            if (!LATENT) copy(copied_values, p.v_cache, shared.places[turn], start, needed);
            copy_commit();
            if (BYTES) __syncthreads();
            Key next_key = key_of(next);
            float scores[STRIPS][2][4];
            score(scores, start, partial);
            if (threadIdx.x < CHUNK) shared.places[turn ^ 1][threadIdx.x] = next_key.place;
            // Nobody reads the keys any more, unless they are values, too.
            __syncthreads();
            if (!LATENT && next.more()) copy(copied_keys, p.k_cache, shared.places[turn ^ 1], next.start(), needed);
            copy_commit();
            weigh(scores);
            copy_wait<1>();
            __syncthreads();
            if (BYTES && !LATENT) {
                widen(values, copied_values, key.v_scale, true);
                __syncthreads();
            }
            shrink_sums();
            bool differ = partial && common.end != needed.end;
            if (differ && has_odd_values()) {
                add_values_in_turns(shared.places[turn], start, key.v_scale);
            } else {
                add_values<false>(0);
            }
            if (LATENT) {
                __syncthreads();
                if (next.more()) copy(copied_keys, p.k_cache, shared.places[turn ^ 1], next.start(), needed);
                copy_commit();
            }
            if (chunks.ends_segment()) {
                if (p.records) {
                    leave_segment(chunks.segment());
                } else {
                    fold_segment();
                }
                begin_segment();
            }
            chunks = next;
            key = next_key;
            turn ^= 1;
        }
        if (!p.records) finish();
    }
};
}

// Narrow tiles wait for copies, and blocks fill each other's gaps: five of head 128 are what 228 KiB of shared memory hold,
// 96 registers a thread. Wide ones have their sums in registers, 168 a thread with three blocks and 255 with two; two running
// outputs of 64 rows of the largest heads are more than registers hold.
#define ATTENTION(name, D, M, KV, BLOCKS)                           \
    KERNEL_OF_BLOCKS(name, 128, BLOCKS, AttentionParams) {          \
        SHARED_BYTES(memory);                                       \
        SHARED(attention_mma::Shared<M>, shared);                   \
        attention_mma::Block<D, D, M, KV>(p, shared, memory).run(); \
    }
// Latents of bf16 or of eight bits. Their tile is what shared memory of 99 KiB holds: copies wait for products, and the other
// block of a multiprocessor fills the gap where there is room for two.
#define LATENT_ATTENTION(name, D, V, M, KV, BLOCKS)                 \
    KERNEL_OF_BLOCKS(name, 128, BLOCKS, AttentionParams) {          \
        SHARED_BYTES(memory);                                       \
        SHARED(attention_mma::Shared<M>, shared);                   \
        attention_mma::Block<D, V, M, KV>(p, shared, memory).run(); \
    }
