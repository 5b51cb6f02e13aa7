// Products with f32 weights: exact products and sums of f32. Each segment of K is one chain of fused
// multiply-adds per sum, input features ascending, on either path.
#include "linear.cuh"

namespace linear_op {

// Few rows of x: a block takes two panels and up to ROWS rows, a warp a segment of K, a lane an output feature. Lanes load
// lines of 128 bytes together, eight loads of sixteen bytes each while as many are multiplied: 32 KiB a block on its way.
namespace float_few {

const u32 PANELS = 2;
const u32 WORDS = 32;

template <u32 ROWS>
struct FloatShared {
    // Lines are a word longer than they are full: lanes read and write words of all banks.
    u32 lines[SEGMENTS][WARP][WORDS + 1];
    float sums[SEGMENTS][ROWS][WARP];
};

template <u32 ROWS, class P>
SHARED_DEVICE void rows(const P& p, u32 group, u32 first_panel) {
    typedef FloatShared<ROWS> Shared;
    SHARED(Shared, shared);
    u32 live = live_rows(p.live, p.rows), first_row = group * ROWS;
    if (first_row >= live) return;
    u32 count = min_u32(live - first_row, ROWS);
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row_bytes = p.blocks * BLOCK;
    u32(&lines)[WARP][WORDS + 1] = shared.lines[warp];
    const u8* weight = p.weight + u64(first_panel * PANEL) * row_bytes;
    const float* x = x_base(p, first_row);
    u32 features = min_u32((p.panels - first_panel) * PANEL, WARP);

    Words4 next[8];
    auto load_lines = [&](u32 byte) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 feature = i * 4 + lane / 8;
            if (feature < features) {
                next[i] = load_once(weight + u64(feature) * row_bytes + byte + lane % 8 * 16);
            } else {
                next[i] = {};
            }
        }
    };
    float sum[ROWS] = {};
    // Whole lines: two blocks each.
    u32 first = min_u32(warp * p.segment, p.blocks) * BLOCK, end = min_u32((warp + 1) * p.segment, p.blocks) * BLOCK;
    if (first < end) load_lines(first);
    for (u32 byte = first; byte < end; byte += WORDS * 4) {
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
#pragma unroll
            for (u32 j = 0; j < 4; j++) lines[i * 4 + lane / 8][lane % 8 * 4 + j] = next[i].v[j];
        }
        __syncwarp();
        if (byte + WORDS * 4 < end) load_lines(byte + WORDS * 4);
#pragma unroll 2
        for (u32 four = 0; four < WORDS; four += 4) {
            u32 k = byte / 4 + four;
            float w[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) w[i] = bits_float(lines[lane][four + i]);
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                if (r < count) {
                    Floats4 v = load_x(p, x + u64(x_index(p, first_row, r)) * p.x_stride, k);
#pragma unroll
                    for (u32 i = 0; i < 4; i++) sum[r] = fmaf(w[i], v.v[i], sum[r]);
                }
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) shared.sums[warp][r][lane] = sum[r];
    __syncthreads();
    u32 r = threadIdx.x / PANEL, panel = threadIdx.x / 8 % PANELS, i = threadIdx.x % 8;
    if (r >= count || first_panel + panel >= p.panels) return;
    float low = 0.0f, high = 0.0f;
    for (u32 s = 0; s < SEGMENTS; s++) {
        low += shared.sums[s][r][panel * PANEL + i];
        high += shared.sums[s][r][panel * PANEL + i + 8];
    }
    finish(p, first_panel + panel, i, first_row + r, low, high);
}

}

// Many rows: tiles of 64 output features by 64 rows, 16 sums a thread, 32 input features at a time. The next step is
// loaded while one is multiplied.
namespace float_tile {

const u32 THREADS = 256;
const u32 SIZE = 64;
const u32 DEPTH = 32;
// Of a line in shared memory: eight lanes that read a vector of eight lines each find it in other banks.
const u32 LINE = DEPTH + 4;

struct alignas(16) Shared {
    // Bits of floats.
    u32 w[2][SIZE][LINE];
    u32 x[2][SIZE][LINE];
};

template <class P>
SHARED_DEVICE void rows(const P& p, u32 row_tile, u32 feature_tile) {
    SHARED(Shared, shared);
    u32 live = live_rows(p.live, p.rows), first_row = row_tile * SIZE;
    if (first_row >= live) return;
    u32 count = min_u32(live - first_row, SIZE), first_panel = feature_tile * (SIZE / PANEL), row_bytes = p.blocks * BLOCK;
    u32 features = min_u32((p.panels - first_panel) * PANEL, SIZE);
    const u8* weight = p.weight + u64(first_panel * PANEL) * row_bytes;
    const float* x = x_base(p, first_row);

    // Vectors of sixteen bytes of a line of weights, and loads of a thread.
    const u32 VECTORS = DEPTH / 4, LOADS = SIZE * VECTORS / THREADS;
    Words4 next_w[LOADS];
    Floats4 next_x[2];
    auto load_step = [&](u32 step) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            u32 at = threadIdx.x + i * THREADS, feature = at / VECTORS;
            if (feature < features) {
                next_w[i] = load(weight + u64(feature) * row_bytes + (step * VECTORS + at % VECTORS) * 16);
            } else {
                next_w[i] = {};
            }
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = threadIdx.x + i * THREADS, row = at / 8;
            if (row < count) {
                next_x[i] = load_x(p, x + u64(x_index(p, first_row, row)) * p.x_stride, step * DEPTH + at % 8 * 4);
            } else {
                next_x[i] = {};
            }
        }
    };
    auto put_step = [&](u32 slot) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            u32 at = threadIdx.x + i * THREADS;
            store(&shared.w[slot][at / VECTORS][at % VECTORS * 4], next_w[i]);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = threadIdx.x + i * THREADS;
            Words4 words;
#pragma unroll
            for (u32 n = 0; n < 4; n++) words.v[n] = float_bits(next_x[i].v[n]);
            store(&shared.x[slot][at / 8][at % 8 * 4], words);
        }
    };

    // Thread (a, b) has features a % 8 + 8 m of half a / 8 of the tile, which are gates and what they multiply, and rows
    // b + 16 n.
    u32 feature = threadIdx.x % 8 + threadIdx.x / 8 % 2 * 32, row = threadIdx.x / 16;
    float sum[4][4] = {}, total[4][4] = {};
    u32 steps = row_bytes / (VECTORS * 16), segment = p.segment * BLOCK / (VECTORS * 16), left = segment;
    load_step(0);
    for (u32 step = 0; step < steps; step++) {
        u32 slot = step % 2;
        // Who reads this slot's last step is two barriers behind.
        put_step(slot);
        __syncthreads();
        if (step + 1 < steps) load_step(step + 1);
#pragma unroll 2
        for (u32 k = 0; k < DEPTH; k += 4) {
            Words4 w[4], v[4];
#pragma unroll
            for (u32 m = 0; m < 4; m++) w[m] = load(&shared.w[slot][feature + m * 8][k]);
#pragma unroll
            for (u32 n = 0; n < 4; n++) v[n] = load(&shared.x[slot][row + n * 16][k]);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
#pragma unroll
                    for (u32 n = 0; n < 4; n++) {
                        sum[m][n] = fmaf(bits_float(w[m].v[i]), bits_float(v[n].v[i]), sum[m][n]);
                    }
                }
            }
        }
        if (--left > 0 && step + 1 < steps) continue;
        left = segment;
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                total[m][n] += sum[m][n];
                sum[m][n] = 0.0f;
            }
        }
    }
#pragma unroll
    for (u32 m = 0; m < 4; m += 2) {
        u32 panel = first_panel + (feature + m * 8) / PANEL;
        if (panel >= p.panels) break;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            u32 r = row + n * 16;
            if (r < count) finish(p, panel, feature % 8, first_row + r, total[m][n], total[m + 1][n]);
        }
    }
}

}

}
