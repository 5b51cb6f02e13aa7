// Products with q8 and q4 weights: x becomes bytes, as crates/tensor/src/quant.rs states, and sums are exact in i32, in
// whatever order.
#include "linear_few.cuh"
#include "linear_flat.cuh"

namespace linear_op {

// Of quant.rs.
const float BYTE = 127.0f;
const float OUTLIER = 24.0f;

struct Q8 : Unscaled {
    typedef int Sum;
    struct Weights {
        Words4 v[2];
    };
    typedef Weights Ready;
    struct X {
        Words4 v;
    };
    static const bool RESTS = true;
    static const int AHEAD = 4;
    static const int X_REGISTERS = 32;
    typedef RowsOfPanel Source;
    static SHARED_DEVICE Source source(const LinearParams& p, u32 panel, u32 g, u32 t) { return rows_of_panel(p, panel, g, t); }
    static SHARED_DEVICE void load(Weights& w, const Source& from, u32 block) { load_two_rows(w.v, from, block); }
    static SHARED_DEVICE const Ready& ready(const Weights& w) { return w; }
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool rest, u32 block, u32 t) {
        x.v = load_if((rest ? p.rests : p.copy) + u64(row) * p.copy_bytes + block * BLOCK + t * 16, wanted);
    }
    static SHARED_DEVICE void multiply(int (&sum)[4], const Weights& w, const X& x) {
        linear_op::multiply<Bytes>(sum, w.v, x.v);
    }
};

struct Q4 : Unscaled {
    typedef int Sum;
    struct Weights {
        Words4 v[2];
        Words2 multipliers;
    };
    typedef Weights Ready;
    struct X {
        Words4 v[2];
    };
    static const bool RESTS = true;
    static const int AHEAD = 4;
    static const int X_REGISTERS = 16;
    struct Source {
        RowsOfPanel rows;
        const u8* multipliers;
    };
    static SHARED_DEVICE Source source(const LinearParams& p, u32 panel, u32 g, u32 t) {
        return {rows_of_panel(p, panel, g, t), p.multipliers + q4_multipliers(panel * PANEL + g, 0, p.blocks)};
    }
    static SHARED_DEVICE void load(Weights& w, const Source& from, u32 block) {
        load_two_rows(w.v, from.rows, block);
        w.multipliers = load_two(from.multipliers + u64(block) * Q4_MULTIPLIERS);
    }
    static SHARED_DEVICE const Ready& ready(const Weights& w) { return w; }
    static SHARED_DEVICE void load_x(X& x, const LinearParams& p, u32 row, bool wanted, bool rest, u32 block, u32 t) {
        const u8* from = (rest ? p.rests : p.copy) + u64(row) * p.copy_bytes + block * Q4_BLOCK + t * 32;
        x.v[0] = load_if(from, wanted);
        x.v[1] = load_if(from + 16, wanted);
    }
    // Nibbles at the upper end of their bytes are sixteen times as large, and signed.
    static SHARED_DEVICE void multiply(int (&sum)[4], const Weights& w, const X& x) {
        int block[4] = {0, 0, 0, 0};
#pragma unroll
        for (int group = 0; group < 4; group++) {
            const u32 upper = 0xf0f0f0f0u;
            u32 low = w.v[0].v[group], high = w.v[1].v[group];
            u32 a[4] = {low << 4 & upper, high << 4 & upper, low & upper, high & upper};
            u32 b[2] = {x.v[group / 2].v[group % 2 * 2], x.v[group / 2].v[group % 2 * 2 + 1]};
            int of_group[4] = {0, 0, 0, 0};
            mma_s8(of_group, a, b);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                block[i] += of_group[i] * i8(w.multipliers.v[i / 2] >> (8 * group));
            }
        }
        // 128 products of at most 127 * 120, sixteen times: far from the end of an i32.
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += block[i] >> 4;
    }
};

// Four nibbles in the lower halves of their bytes, times a multiplier of at most 15: signed bytes, with four products
// in one. 8 is added to nibbles first and 8 times the multiplier subtracted last, byte by byte: the upper bits are kept
// out of it, so that no byte borrows from the next. A negative product is the complement of one less.
SHARED_DEVICE u32 times(u32 nibbles, int multiplier) {
    const u32 upper = 0x80808080u;
    u32 size = multiplier < 0 ? -multiplier : multiplier, negative = multiplier < 0 ? 0xffffffffu : 0;
    u32 products = ((nibbles & 0x0f0f0f0fu) ^ 0x08080808u) * size;
    u32 less = size * 0x08080808u + (negative & 0x01010101u);
    return ((products | upper) - less) ^ (~products & upper) ^ negative;
}

// q4 weights, which become bytes on their way: of a step in the order in which `linear_bytes_x` has x.
template <class T>
struct SpreadWeights {
    static const u32 PIECES = T::FEATURES * 4 / T::THREADS;
    const LinearParams& p;
    u32 first;
    Words4 nibbles[PIECES];
    u32 multipliers[PIECES];
    SHARED_DEVICE SpreadWeights(const LinearParams& params, const TilePlace<T>& at)
        : p(params), first(at.first_panel * PANEL) {}

    // What was loaded a step before is spread; it is multiplied two steps later, when all threads have met again.
    SHARED_DEVICE void fetch(u8* stages, u32 step, u32 steps) {
        if (step > 0 && step - 1 < steps) spread(stages + (step - 1) % STAGES * T::STAGE);
        if (step < steps) load_step(step);
    }
    SHARED_DEVICE void load_step(u32 step) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = threadIdx.x + i * T::THREADS, row = first + at / 4;
            if (row < p.panels * PANEL) {
                nibbles[i] = load_once(p.weight + (u64(row) * p.blocks + step) * BLOCK + at % 4 * 16);
                multipliers[i] = *reinterpret_cast<const u32*>(p.multipliers + q4_multipliers(row, step, p.blocks));
            } else {
                nibbles[i] = {};
                multipliers[i] = 0;
            }
        }
    }
    SHARED_DEVICE void spread(u8* stage) {
#pragma unroll
        for (u32 i = 0; i < PIECES; i++) {
            u32 at = threadIdx.x + i * T::THREADS;
#pragma unroll
            for (u32 pair = 0; pair < 2; pair++) {
                Words4 words;
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    u32 group = pair * 2 + j;
                    int multiplier = i8(multipliers[i] >> (8 * group));
                    words.v[j * 2] = times(nibbles[i].v[group], multiplier);
                    words.v[j * 2 + 1] = times(nibbles[i].v[group] >> 4, multiplier);
                }
                store(stage + place_in_stage(at / 4, at % 4 * 2 + pair), words);
            }
        }
    }
};

// q4 weights of flat tiles, which become bytes behind shared memory. A lane's sixteen bytes are of all four groups: two and
// two of them are of pieces of x that lie beside each other.
struct FlatQ4 : NarrowWeights {
    typedef Bytes Word;
    static const bool RESTS = true;
    static SHARED_DEVICE u64 multipliers_at(u32 row, u32 step, u32 blocks) { return q4_multipliers(row, step, blocks); }
    static SHARED_DEVICE u32 x_piece(u32 half, u32 t) { return 2 * t + half; }
    struct Rows : NarrowWeights::Rows {
        using NarrowWeights::Rows::Rows;
        SHARED_DEVICE void half(Words4 (&to)[2], u32 half) const {
#pragma unroll
            for (u32 r = 0; r < 2; r++) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    u32 group = half * 2 + j;
                    int multiplier = i8(multipliers.v[r] >> (8 * group));
                    to[r].v[j * 2] = times(bytes[r].v[group], multiplier);
                    to[r].v[j * 2 + 1] = times(bytes[r].v[group] >> 4, multiplier);
                }
            }
        }
    };
};
typedef WholeWeights<Bytes, true> FlatQ8;

// What sums are as numbers: those of x (pass 0), and then those of its rest.
template <class T>
SHARED_DEVICE void scale_sums(float (&value)[T::MT][T::NT][4], const int (&sum)[T::MT][T::NT][4], const LinearParams& p,
                              const TilePlace<T>& at, u32 pass) {
#pragma unroll
    for (int n = 0; n < T::NT; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 row = (at.warp_n * T::NT + n) * 8 + at.t * 2 + i;
            RowScales scales = p.row_scales[at.first_row + min_u32(row, at.rows - 1)];
#pragma unroll
            for (int m = 0; m < T::MT; m++) {
#pragma unroll
                for (int j = i; j < 4; j += 2) {
                    float& v = value[m][n][j];
                    v = pass == 0 ? float(sum[m][n][j]) * scales.scale : with_rest(v, sum[m][n][j], scales);
                }
            }
        }
    }
}

template <class T, class Weights>
SHARED_DEVICE void bytes_tile(const LinearParams& p, u32 row_tile, u32 feature_tile) {
    SHARED_BYTES(stages);
    TilePlace<T> at = tile_place<T>(p, row_tile, feature_tile);
    if (at.rows == 0) return;
    // The rows of a warp are as many as its lanes.
    u32 own = at.warp_n * WARP + threadIdx.x % WARP;
    bool rest = own < at.rows && has_rest(p.row_scales[at.first_row + own]);
    bool warp_rest = __any_sync(EVERY_LANE, rest);
    u32 passes = __syncthreads_or(rest) ? 2 : 1;

    float value[T::MT][T::NT][4];
    for (u32 pass = 0; pass < passes; pass++) {
        int sum[T::MT][T::NT][4];
        clear<T>(sum);
        Weights weights(p, at);
        const u8* x = pass == 0 ? p.copy : p.rests;
        tile_products<T, Bytes>(sum, p, at, weights, x, pass == 0 || warp_rest, stages, [](bool) {});
        scale_sums(value, sum, p, at, pass);
    }
    finish_tile<T>(value, p, at, stages);
}

// As `flat_floats`. Parts are of as many lines each, but for the last.
template <class W, int N>
SHARED_DEVICE void flat_bytes(const LinearParams& p) {
    typedef typename Flat<W, N>::T T;
    SHARED_BYTES(stages);
    TilePlace<T> at = tile_place<T>(p, 0, blockIdx.y);
    if (at.rows == 0) return;
    // There are as many threads as rows, and more.
    u32 own = threadIdx.x;
    bool rests = __syncthreads_or(own < at.rows && has_rest(p.row_scales[own]));
    int sum[T::MT][T::NT][4], rest_sum[T::MT][T::NT][4];
    clear<T>(sum);
    clear<T>(rest_sum);
    Steps steps = steps_of(p, blockIdx.x, ceil_div(ceil_div(p.copy_bytes, LINE), p.parts));
    flat_products<W, N>(sum, rest_sum, p, at, rests, stages, steps, [](bool) {});
    if (p.parts > 1) {
        Parts<T, 2> parts = {p, blockIdx.y, blockIdx.x, at.rows};
        parts.leave(sum, 0);
        if (rests) parts.leave(rest_sum, 1);
        if (!parts.ends()) return;
        parts.collect(sum, 0);
        if (rests) parts.collect(rest_sum, 1);
    }
    float value[T::MT][T::NT][4];
    scale_sums(value, sum, p, at, 0);
    if (rests) scale_sums(value, rest_sum, p, at, 1);
    finish_tile<T>(value, p, at, stages);
}

// Measuring and rounding a row of x: 256 threads, which keep 16,384 numbers of it from pass to pass. What is past them is read
// in each.
namespace bytes_x {

const u32 THREADS = 256;
struct Shared {
    float sums[THREADS / WARP];
    float mosts[THREADS / WARP];
    float exact;
};

// Sums and maxima over a block, the same in each thread.
SHARED_DEVICE void block_sum_and_most(float& sum, float& most, Shared& shared) {
    sum = warp_sum(sum);
    most = warp_max(most);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        shared.sums[threadIdx.x / WARP] = sum;
        shared.mosts[threadIdx.x / WARP] = most;
    }
    __syncthreads();
    sum = most = 0.0f;
    for (u32 i = 0; i < THREADS / WARP; i++) {
        sum += shared.sums[i];
        most = fmaxf(most, shared.mosts[i]);
    }
}

// The sum of magnitudes in the order of `ByteRow`: sixteen lanes, one after the other.
SHARED_DEVICE float exact_sum(const LinearParams& p, const float* x, Shared& shared) {
    if (threadIdx.x < WARP) {
        float sum = 0.0f;
        if (threadIdx.x < 16) {
            for (u32 k = threadIdx.x; k < p.width; k += 16) sum += fabsf(x[k]);
        }
        for (u32 half = 8; half > 0; half /= 2) sum += __shfl_down_sync(EVERY_LANE, sum, half);
        if (threadIdx.x == 0) shared.exact = sum;
    }
    __syncthreads();
    return shared.exact;
}

SHARED_DEVICE float whole(float x, float inverse) { return fminf(fmaxf(round_even(x * inverse), -BYTE), BYTE); }
SHARED_DEVICE float left(float x, float scale, float inverse) { return fmaf(-whole(x, inverse), scale, x); }

// Four whole numbers as bytes: the low bits of 1.5 * 2^23 with one added are the number.
SHARED_DEVICE u32 word(const Floats4& v) {
    u32 bits[4];
#pragma unroll
    for (int i = 0; i < 4; i++) bits[i] = float_bits(v.v[i] + 12582912.0f);
    return __byte_perm(__byte_perm(bits[0], bits[1], 0x40), __byte_perm(bits[2], bits[3], 0x40), 0x5410);
}

// A row of x, four input features for each word of its copy, zeros past its end: thread t has words t, t + 256 and so on.
template <class Order, class P>
struct Row {
    static const u32 KEPT = 16, AHEAD = 4;
    const P& p;
    const float* x;
    u32 words;
    Floats4 kept[KEPT];

    SHARED_DEVICE Row(const P& p, u32 row) : p(p), x(x_row(p, row)), words(p.copy_bytes / 4) {
#pragma unroll
        for (u32 i = 0; i < KEPT; i++) {
            kept[i] = {};
            if (i * THREADS < words) kept[i] = load_x(p, x, Order::of(threadIdx.x + i * THREADS));
        }
    }

    // Calls use(word, x) with all of the thread's.
    template <class Use>
    SHARED_DEVICE void each(Use use) const {
#pragma unroll
        for (u32 i = 0; i < KEPT; i++) {
            u32 word = threadIdx.x + i * THREADS;
            if (word >= words) return;
            use(word, kept[i]);
        }
        for (u32 first = threadIdx.x + KEPT * THREADS; first < words; first += AHEAD * THREADS) {
            Floats4 next[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) next[i] = load_x(p, x, Order::of(first + i * THREADS));
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                if (first + i * THREADS < words) use(first + i * THREADS, next[i]);
            }
        }
    }
};

struct Measure {
    float scale;
    float inverse;
    float rest;
    float rest_inverse;
};

template <class Row>
SHARED_DEVICE Measure measure(const LinearParams& p, const Row& row, Shared& shared) {
    float sum = 0.0f, most = 0.0f;
    row.each([&](u32, const Floats4& v) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sum += fabsf(v.v[i]);
            most = fmaxf(most, fabsf(v.v[i]));
        }
    });
    block_sum_and_most(sum, most, shared);
    // Near the limit the order of the sum decides, and near the ends of the numbers it may. Two orders of at most 133,144
    // (`quant::FEATURES`) differ by less than one in 512.
    float n = float(p.width);
    bool ordinary = sum == 0.0f || (sum > 1e-30f && sum < 1e38f);
    if (!(ordinary && fabsf(most - OUTLIER * (sum / n)) >= most / 512.0f)) sum = exact_sum(p, row.x, shared);

    Measure m = {0.0f, 0.0f, -1.0f, 0.0f};
    // Not a number, or too large for one.
    if (!(sum < infinity())) {
        m.scale = not_a_number();
        return m;
    }
    m.scale = most / BYTE;
    m.inverse = inverse_of(m.scale);
    if (!(most > OUTLIER * (sum / n))) return m;
    most = 0.0f;
    row.each([&](u32, const Floats4& v) {
#pragma unroll
        for (int i = 0; i < 4; i++) most = fmaxf(most, fabsf(left(v.v[i], m.scale, m.inverse)));
    });
    sum = 0.0f;
    block_sum_and_most(sum, most, shared);
    m.rest = most / BYTE;
    m.rest_inverse = inverse_of(m.rest);
    return m;
}

// Where a word of a copy comes from: its first input feature.
struct AsTheyLie {
    static SHARED_DEVICE u32 of(u32 word) { return word * 4; }
};
// As lanes want them that multiply with nibbles: 32 bytes of a block for lane t, of each group 4t..4t+3 and those + 16.
struct AsNibbles {
    static SHARED_DEVICE u32 of(u32 word) {
        u32 lane = word / 8 % 4, own = word % 8;
        return word / 32 * Q4_BLOCK + own / 2 * Q4_GROUP + own % 2 * 16 + lane * 4;
    }
};

// x as bytes, zeros up to a whole number of blocks, with its scales: a block a row.
template <class Order, class P>
SHARED_DEVICE void bytes(const P& p) {
    SHARED(Shared, shared);
    u32 row = blockIdx.x;
    if (row >= live_rows(p.live, p.rows)) return;
    Row<Order, P> x(p, row);
    Measure m = measure(p, x, shared);
    if (threadIdx.x == 0) p.row_scales[row] = {m.scale, m.rest};
    bool has_rest = m.rest >= 0.0f;
    u64 to = u64(row) * p.copy_bytes;
    x.each([&](u32 at, const Floats4& v) {
        Floats4 bytes, rest;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bytes.v[i] = whole(v.v[i], m.inverse);
            rest.v[i] = has_rest ? whole(left(v.v[i], m.scale, m.inverse), m.rest_inverse) : 0.0f;
        }
        store_word(p.copy + to + at * 4, word(bytes));
        if (has_rest) store_word(p.rests + to + at * 4, word(rest));
    });
}

}

}
