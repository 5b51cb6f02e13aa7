// Many rows of x: tiles of output features by rows, from stages of weights and x in shared memory.
//
// A stage has of each row a line of 128 bytes of K. Two stages are on their way while one is multiplied: 64 KiB a block
// of the larger tile. Lane t of a fragment's row reads piece t or 4 + t of sixteen, eight lanes two rows at a time; the
// pieces of odd rows are moved by 5, so that these and the pairs that `SpreadWeights` writes lie in all banks.
#include "linear.cuh"

namespace linear_op {

const u32 LINE = 128;
const u32 STAGES = 3;

// Fragments of a warp, MT of features by NT of rows, and warps of a block.
template <int WARPS_M, int WARPS_N, int M, int N>
struct Tile {
    static const int MT = M;
    static const int NT = N;
    static const u32 ACROSS = WARPS_N;
    static const u32 THREADS = WARPS_M * WARPS_N * WARP;
    static const u32 FEATURES = WARPS_M * M * 16;
    static const u32 ROWS = WARPS_N * N * 8;
    static const u32 STAGE = (FEATURES + ROWS) * LINE;
};
// Sums and totals of the larger take half of a thread's 255 registers: one block a multiprocessor.
typedef Tile<2, 4, 4, 4> LargeTile;
typedef Tile<2, 2, 2, 4> SmallTile;

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

// Weights that are multiplied as they lie.
template <class T>
struct CopiedWeights {
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
    SHARED_DEVICE void fetch(u8* stages, u32 step, u32 steps) {
        if (step < steps) copy_lines<T, T::FEATURES>(stages + step % STAGES * T::STAGE, from, row_bytes, rows, step);
    }
};

// Adds to sums the products of a tile over all of K. `ended` is called after each step, with whether it was the last.
template <class T, class Word, class Weights, class Ended>
SHARED_DEVICE void tile_products(typename Word::Sum (&sum)[T::MT][T::NT][4], const LinearParams& p, const TilePlace<T>& at,
                                 Weights& weights, const u8* x, bool wanted, u8* stages, Ended ended) {
    u32 steps = ceil_div(p.copy_bytes, LINE);
    x += u64(at.first_row) * p.copy_bytes;
    auto fetch = [&](u32 step) {
        weights.fetch(stages, step, steps);
        if (step < steps) {
            u8* to = stages + step % STAGES * T::STAGE + T::FEATURES * LINE;
            copy_lines<T, T::ROWS>(to, x, p.copy_bytes, at.rows, step);
        }
        copy_commit();
    };
    fetch(0);
    fetch(1);
    u32 w_line = at.warp_m * (T::MT * 16) + at.g;
    u32 x_line = T::FEATURES + at.warp_n * (T::NT * 8) + at.g;
    for (u32 step = 0; step < steps; step++) {
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
                    w[m][0] = load(stage + place_in_stage(w_line + m * 16, half * 4 + at.t));
                    w[m][1] = load(stage + place_in_stage(w_line + m * 16 + 8, half * 4 + at.t));
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
        ended(step + 1 == steps);
    }
    copy_wait<0>();
    __syncthreads();
}

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

// Adds a segment's sums to those before it; the next begins at zero.
template <class T>
SHARED_DEVICE void end_segment(float (&total)[T::MT][T::NT][4], float (&sum)[T::MT][T::NT][4]) {
#pragma unroll
    for (int m = 0; m < T::MT; m++) {
#pragma unroll
        for (int n = 0; n < T::NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) total[m][n][i] += sum[m][n][i];
        }
    }
    clear<T>(sum);
}

// Multiplies sums of each row with factor(row).
template <class T, class Factor>
SHARED_DEVICE void scale_totals(float (&total)[T::MT][T::NT][4], const TilePlace<T>& at, Factor factor) {
#pragma unroll
    for (int n = 0; n < T::NT; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 row = (at.warp_n * T::NT + n) * 8 + at.t * 2 + i;
            float down = factor(at.first_row + min_u32(row, at.rows - 1));
#pragma unroll
            for (int m = 0; m < T::MT; m++) {
                total[m][n][i] *= down;
                total[m][n][i + 2] *= down;
            }
        }
    }
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
