// Few rows of x: the time is that of reading the weights once.
//
// A block takes MT panels and up to NT fragments of eight rows, and each of its warps one segment of K. A lane has
// eight loads of sixteen bytes of weights under way at any time: 32 KiB a block, and at two blocks a multiprocessor
// twice what hides 800 ns of latency at 4.8 TB/s over 132 of them. x comes from the caches, some blocks ahead, too.
#include "linear.cuh"

namespace linear_op {

const u32 FEW_THREADS = SEGMENTS * WARP;

// The warps' sums; a lane's words lie beside its neighbours'.
template <class Sum, int TILES>
struct FewShared {
    Sum sums[SEGMENTS][TILES][4][WARP];
};

// The block's rows, and which fragments are to be computed: bit n those of rows, bit NT + n their rests.
struct Few {
    u32 first_row;
    u32 rows;
    u32 active;
    SHARED_DEVICE bool computes(int n) const { return n == 0 || (active >> n & 1) != 0; }
};

template <class F, int NT>
SHARED_DEVICE Few few_of(const LinearParams& p, u32 group) {
    u32 live = live_rows(p.live, p.rows), lane = threadIdx.x % WARP;
    Few few;
    few.first_row = group * (8 * NT);
    few.rows = live > few.first_row ? min_u32(live - few.first_row, 8 * NT) : 0;
    few.active = (1u << ceil_div(few.rows, 8)) - 1;
    if (F::RESTS) {
        bool rest = lane < few.rows && has_rest(p.row_scales[few.first_row + lane]);
        u32 rests = __ballot_sync(EVERY_LANE, rest);
#pragma unroll
        for (int n = 0; n < NT; n++) {
            if (rests >> (8 * n) & 0xff) few.active |= 1u << (NT + n);
        }
    }
    return few;
}

// What a format does that takes rows of x as they come.
struct Unscaled {
    // Finds out about the block's rows what is needed to multiply them; all threads come here.
    SHARED_DEVICE void measure(const LinearParams&, const Few&) {}
    // What sums of row `row` of the block are multiplied with.
    SHARED_DEVICE float factor(const LinearParams&, const Few&, u32) const { return 1.0f; }
};

// Where a lane has the first block of its two rows of a panel.
struct RowsOfPanel {
    const u8* low;
    const u8* high;
};
SHARED_DEVICE RowsOfPanel rows_of_panel(const LinearParams& p, u32 panel, u32 g, u32 t) {
    const u8* low = p.weight + u64(panel * PANEL + g) * p.blocks * BLOCK + t * 16;
    return {low, low + u64(8) * p.blocks * BLOCK};
}
SHARED_DEVICE void load_two_rows(Words4 (&to)[2], const RowsOfPanel& from, u32 block) {
    to[0] = load_once(from.low + u64(block) * BLOCK);
    to[1] = load_once(from.high + u64(block) * BLOCK);
}

// F is how weights and x meet: see `Copied` (linear_16bit.cuh) for what it has. Of group `group` of rows, and MT panels.
template <class F, int MT, int NT, class P>
SHARED_DEVICE void few_rows(const P& p, u32 group, u32 first_panel) {
    typedef typename F::Sum Sum;
    const int TILES = F::RESTS ? 2 * NT : NT;
    const int AHEAD = F::AHEAD / MT;
    // Loads of x are as many fragments ahead as F's registers go: of this block, then of the next.
    const int X_MOST = F::X_REGISTERS * 4 / int(sizeof(typename F::X));
    const int X_AHEAD = X_MOST < AHEAD * TILES ? X_MOST : AHEAD * TILES;
    static_assert(AHEAD * TILES % X_AHEAD == 0, "a ring of whole turns");
    typedef FewShared<Sum, TILES> Shared;
    SHARED(Shared, shared);

    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    u32 first = warp * p.segment, end = min_u32(first + p.segment, p.blocks);
    typename F::Source from[MT];
#pragma unroll
    for (int m = 0; m < MT; m++) {
        // A panel past the last is the last once more, and dropped in the end.
        from[m] = F::source(p, min_u32(first_panel + m, p.panels - 1), g, t);
    }
    typename F::Weights w[AHEAD][MT];
    auto load_weights = [&](int slot, u32 block) {
#pragma unroll
        for (int m = 0; m < MT; m++) F::load(w[slot][m], from[m], block);
    };
    auto load_first_weights = [&]() {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (first + a < end) load_weights(a, first + a);
        }
    };
    // Some rows are live nearly always: the first ones' weights are not kept waiting for their number.
    if (group == 0) load_first_weights();
    Few few = few_of<F, NT>(p, group);
    if (few.rows == 0) return;
    if (group > 0) load_first_weights();
    F format;
    format.measure(p, few);

    typename F::X x[X_AHEAD];
    auto load_x = [&](int slot, int n, u32 block) {
        u32 row = n % NT * 8 + g;
        if (few.computes(n)) F::load_x(x[slot], p, few.first_row + row, row < few.rows, n >= NT, block, t);
    };
#pragma unroll
    for (int i = 0; i < X_AHEAD; i++) {
        if (first + i / TILES < end) load_x(i, i % TILES, first + i / TILES);
    }
    Sum sum[MT][TILES][4];
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int n = 0; n < TILES; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sum[m][n][i] = 0;
        }
    }
    for (u32 start = first; start < end; start += AHEAD) {
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            u32 block = start + a;
            if (block < end) {
                typename F::Ready ready[MT];
#pragma unroll
                for (int m = 0; m < MT; m++) ready[m] = F::ready(w[a][m]);
#pragma unroll
                for (int n = 0; n < TILES; n++) {
                    const int slot = (a * TILES + n) % X_AHEAD, next = n + X_AHEAD;
                    if (few.computes(n)) {
#pragma unroll
                        for (int m = 0; m < MT; m++) format.multiply(sum[m][n], ready[m], x[slot]);
                    }
                    // The place of what was multiplied is filled at once.
                    if (block + next / TILES < end) load_x(slot, next % TILES, block + next / TILES);
                }
                if (block + AHEAD < end) load_weights(a, block + AHEAD);
            }
        }
    }

#pragma unroll
    for (int m = 0; m < MT; m++) {
        if (m > 0) __syncthreads();
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            if (few.computes(n)) {
#pragma unroll
                for (int i = 0; i < 4; i++) shared.sums[warp][n][i][lane] = sum[m][n][i];
            }
        }
        __syncthreads();
        u32 panel = first_panel + m;
        if (panel >= p.panels) return;
        for (u32 at = threadIdx.x; at < NT * 64; at += FEW_THREADS) {
            // Of a lane's sums those of one row.
            u32 n = at / 64, i = at / WARP % 2, from = at % WARP, row = n * 8 + from % 4 * 2 + i;
            if (row >= few.rows) continue;
            Sum low = 0, high = 0;
            for (u32 s = 0; s < SEGMENTS; s++) {
                low += shared.sums[s][n][i][from];
                high += shared.sums[s][n][i + 2][from];
            }
            float factor = format.factor(p, few, row);
            row += few.first_row;
            if (F::RESTS) {
                RowScales scales = p.row_scales[row];
                Sum low_rest = 0, high_rest = 0;
                if (has_rest(scales)) {
                    for (u32 s = 0; s < SEGMENTS; s++) {
                        low_rest += shared.sums[s][TILES - NT + n][i][from];
                        high_rest += shared.sums[s][TILES - NT + n][i + 2][from];
                    }
                }
                float low_value = with_rest(float(low) * scales.scale, int(low_rest), scales);
                float high_value = with_rest(float(high) * scales.scale, int(high_rest), scales);
                finish(p, panel, from / 4, row, low_value, high_value);
            } else {
                finish(p, panel, from / 4, row, float(low) * factor, float(high) * factor);
            }
        }
    }
}

template <class F, int MT, int NT>
SHARED_DEVICE void few_rows(const LinearParams& p) {
    few_rows<F, MT, NT>(p, blockIdx.x % p.groups, blockIdx.x / p.groups * MT);
}

}
