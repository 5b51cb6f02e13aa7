// Many rows of x: tiles of output features by rows, from stages of weights and x in shared memory.
//
// A stage has of each row a line of 128 bytes of K. Two stages are on their way while one is multiplied: 64 KiB a block
// of the larger tile. Lane t of a fragment's row reads piece t or 4 + t of sixteen, eight lanes two rows at a time; the
// pieces of odd rows are moved by 5, so that these and the pairs that `SpreadWeights` writes lie in all banks.
#include "block.cuh"
#include "linear.cuh"

namespace linear_op {

const u32 LINE = 128;
const u32 STAGES = 3;

// Fragments of a warp, MT of features by NT of rows, and warps of a block.
template <int WARPS_M, int WARPS_N, int M, int N>
struct Tile {
    static const int MT = M;
    static const int NT = N;
    static const bool FLAT = false;
    static const u32 ACROSS = WARPS_N;
    static const u32 THREADS = WARPS_M * WARPS_N * WARP;
    static const u32 FEATURES = WARPS_M * M * 16;
    static const u32 ROWS = WARPS_N * N * 8;
    static const u32 STAGE = (FEATURES + ROWS) * LINE;
};
// Sums and totals of the larger take half of a thread's 255 registers: one block a multiprocessor.
typedef Tile<2, 4, 4, 4> LargeTile;
typedef Tile<2, 2, 2, 4> SmallTile;
// 8N rows at most, where the time is that of reading the weights: a warp has all rows of two panels. What a block
// reads of x, from the second cache, is R / 128 of what it reads of bf16 weights.
template <int N>
struct FlatTile : Tile<4, 1, 2, N> {
    static const bool FLAT = true;
};

SHARED_DEVICE u32 place_in_stage(u32 row, u32 piece) { return row * LINE + (piece ^ row % 2 * 5) * 16; }

// Where a thread's part of a tile is.
template <class T>
struct TilePlace {
    u32 first_panel;
    u32 first_row;
    // Rows of the block that are live.
    u32 rows;
    u32 warp_m;
    u32 warp_n;
    u32 g;
    u32 t;
};

template <class T>
SHARED_DEVICE TilePlace<T> tile_place(const LinearParams& p, u32 row_tile, u32 feature_tile) {
    u32 live = live_rows(p.live, p.rows), warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    TilePlace<T> at;
    at.first_panel = feature_tile * (T::FEATURES / PANEL);
    at.first_row = row_tile * T::ROWS;
    at.rows = live > at.first_row ? min_u32(live - at.first_row, T::ROWS) : 0;
    at.warp_m = warp / T::ACROSS;
    at.warp_n = warp % T::ACROSS;
    at.g = lane / 4;
    at.t = lane % 4;
    return at;
}

// Starts copying a line of each of COUNT rows; zeros past the last row and the last byte.
template <class T, u32 COUNT>
SHARED_DEVICE void copy_lines(u8* to, const u8* from, u32 row_bytes, u32 rows, u32 step) {
    u32 piece = threadIdx.x % 8, byte = step * LINE + piece * 16;
#pragma unroll
    for (u32 i = 0; i < COUNT * 8 / T::THREADS; i++) {
        u32 row = threadIdx.x / 8 + i * (T::THREADS / 8);
        copy_async(to + place_in_stage(row, piece), from + u64(row) * row_bytes + byte, row < rows && byte < row_bytes);
    }
}

// Steps of K: all of them, or those of a part.
struct Steps {
    u32 first;
    u32 end;
};
template <class T>
SHARED_DEVICE Steps steps_of(const LinearParams& p, u32 part, u32 part_steps) {
    u32 all = ceil_div(p.copy_bytes, LINE);
    if (!T::FLAT || p.parts == 1) return {0, all};
    return {min_u32(part * part_steps, all), min_u32((part + 1) * part_steps, all)};
}

// Weights that lie in a stage as they are multiplied.
struct LinesOfWeights {
    // What a lane has of rows `line` and line + 8 of the half of a step.
    SHARED_DEVICE void load_rows(Words4 (&to)[2], const u8* stage, u32 line, u32 half, u32 t) const {
        to[0] = load(stage + place_in_stage(line, half * 4 + t));
        to[1] = load(stage + place_in_stage(line + 8, half * 4 + t));
    }
};

// Weights that are multiplied as they lie.
template <class T>
struct CopiedWeights : LinesOfWeights {
    const u8* from;
    u32 row_bytes;
    u32 rows;
    SHARED_DEVICE CopiedWeights(const LinearParams& p, const TilePlace<T>& at) {
        u32 first = at.first_panel * PANEL;
        row_bytes = p.blocks * BLOCK;
        from = p.weight + u64(first) * row_bytes;
        rows = p.panels * PANEL - first;
    }
    // Steps of a segment.
    static SHARED_DEVICE u32 segment(const LinearParams& p) { return p.segment * BLOCK / LINE; }
    // Called once for each step, two before it is multiplied, and twice more.
    SHARED_DEVICE void fetch(u8* stages, u32 step, Steps steps) {
        if (step < steps.end) copy_lines<T, T::FEATURES>(stages + step % STAGES * T::STAGE, from, row_bytes, rows, step);
    }
};

// Adds to sums the products of a tile over `steps`. `ended` is called after each, with whether it was the last.
template <class T, class Word, class Weights, class Ended>
SHARED_DEVICE void tile_products(typename Word::Sum (&sum)[T::MT][T::NT][4], const LinearParams& p, const TilePlace<T>& at,
                                 Weights& weights, const u8* x, bool wanted, u8* stages, Steps steps, Ended ended) {
    x += u64(at.first_row) * p.copy_bytes;
    auto fetch = [&](u32 step) {
        weights.fetch(stages, step, steps);
        if (step < steps.end) {
            u8* to = stages + step % STAGES * T::STAGE + T::FEATURES * LINE;
            copy_lines<T, T::ROWS>(to, x, p.copy_bytes, at.rows, step);
        }
        copy_commit();
    };
    fetch(steps.first);
    fetch(steps.first + 1);
    u32 w_line = at.warp_m * (T::MT * 16) + at.g;
    u32 x_line = T::FEATURES + at.warp_n * (T::NT * 8) + at.g;
    for (u32 step = steps.first; step < steps.end; step++) {
        copy_wait<1>();
        // Every warp is done with the step before, too, whose place is filled next.
        __syncthreads();
        fetch(step + 2);
        const u8* stage = stages + step % STAGES * T::STAGE;
        if (wanted) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                Words4 w[T::MT][2], rows[T::NT];
#pragma unroll
                for (int m = 0; m < T::MT; m++) {
                    weights.load_rows(w[m], stage, w_line + m * 16, half, at.t);
                }
#pragma unroll
                for (int n = 0; n < T::NT; n++) rows[n] = load(stage + place_in_stage(x_line + n * 8, half * 4 + at.t));
#pragma unroll
                for (int m = 0; m < T::MT; m++) {
#pragma unroll
                    for (int n = 0; n < T::NT; n++) multiply<Word>(sum[m][n], w[m], rows[n]);
                }
            }
        }
        ended(step + 1 == steps.end);
    }
    copy_wait<0>();
    __syncthreads();
}

// Weights of fewer bits than are multiplied, of flat tiles: they lie in a stage as they do in memory, lines of a block each, and
// behind them what each panel's are multiplied with, 64 bytes (f8: for two blocks, and so twice). The one warp that has a
// panel spreads them, so that two steps are on their way.
template <class T>
struct NarrowWeights {
    static const u32 OF_PANEL = 64;
    const LinearParams& p;
    u32 first_panel;
    SHARED_DEVICE NarrowWeights(const LinearParams& params, const TilePlace<T>& at)
        : p(params), first_panel(at.first_panel) {}
    static SHARED_DEVICE u32 segment(const LinearParams& p) { return p.segment; }

    // `of_block(panel, block)` is where a panel's multipliers are in memory.
    template <class OfBlock>
    SHARED_DEVICE void copy(u8* stages, u32 step, Steps steps, OfBlock of_block) const {
        const u32 PIECES = BLOCK / 16, PANELS = T::FEATURES / PANEL;
        static_assert(T::FLAT && PANELS * PIECES <= T::THREADS, "a piece of multipliers for some threads");
        if (step >= steps.end) return;
        u8* stage = stages + step % STAGES * T::STAGE;
#pragma unroll
        for (u32 i = 0; i < T::FEATURES * PIECES / T::THREADS; i++) {
            u32 at = threadIdx.x + i * T::THREADS, row = first_panel * PANEL + at / PIECES;
            const u8* from = p.weight + (u64(row) * p.blocks + step) * BLOCK + at % PIECES * 16;
            copy_async(stage + at * 16, from, row < p.panels * PANEL);
        }
        u32 panel = first_panel + threadIdx.x / PIECES;
        if (threadIdx.x < PANELS * PIECES) {
            const u8* from = p.multipliers + of_block(panel, step) + threadIdx.x % PIECES * 16;
            copy_async(stage + T::FEATURES * BLOCK + threadIdx.x * 16, from, panel < p.panels);
        }
    }
    // Eight bytes of rows `line` and line + 8, from byte `at` on, and what they are multiplied with.
    SHARED_DEVICE void load_narrow(Words2 (&to)[2], Words2& with, const u8* stage, u32 line, u32 at) const {
        to[0] = load_two(stage + line * BLOCK + at);
        to[1] = load_two(stage + (line + 8) * BLOCK + at);
        with = load_two(stage + T::FEATURES * BLOCK + line / PANEL * OF_PANEL + line % 8 * 8);
    }
};

template <class T, class Sum>
SHARED_DEVICE void clear(Sum (&sum)[T::MT][T::NT][4]) {
#pragma unroll
    for (int m = 0; m < T::MT; m++) {
#pragma unroll
        for (int n = 0; n < T::NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = 0;
        }
    }
}

SHARED_DEVICE u32 sum_word(float sum) { return float_bits(sum); }
SHARED_DEVICE u32 sum_word(int sum) { return u32(sum); }
SHARED_DEVICE void add_word(float& sum, u32 word) { sum += bits_float(word); }
SHARED_DEVICE void add_word(int& sum, u32 word) { sum += int(word); }

struct PartShared {
    u32 last;
};

// Parts of K, for few rows where tiles alone would leave multiprocessors idle: blocks of the same tile leave their sums in
// scratch memory, SETS of them each, a lane's words beside its neighbours', and the last adds them in the order of parts.
template <class T, u32 SETS>
struct Parts {
    const LinearParams& p;
    u32 tile;
    u32 part;

    SHARED_DEVICE u8* place(u32 of, u32 set, int m, int n) const {
        u64 sums = (u64(tile) * p.parts + of) * SETS + set;
        return p.part_sums + (sums * (T::MT * T::NT) + m * T::NT + n) * (T::THREADS * 16) + threadIdx.x * 16;
    }
    template <class Sum>
    SHARED_DEVICE void leave(const Sum (&sum)[T::MT][T::NT][4], u32 set) const {
#pragma unroll
        for (int m = 0; m < T::MT; m++) {
#pragma unroll
            for (int n = 0; n < T::NT; n++) {
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
#pragma unroll
            for (int m = 0; m < T::MT; m++) {
#pragma unroll
                for (int n = 0; n < T::NT; n++) {
                    Words4 words = load(place(of, set, m, n));
#pragma unroll
                    for (int i = 0; i < 4; i++) add_word(sum[m][n][i], words.v[i]);
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

// Ends a tile. Sums meet in the place of the stages first: eight lanes then store eight features of a row, and what is
// done with a sum is there once, not for each of a thread's. Lines are four words longer than they are full, so that a
// warp's words lie in all banks.
template <class T>
SHARED_DEVICE void finish_tile(const float (&value)[T::MT][T::NT][4], const LinearParams& p, const TilePlace<T>& at,
                               u8* stages) {
    const u32 WIDTH = T::FEATURES + 4;
    static_assert(T::ROWS * WIDTH * 4 <= STAGES * T::STAGE, "the sums of a tile take the place of its stages");
    float* sums = reinterpret_cast<float*>(stages);
#pragma unroll
    for (int m = 0; m < T::MT; m++) {
#pragma unroll
        for (int n = 0; n < T::NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                u32 row = (at.warp_n * T::NT + n) * 8 + at.t * 2 + i % 2;
                sums[row * WIDTH + (at.warp_m * T::MT + m) * PANEL + i / 2 * 8 + at.g] = value[m][n][i];
            }
        }
    }
    __syncthreads();
    for (u32 pair = threadIdx.x; pair < at.rows * (T::FEATURES / 2); pair += T::THREADS) {
        u32 row = pair / (T::FEATURES / 2), panel = pair / 8 % (T::FEATURES / PANEL), i = pair % 8;
        if (at.first_panel + panel >= p.panels) continue;
        const float* low = sums + row * WIDTH + panel * PANEL + i;
        finish(p, at.first_panel + panel, i, at.first_row + row, low[0], low[8]);
    }
}

}
