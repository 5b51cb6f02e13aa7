// A few dozen rows of x: the time is that of reading the weights, and of reading x again for every block, from the second
// cache. A block has 128 output features and all rows; a warp two of its panels, which no other warp has.
//
// W is how weights lie in a stage and become what is multiplied. What is behind a stage's weights: what panels of weights
// are multiplied with, x in lines of 128 bytes of K, and where bytes have rests, these, so that weights are read once for
// both. Several stages are on their way while one is multiplied: 26 to 32 KiB of weights a block, 17 of q4 for 64 rows.
#include "block.cuh"
#include "linear_tile.cuh"

namespace linear_op {

template <class W, int N>
struct Flat {
    // 128 features by 8N rows, for what it has in common with tiles of many rows.
    typedef Tile<4, 1, 2, N> T;
    static const u32 PANELS = T::FEATURES / PANEL;
    static const u32 MULTIPLIERS_AT = T::FEATURES * W::LINE_BYTES;
    static const u32 X_AT = MULTIPLIERS_AT + PANELS * W::OF_PANEL;
    static const u32 RESTS_AT = X_AT + T::ROWS * LINE;
    static const u32 STAGE = RESTS_AT + (W::RESTS ? T::ROWS * LINE : 0);
    // crates/cuda/src/ops/linear_flat.rs knows these.
    static const u32 STAGES = W::LINE_BYTES == LINE || STAGE > 24 * 1024 ? 3 : 4;
    static_assert(T::ROWS * (T::FEATURES + 4) * 4 <= STAGES * STAGE, "the sums of a tile take the place of its stages");
    typedef typename W::Word::Sum Sums[T::MT][T::NT][4];
};

// Weights that lie in a stage as they are multiplied.
template <class OfWord, bool OfRests>
struct WholeWeights {
    typedef OfWord Word;
    static const bool RESTS = OfRests;
    static const u32 LINE_BYTES = LINE;
    static const u32 OF_PANEL = 0;
    static SHARED_DEVICE u32 place(u32 row, u32 piece) { return place_in_stage(row, piece); }
    static SHARED_DEVICE u32 x_piece(u32 half, u32 t) { return half * 4 + t; }
    // What a lane has of rows `line` and line + 8 of a stage, and of a half of it.
    struct Rows {
        const u8* stage;
        u32 line;
        u32 t;
        SHARED_DEVICE Rows(const u8* stage, const u8*, u32 line, u32 t) : stage(stage), line(line), t(t) {}
        SHARED_DEVICE void half(Words4 (&to)[2], u32 half) const {
            to[0] = load(stage + place(line, half * 4 + t));
            to[1] = load(stage + place(line + 8, half * 4 + t));
        }
    };
};

// Weights of fewer bits than are multiplied: lines of a block, as they lie in memory, and for each panel 64 bytes of what
// they are multiplied with. A lane's sixteen bytes are of both halves.
struct NarrowWeights {
    static const u32 LINE_BYTES = BLOCK;
    static const u32 OF_PANEL = 64;
    static SHARED_DEVICE u32 place(u32 row, u32 piece) { return row * BLOCK + piece * 16; }
    struct Rows {
        Words4 bytes[2];
        Words2 multipliers;
        SHARED_DEVICE Rows(const u8* stage, const u8* of_panels, u32 line, u32 t) {
            bytes[0] = load(stage + place(line, t));
            bytes[1] = load(stage + place(line + 8, t));
            multipliers = load_two(of_panels + line / PANEL * OF_PANEL + line % 8 * 8);
        }
    };
};

// Steps of K, lines of x: all of them, or those of a part.
struct Steps {
    u32 first;
    u32 end;
};
SHARED_DEVICE Steps steps_of(const LinearParams& p, u32 part, u32 part_steps) {
    u32 all = ceil_div(p.copy_bytes, LINE);
    if (p.parts == 1) return {0, all};
    return {min_u32(part * part_steps, all), min_u32((part + 1) * part_steps, all)};
}

// Starts copying a step's weights and what they are multiplied with; zeros past the last row and the last byte.
template <class F, class W>
SHARED_DEVICE void copy_weights(u8* stage, const LinearParams& p, u32 first_panel, u32 step) {
    typedef typename F::T T;
    const u32 PIECES = W::LINE_BYTES / 16;
    u32 row_bytes = p.blocks * BLOCK;
#pragma unroll
    for (u32 i = 0; i < T::FEATURES * PIECES / T::THREADS; i++) {
        u32 at = threadIdx.x + i * T::THREADS, row = first_panel * PANEL + at / PIECES, piece = at % PIECES;
        u32 byte = step * W::LINE_BYTES + piece * 16;
        const u8* from = p.weight + u64(row) * row_bytes + byte;
        copy_async(stage + W::place(at / PIECES, piece), from, row < p.panels * PANEL && byte < row_bytes);
    }
    if constexpr (W::OF_PANEL > 0) {
        const u32 PARTS = W::OF_PANEL / 16;
        static_assert(F::PANELS * PARTS <= T::THREADS, "a piece for some of the threads");
        u32 panel = first_panel + threadIdx.x / PARTS;
        if (threadIdx.x < F::PANELS * PARTS) {
            const u8* from = p.multipliers + W::multipliers_at(panel * PANEL, step, p.blocks) + threadIdx.x % PARTS * 16;
            copy_async(stage + F::MULTIPLIERS_AT + threadIdx.x * 16, from, panel < p.panels);
        }
    }
}

// Fragments of rows that are loaded, and multiplied if one of them may be live, at a time.
const int TOGETHER = 4;

// Adds to `sum` the products of a tile over `steps`, and to `rest_sum` those of rests where there are some. `ended` is
// called after each step, with whether it was the last.
template <class W, int N, class Ended>
SHARED_DEVICE void flat_products(typename Flat<W, N>::Sums& sum, typename Flat<W, N>::Sums& rest_sum, const LinearParams& p,
                                 const TilePlace<typename Flat<W, N>::T>& at, bool rests, u8* stages, Steps steps,
                                 Ended ended) {
    typedef Flat<W, N> F;
    typedef typename F::T T;
    auto stage_of = [&](u32 step) { return stages + step % F::STAGES * F::STAGE; };
    auto fetch = [&](u32 step) {
        if (step < steps.end) {
            u8* stage = stage_of(step);
            copy_weights<F, W>(stage, p, at.first_panel, step);
            copy_lines<T, T::ROWS>(stage + F::X_AT, p.copy, p.copy_bytes, at.rows, step);
            if (W::RESTS && rests) copy_lines<T, T::ROWS>(stage + F::RESTS_AT, p.rests, p.copy_bytes, at.rows, step);
        }
        copy_commit();
    };
#pragma unroll
    for (u32 i = 0; i + 1 < F::STAGES; i++) fetch(steps.first + i);
    u32 line = at.warp_m * (T::MT * PANEL) + at.g;
    for (u32 step = steps.first; step < steps.end; step++) {
        copy_wait<F::STAGES - 2>();
        // Every warp is done with the step before, too, whose place is filled next.
        __syncthreads();
        fetch(step + F::STAGES - 1);
        const u8* stage = stage_of(step);
        typename W::Rows rows[T::MT] = {{stage, stage + F::MULTIPLIERS_AT, line, at.t},
                                        {stage, stage + F::MULTIPLIERS_AT, line + PANEL, at.t}};
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            Words4 w[T::MT][2];
#pragma unroll
            for (int m = 0; m < T::MT; m++) rows[m].half(w[m], half);
#pragma unroll
            for (int first = 0; first < T::NT; first += TOGETHER) {
                // The same in every block. A branch for each fragment would have its products wait for its x.
                if (u32(first) * 8 >= at.rows) continue;
                Words4 x[TOGETHER];
                u32 place[TOGETHER];
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
                    place[i] = place_in_stage((first + i) * 8 + at.g, W::x_piece(half, at.t));
                    x[i] = load(stage + F::X_AT + place[i]);
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; i++) {
#pragma unroll
                    for (int m = 0; m < T::MT; m++) multiply<typename W::Word>(sum[m][first + i], w[m], x[i]);
                }
                if (W::RESTS && rests) {
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) x[i] = load(stage + F::RESTS_AT + place[i]);
#pragma unroll
                    for (int i = 0; i < TOGETHER; i++) {
#pragma unroll
                        for (int m = 0; m < T::MT; m++) multiply<typename W::Word>(rest_sum[m][first + i], w[m], x[i]);
                    }
                }
            }
        }
        ended(step + 1 == steps.end);
    }
    copy_wait<0>();
    __syncthreads();
}

SHARED_DEVICE u32 sum_word(float sum) { return float_bits(sum); }
SHARED_DEVICE u32 sum_word(int sum) { return u32(sum); }
SHARED_DEVICE void add_word(float& sum, u32 word) { sum += bits_float(word); }
SHARED_DEVICE void add_word(int& sum, u32 word) { sum += int(word); }

struct PartShared {
    u32 last;
};

// Parts of K, where tiles alone would leave multiprocessors idle: blocks of the same tile leave their sums in scratch memory,
// SETS of them each, a lane's words beside its neighbours', and the last adds them in the order of parts. Of rows that
// are live, in whole fragments.
template <class T, u32 SETS>
struct Parts {
    const LinearParams& p;
    u32 tile;
    u32 part;
    u32 rows;

    SHARED_DEVICE u8* place(u32 of, u32 set, int m, int n) const {
        u64 sums = (u64(tile) * p.parts + of) * SETS + set;
        return p.part_sums + (sums * (T::MT * T::NT) + m * T::NT + n) * (T::THREADS * 16) + threadIdx.x * 16;
    }
    SHARED_DEVICE bool is_live(int n) const { return u32(n) * 8 < rows; }
    template <class Sum>
    SHARED_DEVICE void leave(const Sum (&sum)[T::MT][T::NT][4], u32 set) const {
#pragma unroll
        for (int n = 0; n < T::NT; n++) {
            if (!is_live(n)) continue;
#pragma unroll
            for (int m = 0; m < T::MT; m++) {
                Words4 words;
#pragma unroll
                for (int i = 0; i < 4; i++) words.v[i] = sum_word(sum[m][n][i]);
                store(place(part, set, m, n), words);
            }
        }
    }
    // Whether all have left theirs, and this block is to go on with them.
    SHARED_DEVICE bool ends() const {
        SHARED(PartShared, shared);
        return block_is_last(p.ended + tile, p.parts, shared.last);
    }
    template <class Sum>
    SHARED_DEVICE void collect(Sum (&sum)[T::MT][T::NT][4], u32 set) const {
        clear<T>(sum);
        for (u32 of = 0; of < p.parts; of++) {
            // All of a part at once: nobody else is at work on the tile.
            Words4 words[T::MT][T::NT];
#pragma unroll
            for (int n = 0; n < T::NT; n++) {
#pragma unroll
                for (int m = 0; m < T::MT; m++) words[m][n] = load_if(place(of, set, m, n), is_live(n));
            }
#pragma unroll
            for (int n = 0; n < T::NT; n++) {
#pragma unroll
                for (int m = 0; m < T::MT; m++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) add_word(sum[m][n][i], words[m][n].v[i]);
                }
            }
        }
    }
};

// What is called where x is copied, before parts are computed: none has ended. A block of 256 threads.
SHARED_DEVICE void begin_parts(const LinearParams& p) {
    if (blockIdx.x > 0) return;
    for (u32 tile = threadIdx.x; tile < p.cut_tiles; tile += 256) p.ended[tile] = 0;
}

// `blockIdx.x` is a part, and `blockIdx.y` a tile, of products of floats. `factor(row)` is what sums of a row are multiplied
// with. Parts are segments.
template <class W, int N, class Factor>
SHARED_DEVICE void flat_floats(const LinearParams& p, Factor factor) {
    typedef typename Flat<W, N>::T T;
    SHARED_BYTES(stages);
    TilePlace<T> at = tile_place<T>(p, 0, blockIdx.y);
    if (at.rows == 0) return;
    float sum[T::MT][T::NT][4], total[T::MT][T::NT][4];
    clear<T>(sum);
    clear<T>(total);
    u32 segment = p.segment * BLOCK / W::LINE_BYTES, left = segment;
    flat_products<W, N>(sum, sum, p, at, false, stages, steps_of(p, blockIdx.x, segment), [&](bool last) {
        if (--left > 0 && !last) return;
        left = segment;
        end_segment<T>(total, sum);
    });
    if (p.parts > 1) {
        Parts<T, 1> parts = {p, blockIdx.y, blockIdx.x, at.rows};
        parts.leave(total, 0);
        if (!parts.ends()) return;
        parts.collect(total, 0);
    }
    scale_totals<T>(total, at, factor);
    finish_tile<T>(total, p, at, stages);
}

}
