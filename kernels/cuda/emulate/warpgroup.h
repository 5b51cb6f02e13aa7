// The words of warpgroup_machine.cuh for the host.
#pragma once
#include "simt.h"

struct alignas(8) Barrier {
    u64 state;
};
// What crates/cuda/src/driver/emulated.rs makes.
struct alignas(64) TileMap {
    u64 address;
    // From a row to the next, and of its numbers.
    u64 stride;
    u32 row_bytes;
    u32 rows;
    // Of a tile.
    u32 line_bytes;
    u32 lines;
    u64 rest[12];
};

namespace emulate __attribute__((visibility("hidden"))) {
u32 shared_offset(const void* at);
void start_barrier(Barrier& barrier, u32 arrivals);
void arrive(Barrier& barrier, u32 bytes);
void await(Barrier& barrier, u32 phase);
void start_tile(void* shared, const TileMap& map, u32 x, u32 y, Barrier& barrier);
void sync_some(u32 number, u32 threads);
// What a product adds to the warp's part of `count` sums a lane: `a` from its registers or, where there are none, from
// shared memory.
struct Factors {
    const u32* a;
    u64 a_matrix, b_matrix;
    bool add, transposed;
};
void begin_products();
void start_product(Wait word, float* d, u32 count, const Factors& factors);
void commit_products();
void wait_products(u32 left);
}  // namespace emulate

SHARED_DEVICE u32 shared_address(const void* at) { return emulate::shared_offset(at); }

SHARED_DEVICE void barrier_init(Barrier& barrier, u32 arrivals) { emulate::start_barrier(barrier, arrivals); }
SHARED_DEVICE void barriers_ready() {}
SHARED_DEVICE void barrier_arrive(Barrier& barrier) { emulate::arrive(barrier, 0); }
SHARED_DEVICE void barrier_expect(Barrier& barrier, u32 bytes) { emulate::arrive(barrier, bytes); }
SHARED_DEVICE void barrier_wait(Barrier& barrier, u32 phase) { emulate::await(barrier, phase); }
SHARED_DEVICE void copy_tile(void* shared, const TileMap& map, u32 x, u32 y, Barrier& barrier) {
    emulate::start_tile(shared, map, x, y, barrier);
}
SHARED_DEVICE void sync_some(u32 number, u32 threads) { emulate::sync_some(number, threads); }

template <int N>
SHARED_DEVICE void fewer_registers() {}
template <int N>
SHARED_DEVICE void more_registers() {}
SHARED_DEVICE void shared_written() {}

template <class T, int N>
SHARED_DEVICE void products_hold(T (&)[N]) {}
SHARED_DEVICE void products_begin() { emulate::begin_products(); }
SHARED_DEVICE void products_commit() { emulate::commit_products(); }
template <int LEFT>
SHARED_DEVICE void products_wait() {
    emulate::wait_products(LEFT);
}

template <int TRANSPOSED, int N>
SHARED_DEVICE void multiply_bf16(float (&d)[N], const u32 (&a)[4], u64 b, bool add) {
    emulate::start_product(emulate::Wait::MmaBf16, d, N, {a, 0, b, add, TRANSPOSED != 0});
}
template <int TRANSPOSED, int N>
SHARED_DEVICE void multiply_f16(float (&d)[N], const u32 (&a)[4], u64 b, bool add) {
    emulate::start_product(emulate::Wait::MmaF16, d, N, {a, 0, b, add, TRANSPOSED != 0});
}
SHARED_DEVICE void multiply_bf16(float (&d)[32], u64 a, u64 b, bool add) {
    emulate::start_product(emulate::Wait::MmaBf16, d, 32, {nullptr, a, b, add, false});
}
