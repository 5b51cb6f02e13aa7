// Products with bf16 weights: x is rounded to bf16, sums are f32.
//
// Sums on matrix units are in the order in which they are asked for, and so that is the same on every path: of a block of
// 32 input features lane t has 8t..8t+7, the first four in one product and the others in the next; blocks ascend; and
// each segment of K begins at zero.
#include "linear_few.cuh"
#include "linear_tile.cuh"

namespace linear_op {

// Input features of a block.
const u32 BF16_BLOCK = 32;

struct Bf16 {
    typedef float Sum;
    struct Weights {
        Words4 v[2];
    };
    struct X {
        Words4 v;
    };
    static const bool RESTS = false;
    static const int AHEAD = 4;
    static const int X_REGISTERS = 32;
    static SHARED_DEVICE void load(Weights& w, const LinearParams& p, u32 panel, u32 block, u32 g, u32 t) {
        const u8* row = p.weight + (u64(panel * PANEL + g) * p.blocks + block) * BLOCK + t * 16;
        w.v[0] = load_once(row);
        w.v[1] = load_once(row + u64(8) * p.blocks * BLOCK);
    }
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        x.v = load_if(p.copy + u64(row) * p.copy_bytes + block * BLOCK + t * 16, wanted);
    }
    static SHARED_DEVICE void multiply(float (&sum)[4], const Weights& w, const X& x) { linear_op::multiply(sum, w.v, x.v); }
};

// x as it is, of whole vectors, rounded where it is multiplied: no kernel has to run before this one.
struct Bf16Direct : Bf16 {
    struct X {
        Floats4 v[2];
    };
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        const float* from = p.x + u64(row) * p.x_stride;
        u32 k = block * BF16_BLOCK + t * 8;
        x.v[0] = load_vector(p, from, k, wanted);
        x.v[1] = load_vector(p, from, k + 4, wanted);
    }
    static SHARED_DEVICE void multiply(float (&sum)[4], const Weights& w, const X& x) {
        Words4 rounded;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Floats4& from = x.v[i / 2];
            rounded.v[i] = pack_bf16(from.v[i % 2 * 2], from.v[i % 2 * 2 + 1]);
        }
        linear_op::multiply(sum, w.v, rounded);
    }
};

template <class T>
SHARED_DEVICE void bf16_tile(const LinearParams& p) {
    SHARED_BYTES(stages);
    TilePlace<T> at = tile_place<T>(p);
    if (at.rows == 0) return;
    float sum[T::MT][T::NT][4], total[T::MT][T::NT][4];
    clear<T>(sum);
    clear<T>(total);
    CopiedWeights<T> weights(p, at);
    u32 segment = p.segment * BLOCK / LINE, left = segment;
    tile_products<T>(sum, p, at, weights, p.copy, true, stages, [&](bool last) {
        if (--left > 0 && !last) return;
        left = segment;
#pragma unroll
        for (int m = 0; m < T::MT; m++) {
#pragma unroll
            for (int n = 0; n < T::NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) total[m][n][i] += sum[m][n][i];
            }
        }
        clear<T>(sum);
    });
    finish_tile<T>(total, p, at, stages);
}

}

using namespace linear_op;

// x as bf16, zeros up to a whole number of blocks: a block a row.
KERNEL(linear_bf16_x, 256, LinearParams) {
    u32 row = blockIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    const float* x = p.x + u64(row) * p.x_stride;
    u8* copy = p.copy + u64(row) * p.copy_bytes;
    for (u32 at = threadIdx.x * 16; at < p.copy_bytes; at += 256 * 16) {
        Words4 words;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Floats4 four = load_x(p, x, at / 2 + i * 4);
            words.v[2 * i] = pack_bf16(four.v[0], four.v[1]);
            words.v[2 * i + 1] = pack_bf16(four.v[2], four.v[3]);
        }
        store(copy + at, words);
    }
}

KERNEL(linear_bf16_8, 256, LinearParams) { few_rows<Bf16Direct, 1, 1>(p); }
KERNEL(linear_bf16_16, 256, LinearParams) { few_rows<Bf16, 1, 2>(p); }
KERNEL(linear_bf16_32, 256, LinearParams) { few_rows<Bf16, 2, 4>(p); }
KERNEL(linear_bf16_64, 256, LinearParams) { few_rows<Bf16, 2, 8>(p); }
KERNEL(linear_bf16_large, 256, LinearParams) { bf16_tile<LargeTile>(p); }
KERNEL(linear_bf16_small, 128, LinearParams) { bf16_tile<SmallTile>(p); }
