// Products with weights of sixteen bits a number, as they lie in a checkpoint: x takes the same type, sums are f32.
//
// Sums on matrix units are in the order in which they are asked for, and so that is the same on every path: of a block of
// 32 input features lane t has 8t..8t+7, the first four in one product and the others in the next; blocks ascend; and
// each segment of K begins at zero.
#include "linear_few.cuh"
#include "linear_flat.cuh"

namespace linear_op {

// Input features of a block.
const u32 BLOCK_FEATURES = 32;

// x from the copy that another kernel made before.
template <class Word>
struct Copied : Unscaled {
    typedef float Sum;
    struct Weights {
        Words4 v[2];
    };
    // What is multiplied: made of weights once for all rows of x.
    typedef Weights Ready;
    struct X {
        Words4 v;
    };
    static const bool RESTS = false;
    static const int AHEAD = 4;
    static const int X_REGISTERS = 32;
    // Where a lane loads from.
    typedef RowsOfPanel Source;
    static SHARED_DEVICE Source source(const LinearParams& p, u32 panel, u32 g, u32 t) { return rows_of_panel(p, panel, g, t); }
    static SHARED_DEVICE void load(Weights& w, const Source& from, u32 block) { load_two_rows(w.v, from, block); }
    static SHARED_DEVICE const Ready& ready(const Weights& w) { return w; }
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        x.v = load_if(p.copy + u64(row) * p.copy_bytes + block * BLOCK + t * 16, wanted);
    }
    static SHARED_DEVICE void multiply(float (&sum)[4], const Weights& w, const X& x) {
        linear_op::multiply<Word>(sum, w.v, x.v);
    }
};

// Eight neighbours of a row of x, times `up`, rounded.
template <class Word>
SHARED_DEVICE Words4 rounded(const Floats4* x, float up) {
    Words4 d;
#pragma unroll
    for (int i = 0; i < 4; i++) d.v[i] = Word::pack(x[i / 2].v[i % 2 * 2] * up, x[i / 2].v[i % 2 * 2 + 1] * up);
    return d;
}

// x as it is, of whole vectors, rounded where it is multiplied: no kernel has to run before this one.
template <class Word>
struct Direct : Copied<Word> {
    typedef typename Copied<Word>::Weights Weights;
    struct X {
        Floats4 v[2];
    };
    // Of this lane's row of x.
    float up = 1.0f;
    template <class P>
    static SHARED_DEVICE void load_x(X& x, const P& p, u32 row, bool wanted, bool, u32 block, u32 t) {
        const float* from = x_of_lane(p, row);
        u32 k = block * BLOCK_FEATURES + t * 8;
        x.v[0] = load_vector(p, from, k, wanted);
        x.v[1] = load_vector(p, from, k + 4, wanted);
    }
    SHARED_DEVICE void multiply(float (&sum)[4], const Weights& w, const X& x) const {
        linear_op::multiply<Word>(sum, w.v, rounded<Word>(x.v, up));
    }
};

// x times `up`, rounded, zeros up to a whole number of blocks: a block of 256 threads a row.
template <class Word, class P>
SHARED_DEVICE void round_row(const P& p, u32 row, float up) {
    const float* x = x_row(p, row);
    u8* copy = p.copy + u64(row) * p.copy_bytes;
    for (u32 at = threadIdx.x * 16; at < p.copy_bytes; at += 256 * 16) {
        Words4 words;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Floats4 four = load_x(p, x, at / 2 + i * 4);
            words.v[2 * i] = Word::pack(four.v[0] * up, four.v[1] * up);
            words.v[2 * i + 1] = Word::pack(four.v[2] * up, four.v[3] * up);
        }
        if (p.turned) {
#pragma unroll
            for (u32 s = 0; s < 4; s++) store_word(copy + at / 64 * 64 + s * 16 + at % 64 / 4, words.v[s]);
        } else {
            store(copy + at, words);
        }
    }
}

// `factor(row)` is what sums of a row are multiplied with.
template <class T, class Word, class Weights = CopiedWeights<T>, class Factor>
SHARED_DEVICE void tile_16bit(const LinearParams& p, u32 row_tile, u32 feature_tile, Factor factor) {
    SHARED_BYTES(stages);
    TilePlace<T> at = tile_place<T>(p, row_tile, feature_tile);
    if (at.rows == 0) return;
    float sum[T::MT][T::NT][4], total[T::MT][T::NT][4];
    clear<T>(sum);
    clear<T>(total);
    Weights weights(p, at);
    u32 segment = Weights::segment(p), left = segment;
    tile_products<T, Word>(sum, p, at, weights, p.copy, true, stages, [&](bool last) {
        if (--left > 0 && !last) return;
        left = segment;
        end_segment<T>(total, sum);
    });
    scale_totals<T>(total, at, factor);
    finish_tile<T>(total, p, at, stages);
}

template <class T, class Weights = CopiedWeights<T>>
SHARED_DEVICE void bf16_tile(const LinearParams& p, u32 row_tile, u32 feature_tile) {
    tile_16bit<T, Bf16s, Weights>(p, row_tile, feature_tile, [](u32) { return 1.0f; });
}

}
