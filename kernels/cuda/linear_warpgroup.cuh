// Many rows of x on a Hopper: `linear_tile.cuh` with products of warpgroups. Sums are asked for in its order, so they have its
// bits where a device adds sixteen products the same way in both.
//
// A block is three warpgroups: one copies tiles of weights and x to shared memory, as many stages ahead as there is room
// for, and two multiply, 64 output features each. Weights go through registers in whichever order products of few rows have
// them; x has that order already, from the copy that is made of it (`turned`). Of a line of 128 bytes a fragment's row reads one
// half before the other, even rows the first: sixteen bytes of eight lanes then lie in all banks. One warpgroup's products
// hide the other's reading of its next line.
//
// The floor is the matrix units' rate. Shared memory is read at 96 and written at 64 bytes a cycle then, of 128 that it has:
// about 80 % of that rate is what these tiles can reach. Larger ones have no registers for both sums and totals.
#include "linear.cuh"
#include "warpgroup.cuh"

namespace linear_op {

struct WarpgroupParams {
    LinearParams linear;
    // Tiles of rows of x, and of all output features.
    u32 row_tiles;
    u32 tiles;
    // Lines of a tile of weights, and of the copy of x.
    TileMap weights;
    TileMap x;
};

namespace warpgroup {
const u32 THREADS = 3 * WARPGROUP;
// Of output features, and of rows of x.
const u32 TILE = 128;
const u32 FEATURES = TILE / 2;
const u32 PART = TILE * SWIZZLED_LINE;
const u32 STAGES = 5;
// What arrives when a stage is free: a lane of each warp that multiplied.
const u32 READERS = 8;
// Rows whose sums meet at a time, in lines four words longer than they are full.
const u32 ROWS_OUT = 64;
const u32 LINE_OUT = FEATURES + 4;
// crates/cuda/src/ops/linear_warpgroup.rs knows these, and asks for a block more to begin on a multiple of one.
const u32 SHARED = STAGES * 2 * PART + 2 * ROWS_OUT * LINE_OUT * 4;

struct Barriers {
    Barrier full[STAGES];
    Barrier empty[STAGES];
};

// The stage at hand, and the phase of its barriers.
struct Turn {
    u32 stage = 0;
    u32 phase = 0;
    SHARED_DEVICE void next() {
        if (++stage < STAGES) return;
        stage = 0;
        phase ^= 1;
    }
};
}

#ifdef HAS_WARPGROUPS
// One thread's work: asks for every stage.
SHARED_DEVICE void copy_stages(const WarpgroupParams& p, warpgroup::Barriers& barriers, u8* stages, u32 live, u32 steps) {
    using namespace warpgroup;
    Turn turn;
    for (u32 tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        u32 row = tile % p.row_tiles * TILE, feature = tile / p.row_tiles * TILE;
        if (row >= live) continue;
        for (u32 step = 0; step < steps; step++, turn.next()) {
            u8* stage = stages + turn.stage * 2 * PART;
            barrier_wait(barriers.empty[turn.stage], turn.phase ^ 1);
            barrier_expect(barriers.full[turn.stage], 2 * PART);
            copy_tile(stage, p.weights, step * (SWIZZLED_LINE / 2), feature, barriers.full[turn.stage]);
            copy_tile(stage + PART, p.x, step * (SWIZZLED_LINE / 2), row, barriers.full[turn.stage]);
        }
    }
}

// The sixteen columns of product i are words 4i.. of a lane: as `multiply` of linear.cuh takes them of rows `row` and row + 8.
SHARED_DEVICE void load_line(u32 (&line)[16], const u8* weights, u32 row, u32 t) {
    bool odd = row % 2;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        Words4 first = load(weights + swizzled(row + 8 * r, odd * 4 + t));
        Words4 second = load(weights + swizzled(row + 8 * r, !odd * 4 + t));
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 at = i / 2 * 4 + i % 2 * 2 + r;
            line[at] = odd ? second.v[i] : first.v[i];
            line[8 + at] = odd ? first.v[i] : second.v[i];
        }
    }
}

// Adds the products of a stage.
template <class Word>
SHARED_DEVICE void multiply_line(float (&sum)[warpgroup::TILE / 2], u32 (&line)[16], u32 x, bool begins) {
    products_hold(sum);
    products_hold(line);
    products_begin();
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 a[4] = {line[4 * i], line[4 * i + 1], line[4 * i + 2], line[4 * i + 3]};
        Word::template multiply<0>(sum, a, matrix_at(x + 32 * i, 0, SWIZZLED_BLOCK), !begins || i > 0);
    }
    products_commit();
}

// Ends a tile's sums, `ROWS_OUT` rows at a time.
SHARED_DEVICE void finish_sums(const float (&total)[warpgroup::TILE / 2], const LinearParams& p, float* sums, u32 number,
                               u32 first_panel, u32 first_row, u32 rows) {
    using namespace warpgroup;
    u32 thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
#pragma unroll
    for (u32 part = 0; part < TILE / ROWS_OUT; part++) {
#pragma unroll
        for (u32 i = 0; i < ROWS_OUT / 2; i++) {
            u32 row = i / 4 * 8 + lane % 4 * 2 + i % 2;
            sums[row * LINE_OUT + warp * PANEL + i / 2 % 2 * 8 + lane / 4] = total[part * (ROWS_OUT / 2) + i];
        }
        sync_some(number, WARPGROUP);
        u32 begin = part * ROWS_OUT, count = rows > begin ? min_u32(rows - begin, ROWS_OUT) : 0;
        for (u32 pair = thread; pair < count * (FEATURES / 2); pair += WARPGROUP) {
            u32 row = pair / (FEATURES / 2), panel = pair / 8 % (FEATURES / PANEL), i = pair % 8;
            if (first_panel + panel >= p.panels) continue;
            const float* low = sums + row * LINE_OUT + panel * PANEL + i;
            finish(p, first_panel + panel, i, first_row + begin + row, low[0], low[8]);
        }
        sync_some(number, WARPGROUP);
    }
}

// What a warpgroup that multiplies does; `factor(row)` is what sums of a row are multiplied with.
template <class Word, class Factor>
SHARED_DEVICE void multiply_stages(const WarpgroupParams& p, warpgroup::Barriers& barriers, u8* stages, u32 live,
                                   u32 steps, Factor factor) {
    using namespace warpgroup;
    u32 mine = threadIdx.x / WARPGROUP - 1, thread = threadIdx.x % WARPGROUP, lane = thread % WARP;
    float* sums = reinterpret_cast<float*>(stages + STAGES * 2 * PART) + mine * ROWS_OUT * LINE_OUT;
    u32 line_row = mine * FEATURES + thread / WARP * PANEL + lane / 4, segment = p.linear.segment * BLOCK / SWIZZLED_LINE;
    bool never = p.linear.layout > GATED_ACTIVATION;
    Turn turn;
    for (u32 tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        u32 row = tile % p.row_tiles * TILE, feature = tile / p.row_tiles * TILE;
        if (row >= live) continue;
        float sum[TILE / 2], total[TILE / 2];
#pragma unroll
        for (u32 i = 0; i < TILE / 2; i++) sum[i] = total[i] = 0.0f;
        u32 left = segment;
        for (u32 step = 0; step < steps; step++, turn.next()) {
            const u8* stage = stages + turn.stage * 2 * PART;
            u32 line[16];
            barrier_wait(barriers.full[turn.stage], turn.phase);
            load_line(line, stage, line_row, lane % 4);
            multiply_line<Word>(sum, line, shared_address(stage + PART), left == segment);
            products_wait<0>();
            products_hold(sum);
            products_read(line, never, sums);
            // Nobody of the warp reads the stage any more.
            __syncwarp();
            if (lane == 0) barrier_arrive(barriers.empty[turn.stage]);
            if (--left > 0 && step + 1 < steps) continue;
            left = segment;
#pragma unroll
            for (u32 i = 0; i < TILE / 2; i++) total[i] += sum[i];
        }
        u32 rows = min_u32(live - row, TILE);
#pragma unroll
        for (u32 i = 0; i < TILE / 4; i++) {
            float down = factor(row + min_u32(i / 2 * 8 + lane % 4 * 2 + i % 2, rows - 1));
            total[i / 2 * 4 + i % 2] *= down;
            total[i / 2 * 4 + i % 2 + 2] *= down;
        }
        finish_sums(total, p.linear, sums, 1 + mine, (feature + mine * FEATURES) / PANEL, row, rows);
    }
}

// Persistent blocks: while two warpgroups end a tile, the third fills stages of the next.
template <class Word, class Factor>
SHARED_DEVICE void warpgroup_tiles(const WarpgroupParams& p, Factor factor) {
    using namespace warpgroup;
    SHARED_BYTES(memory);
    SHARED(Barriers, barriers);
    u8* stages = memory + (SWIZZLED_BLOCK - shared_address(memory) % SWIZZLED_BLOCK) % SWIZZLED_BLOCK;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(barriers.full[i], 1);
            barrier_init(barriers.empty[i], READERS);
        }
        barriers_ready();
    }
    __syncthreads();
    u32 live = live_rows(p.linear.live, p.linear.rows), steps = ceil_div(p.linear.copy_bytes, SWIZZLED_LINE);
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<40>();
        if (threadIdx.x == 0) copy_stages(p, barriers, stages, live, steps);
    } else {
        more_registers<232>();
        multiply_stages<Word>(p, barriers, stages, live, steps, factor);
    }
}
#endif

}
