// What runs beside the threads of a block: copies of tiles, products of warpgroups, and the barriers that wait for them.
// Part of run.cpp.
//
// As late as a device may be, or, shuffled, at any time: tiles arrive when nobody can go on without them, and products are
// computed from what shared memory holds when they are waited for. Where they go is poison until then.
#pragma once
#include "tiles.h"
#include "warpgroup.h"

namespace emulate __attribute__((visibility("hidden"))) {

// What a Barrier holds. It waits for arrivals, and for bytes, of which more may have come than were expected yet.
struct Counts {
    u32 tag : 11, phase : 1, expected : 10, missing : 10;
    int bytes;
};
static_assert(sizeof(Counts) == sizeof(Barrier), "a barrier is eight bytes");
// Matrices lie in lines of so many bytes, eight of which begin on a multiple of their size.
const u32 LINE_BYTES = 128, LINES_BYTES = 1024;
const u32 BARRIER_TAG = 0x5ba;

struct TileCopy {
    u8* shared;
    TileMap map;
    i64 x, y;
    Barrier* barrier;
};

// A lane that waits for a barrier's phase.
struct Waiter {
    const Barrier* barrier;
    u32 bit;
    void* warp;
};

// A barrier of some of the block's threads.
struct SomeThreads {
    u32 arrived = 0, threads = 0;
    std::vector<Waiter> waiters;
};

const u32 MOST_SUMS = 128;
// Sums of a warp that products under way add to.
struct Sums {
    float* at[32];
    u32 count;
    u32 products;
    float value[32][MOST_SUMS];
};
struct Product {
    Sums* sums;
    Wait wait;
    u32 part;
    bool from_registers;
    u32 a[32][4];
    Factors factors;
};
// Products of a warp, in the order in which they were asked for. Those below an end are of a group that was ended.
struct Products {
    bool begun = false;
    std::vector<std::unique_ptr<Sums>> sums;
    std::vector<Product> all;
    std::vector<u32> ends;
};

// An element of a matrix in shared memory, of sixteen bits: PTX ISA, "Matrix Descriptor Format".
inline u32 element_offset(u64 matrix, u32 row, u32 k, bool transposed) {
    u32 begin = u32(matrix & 0x3fff) << 4, leading = u32(matrix >> 16 & 0x3fff) << 4, stride = u32(matrix >> 32 & 0x3fff) << 4;
    u32 at = begin + (transposed ? row / 64 * leading + row % 64 * 2 + k / 8 * stride + k % 8 * LINE_BYTES
                                 : row / 8 * stride + row % 8 * LINE_BYTES + k * 2);
    return at ^ (at >> 7 & 7) << 4;
}

template <class Word, class Read>
void multiply_some(Product& product, Read read) {
    const u32 COLUMNS = 16;
    Sums& sums = *product.sums;
    const Factors& f = product.factors;
    float a[16][COLUMNS];
    for (u32 row = 0; row < 16; row++) {
        for (u32 k = 0; k < COLUMNS; k += 2) {
            u32 lane = row % 8 * 4 + k % 8 / 2, word = row / 8 + k / 8 * 2, pair = product.a[lane][word];
            if (!product.from_registers) {
                pair = read(element_offset(f.a_matrix, product.part * 16 + row, k, false)) |
                       u32(read(element_offset(f.a_matrix, product.part * 16 + row, k + 1, false))) << 16;
            }
            float two[2];
            Word::unpack(two, pair);
            memcpy(&a[row][k], two, sizeof two);
        }
    }
    for (u32 column = 0; column < sums.count * 2; column += 8) {
        float b[COLUMNS][8], d[16][8];
        for (u32 k = 0; k < COLUMNS; k++) {
            for (u32 i = 0; i < 8; i++) {
                float two[2];
                Word::unpack(two, read(element_offset(f.b_matrix, column + i, k, f.transposed)));
                b[k][i] = two[0];
            }
        }
        for (u32 row = 0; row < 16; row++) {
            for (u32 i = 0; i < 8; i++) {
                d[row][i] = f.add ? sums.value[row % 8 * 4 + i / 2][column / 2 + row / 8 * 2 + i % 2] : 0.0f;
            }
        }
        multiply(d, a, b);
        for (u32 row = 0; row < 16; row++) {
            for (u32 i = 0; i < 8; i++) {
                sums.value[row % 8 * 4 + i / 2][column / 2 + row / 8 * 2 + i % 2] = d[row][i];
            }
        }
    }
}

}  // namespace emulate
