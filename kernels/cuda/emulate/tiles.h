// A warp's matrix instructions, done for all its lanes at once.
#pragma once
#include "simt.h"

namespace emulate __attribute__((visibility("hidden"))) {

// Where each lane has its part of the result and of the operands.
struct Registers {
    void* d[32];
    const void* a[32];
    const void* b[32];
};

typedef float Row __attribute__((vector_size(16)));

// d[16][8] += a[16][K] b[K][8]: sums from d on, columns of a ascending.
template <u32 K>
void multiply(float (&d)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
    for (u32 i = 0; i < 16; i += 2) {
        Row sums[4];
        memcpy(sums, d[i], sizeof sums);
        for (u32 k = 0; k < K; k++) {
            Row left, right;
            memcpy(&left, b[k], sizeof left);
            memcpy(&right, b[k] + 4, sizeof right);
            sums[0] += a[i][k] * left;
            sums[1] += a[i][k] * right;
            sums[2] += a[i + 1][k] * left;
            sums[3] += a[i + 1][k] * right;
        }
        memcpy(d[i], sums, sizeof sums);
    }
}

// What a word holds.
struct Bf16s {
    static const u32 COUNT = 2;
    static void unpack(float (&to)[2], u32 word) {
        to[0] = bits_float(word << 16);
        to[1] = bits_float(word & 0xffff0000u);
    }
};
struct Halves {
    static const u32 COUNT = 2;
    static void unpack(float (&to)[2], u32 word) {
        to[0] = half_float(u16(word));
        to[1] = half_float(u16(word >> 16));
    }
};
struct Bytes {
    static const u32 COUNT = 4;
    static void unpack(float (&to)[4], u32 word) {
        for (u32 i = 0; i < 4; i++) to[i] = float(i8(word >> (8 * i)));
    }
};

// The matrices of which each lane has words.
template <class Word>
struct Tiles {
    static const u32 P = Word::COUNT;
    float a[16][8 * P], b[8 * P][8], d[16][8];

    explicit Tiles(const Registers& w) {
        for (u32 lane = 0; lane < 32; lane++) {
            u32 row = lane / 4, column = lane % 4 * P;
            const u32 *la = static_cast<const u32*>(w.a[lane]), *lb = static_cast<const u32*>(w.b[lane]);
            put(row, column, la[0]);
            put(row + 8, column, la[1]);
            put(row, column + 4 * P, la[2]);
            put(row + 8, column + 4 * P, la[3]);
            float low[P], high[P];
            Word::unpack(low, lb[0]);
            Word::unpack(high, lb[1]);
            for (u32 i = 0; i < P; i++) {
                b[column + i][row] = low[i];
                b[column + 4 * P + i][row] = high[i];
            }
        }
    }
    void put(u32 row, u32 column, u32 word) {
        float values[P];
        Word::unpack(values, word);
        memcpy(&a[row][column], values, sizeof values);
    }
};

template <class Word>
void multiply_floats(const Registers& w) {
    Tiles<Word> t(w);
    for (u32 lane = 0; lane < 32; lane++) {
        const float* ld = static_cast<const float*>(w.d[lane]);
        memcpy(&t.d[lane / 4][lane % 4 * 2], ld, 8);
        memcpy(&t.d[lane / 4 + 8][lane % 4 * 2], ld + 2, 8);
    }
    multiply(t.d, t.a, t.b);
    for (u32 lane = 0; lane < 32; lane++) {
        float* ld = static_cast<float*>(w.d[lane]);
        memcpy(ld, &t.d[lane / 4][lane % 4 * 2], 8);
        memcpy(ld + 2, &t.d[lane / 4 + 8][lane % 4 * 2], 8);
    }
}

// Sums of 32 products of bytes are below 2^24: floats hold them exactly.
inline void multiply_bytes(const Registers& w) {
    Tiles<Bytes> t(w);
    memset(t.d, 0, sizeof t.d);
    multiply(t.d, t.a, t.b);
    for (u32 lane = 0; lane < 32; lane++) {
        int* ld = static_cast<int*>(w.d[lane]);
        const float *upper = &t.d[lane / 4][lane % 4 * 2], *lower = &t.d[lane / 4 + 8][lane % 4 * 2];
        ld[0] = int(u32(ld[0]) + u32(int(upper[0])));
        ld[1] = int(u32(ld[1]) + u32(int(upper[1])));
        ld[2] = int(u32(ld[2]) + u32(int(lower[0])));
        ld[3] = int(u32(ld[3]) + u32(int(lower[1])));
    }
}

inline void load_rows(const Registers& w) {
    for (u32 lane = 0; lane < 32; lane++) {
        u32* d = static_cast<u32*>(w.d[lane]);
        for (u32 i = 0; i < 4; i++) d[i] = static_cast<const u32*>(w.a[i * 8 + lane / 4])[lane % 4];
    }
}

inline void load_columns(const Registers& w) {
    for (u32 lane = 0; lane < 32; lane++) {
        u32* d = static_cast<u32*>(w.d[lane]);
        for (u32 i = 0; i < 4; i++) {
            const void* const* rows = &w.a[i * 8 + lane % 4 * 2];
            d[i] = static_cast<const u16*>(rows[0])[lane / 4] | u32(static_cast<const u16*>(rows[1])[lane / 4]) << 16;
        }
    }
}

}  // namespace emulate
