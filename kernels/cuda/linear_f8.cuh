// Products with f8 weights: bytes become the bf16 that they read as, and what follows is a product with a bf16 matrix, with
// the same operands in the same order: a block of bytes is two of those of linear_16bit.cuh.
#include "linear_16bit.cuh"

namespace linear_op {

// Four neighbours of a row of weights as two words of bf16: the product is rounded to f32 before.
SHARED_DEVICE void widen(u32& low, u32& high, u32 four, float scale) {
    float d[4];
    f8_floats(d, four);
    low = pack_bf16(d[0] * scale, d[1] * scale);
    high = pack_bf16(d[2] * scale, d[3] * scale);
}
// What a lane has of a row of a block, as it has it of the first of bf16's blocks (0) or of the second (1).
SHARED_DEVICE Words4 widened(const Words4& bytes, u32 half, float scale) {
    Words4 d;
#pragma unroll
    for (u32 i = 0; i < 2; i++) widen(d.v[2 * i], d.v[2 * i + 1], bytes.v[2 * half + i], scale);
    return d;
}

// x from the copy that another kernel made before.
struct CopiedF8 : Unscaled {
    typedef float Sum;
    struct Weights {
        Words4 v[2];
        Words2 scales;
    };
    // Of either block of bf16.
    struct Ready {
        Words4 v[2][2];
    };
    struct X {
        Words4 v[2];
    };
    static const bool RESTS = false;
    static const int AHEAD = 4;
    static const int X_REGISTERS = 16;
    struct Source {
        RowsOfPanel rows;
        const u8* scales;
    };
    static SHARED_DEVICE Source source(const LinearParams& p, u32 panel, u32 g, u32 t) {
        return {rows_of_panel(p, panel, g, t), p.multipliers + f8_scale(panel * PANEL + g, 0, p.blocks)};
    }
    static SHARED_DEVICE void load(Weights& w, const Source& from, u32 block) {
        load_two_rows(w.v, from.rows, block);
        w.scales = load_two(from.scales + u64(block / (F8_GROUP / BLOCK)) * F8_SCALES);
    }
    // Once for all rows of x.
    static SHARED_DEVICE Ready ready(const Weights& w) {
        Ready d;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
#pragma unroll
            for (u32 i = 0; i < 2; i++) d.v[half][i] = widened(w.v[i], half, bits_float(w.scales.v[i]));
        }
        return d;
    }
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        const u8* from = p.copy + u64(row) * p.copy_bytes + block * (2 * BLOCK) + t * 16;
        x.v[0] = load_if(from, wanted);
        x.v[1] = load_if(from + BLOCK, wanted);
    }
    static SHARED_DEVICE void multiply(float (&sum)[4], const Ready& w, const X& x) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) linear_op::multiply<Bf16s>(sum, w.v[half], x.v[half]);
    }
};

// x as it is, of whole vectors: see `Direct`.
struct DirectF8 : CopiedF8 {
    struct X {
        Floats4 v[4];
    };
    static const int X_REGISTERS = 32;
    template <class P>
    static SHARED_DEVICE void load_x(X& x, const P& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        u32 k = block * (2 * BLOCK_FEATURES) + t * 8;
        // One address with four distances.
        const float* from = x_of_lane(p, row) + k;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 further = i / 2 * BLOCK_FEATURES + i % 2 * 4;
            Words4 words = load_if(from + further, wanted && k + further < p.width);
#pragma unroll
            for (int j = 0; j < 4; j++) x.v[i].v[j] = bits_float(words.v[j]);
        }
    }
    static SHARED_DEVICE void multiply(float (&sum)[4], const Ready& w, const X& x) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            linear_op::multiply<Bf16s>(sum, w.v[half], rounded<Bf16s>(x.v + 2 * half, 1.0f));
        }
    }
};

// Weights of a tile, which become bf16 on their way to shared memory: once for the block there, where each of the warps
// that share a panel would have to do it for itself behind it.
template <class T>
struct WidenedWeights {
    static const u32 PIECES = T::FEATURES * 4 / T::THREADS;
    const LinearParams& p;
    u32 first;
    Words4 bytes[PIECES];
    float scales[PIECES];
    SHARED_DEVICE WidenedWeights(const LinearParams& params, const TilePlace<T>& at)
        : p(params), first(at.first_panel * PANEL) {}
    // A step is a block.
    static SHARED_DEVICE u32 segment(const LinearParams& p) { return p.segment; }

    // What was loaded a step before is widened; it is multiplied two steps later, when all threads have met again.
    SHARED_DEVICE void fetch(u8* stages, u32 step, u32 steps) {
        if (step > 0 && step - 1 < steps) widen_step(stages + (step - 1) % STAGES * T::STAGE);
        if (step < steps) load_step(step);
    }
    SHARED_DEVICE void load_step(u32 step) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = threadIdx.x + i * T::THREADS, row = first + at / 4;
            if (row < p.panels * PANEL) {
                bytes[i] = load_once(p.weight + (u64(row) * p.blocks + step) * BLOCK + at % 4 * 16);
                scales[i] = *reinterpret_cast<const float*>(p.multipliers + f8_scale(row, step, p.blocks));
            } else {
                bytes[i] = {};
                scales[i] = 0.0f;
            }
        }
    }
    SHARED_DEVICE void widen_step(u8* stage) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = threadIdx.x + i * T::THREADS;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                store(stage + place_in_stage(at / 4, half * 4 + at % 4), widened(bytes[i], half, scales[i]));
            }
        }
    }
};

// Of flat tiles: a lane widens them behind shared memory.
struct FlatF8 : NarrowWeights {
    typedef Bf16s Word;
    static const bool RESTS = false;
    static SHARED_DEVICE u64 multipliers_at(u32 row, u32 step, u32 blocks) { return f8_scale(row, step, blocks); }
    static SHARED_DEVICE u32 x_piece(u32 half, u32 t) { return half * 4 + t; }
    struct Rows : NarrowWeights::Rows {
        using NarrowWeights::Rows::Rows;
        SHARED_DEVICE void half(Words4 (&to)[2], u32 half) const {
#pragma unroll
            for (u32 r = 0; r < 2; r++) to[r] = widened(bytes[r], half, bits_float(multipliers.v[r]));
        }
    };
};

template <class T>
SHARED_DEVICE void f8_tile(const LinearParams& p, u32 row_tile, u32 feature_tile) {
    bf16_tile<T, WidenedWeights<T>>(p, row_tile, feature_tile);
}

}
