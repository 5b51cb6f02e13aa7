// The words of machine.cuh, and those of CUDA that kernels use, for the host: the same sources compile as C++17 and run
// without a device. Threads of a block are fibers that run to the next collective in a shuffled order (run.cpp).
#pragma once
#include <cmath>
#include <cstdio>
#include <cstring>

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define __host__
#define __device__
#define __global__
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Always, as on a device: no function of one file is then taken for another file's of the same name.
#define __forceinline__ inline __attribute__((always_inline))
#define SHARED_DEVICE __forceinline__

namespace emulate __attribute__((visibility("hidden"))) {

struct Dim3 {
    u32 x, y, z;
};
// What the threads of a block have in common, and one thread's own.
struct Place {
    Dim3 block, block_size, grid;
};
struct Here {
    Dim3 thread;
    u32 lane;
    const Place* place;
};
// A word or two: they fit what a loaded library may have of the quickest thread-local memory.
#if defined(__linux__) && defined(__GLIBC__)
#define ANYFLEET_QUICK __attribute__((tls_model("initial-exec")))
#else
#define ANYFLEET_QUICK
#endif
// The running thread.
extern __thread Here* here ANYFLEET_QUICK;

enum class Wait : u8 {
    Syncthreads,
    SyncthreadsOr,
    SyncthreadsAnd,
    SyncthreadsCount,
    Syncwarp,
    Shuffle,
    ShuffleXor,
    ShuffleDown,
    ShuffleUp,
    Ballot,
    Any,
    All,
    MmaBf16,
    MmaF16,
    MmaS8,
    Ldmatrix,
    LdmatrixTransposed,
    Product,
    ProductsWait,
    Barrier,
    SyncSome,
};

const u32 POISON = 0x7fc0deadu;

// Ends the launch with this line.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
int barrier(Wait wait, int value);
void syncwarp(u32 mask);
// Of each lane of the mask: what lane `from` gave.
u64 exchange(Wait wait, u32 mask, u64 value, u32 from);
u32 vote(Wait wait, u32 mask, bool value);
void mma(Wait wait, void* d, const u32* a, const u32* b);
void matrix_rows(Wait wait, u32* d, const void* row);
void* shared_memory(const void* declaration, const char* name, u32 bytes, u32 align);
u8* shared_bytes();
void start_copy(void* shared, const void* global, bool wanted);
void commit_copies();
void wait_copies(u32 left);
[[noreturn]] void misaligned(const char* what, const void* at);

template <class T>
T& shared(const void* declaration, const char* name) {
    return *static_cast<T*>(shared_memory(declaration, name, sizeof(T), alignof(T)));
}
template <class T>
struct Same {
    typedef T type;
};

}  // namespace emulate

#define threadIdx (emulate::here->thread)
#define blockIdx (emulate::here->place->block)
#define blockDim (emulate::here->place->block_size)
#define gridDim (emulate::here->place->grid)

// The function, and what the host side looks up by name: the size of its parameters, its launch bound, and one thread
// of it, which anyfleet_launch calls.
#define KERNEL(name, threads, Params)                                                 \
    static void name(const Params& p);                                                \
    extern "C" {                                                                      \
    extern __attribute__((visibility("default"))) const u32 anyfleet_##name##_params;  \
    extern __attribute__((visibility("default"))) const u32 anyfleet_##name##_threads; \
    const u32 anyfleet_##name##_params = sizeof(Params);                              \
    const u32 anyfleet_##name##_threads = threads;                                    \
    __attribute__((visibility("default"))) void anyfleet_##name(const void* p) {      \
        name(*static_cast<const Params*>(p));                                         \
    }                                                                                 \
    }                                                                                 \
    static void name([[maybe_unused]] const Params& p)
#define KERNEL_OF_BLOCKS(name, threads, blocks, Params) KERNEL(name, threads, Params)
// A declaration is known by the address of its own static.
#define SHARED(Type, name)          \
    static char name##_declaration; \
    Type& name = emulate::shared<Type>(&name##_declaration, #name)
#define SHARED_BYTES(name) u8* const name = emulate::shared_bytes()

SHARED_DEVICE u32 float_bits(float x) {
    u32 d;
    memcpy(&d, &x, 4);
    return d;
}
SHARED_DEVICE float bits_float(u32 x) {
    float d;
    memcpy(&d, &x, 4);
    return d;
}

namespace emulate {
SHARED_DEVICE u32 bf16_of(float x) {
    u32 bits = float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
}  // namespace emulate

SHARED_DEVICE u32 pack_bf16(float low, float high) { return emulate::bf16_of(low) | emulate::bf16_of(high) << 16; }
SHARED_DEVICE float half_float(u16 x) {
    u32 sign = u32(x & 0x8000u) << 16, rest = x & 0x7fffu;
    if (rest >= 0x7c00u) return bits_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // The bits as a float, times 2^112, the difference of the two exponents: exact, of subnormal halves too.
    return bits_float(sign | float_bits(bits_float(rest << 13) * bits_float(0x77800000u)));
}
SHARED_DEVICE u16 float_half(float x) {
    u32 bits = float_bits(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return 0x7fffu;
    if (rest >= 0x477ff000u) return u16(sign | 0x7c00u);
    if (rest < 0x38800000u) {
        // Half's subnormals are multiples of 2^-24, as are floats between 0.5 and 1.
        return u16(sign | (float_bits(bits_float(rest) + 0.5f) - 0x3f000000u));
    }
    return u16(sign | (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13);
}
SHARED_DEVICE void halves_floats(float& low, float& high, u32 two) {
    low = half_float(u16(two));
    high = half_float(u16(two >> 16));
}
SHARED_DEVICE void f8_floats(float (&d)[4], u32 four) {
    for (u32 i = 0; i < 4; i++) {
        u32 byte = four >> (8 * i);
        // The bits in the place of a float's are 2^-120 times the number.
        d[i] = bits_float((byte & 0x80u) << 24 | (byte & 0x7fu) << 20) * bits_float(0x7b800000u);
    }
}

SHARED_DEVICE u32 pack_f16(float low, float high) { return float_half(low) | u32(float_half(high)) << 16; }

// Products are exact in float; from the accumulator on, they are added one by one, columns of `a` ascending. A device
// adds several at once and rounds less often.
SHARED_DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulate::mma(emulate::Wait::MmaBf16, d, a, b);
}
SHARED_DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulate::mma(emulate::Wait::MmaF16, d, a, b);
}
SHARED_DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulate::mma(emulate::Wait::MmaS8, d, a, b);
}
SHARED_DEVICE void ldmatrix(u32 (&d)[4], const void* row) {
    emulate::matrix_rows(emulate::Wait::Ldmatrix, d, row);
}
SHARED_DEVICE void ldmatrix_transposed(u32 (&d)[4], const void* row) {
    emulate::matrix_rows(emulate::Wait::LdmatrixTransposed, d, row);
}

// The target is poison until the copy is waited for, and only then is the source read: as early and as late as a device
// may be.
SHARED_DEVICE void copy_async(void* shared, const void* global, bool wanted = true) {
    emulate::start_copy(shared, global, wanted);
}
SHARED_DEVICE void copy_commit() { emulate::commit_copies(); }
template <int N>
SHARED_DEVICE void copy_wait() {
    emulate::wait_copies(N);
}

struct alignas(16) Words4 {
    u32 v[4];
};
SHARED_DEVICE Words4 load_once(const void* from) {
    if (reinterpret_cast<__UINTPTR_TYPE__>(from) % 16) emulate::misaligned("load_once", from);
    Words4 d;
    memcpy(&d, from, 16);
    return d;
}
SHARED_DEVICE Words4 load_if(const void* from, bool wanted) { return wanted ? load_once(from) : Words4{}; }

SHARED_DEVICE void __syncthreads() { emulate::barrier(emulate::Wait::Syncthreads, 0); }
SHARED_DEVICE int __syncthreads_or(int x) { return emulate::barrier(emulate::Wait::SyncthreadsOr, x); }
SHARED_DEVICE int __syncthreads_and(int x) { return emulate::barrier(emulate::Wait::SyncthreadsAnd, x); }
SHARED_DEVICE int __syncthreads_count(int x) { return emulate::barrier(emulate::Wait::SyncthreadsCount, x); }
SHARED_DEVICE void __syncwarp(u32 mask = 0xffffffffu) { emulate::syncwarp(mask); }
SHARED_DEVICE u32 __ballot_sync(u32 mask, int x) { return emulate::vote(emulate::Wait::Ballot, mask, x != 0); }
SHARED_DEVICE int __any_sync(u32 mask, int x) { return int(emulate::vote(emulate::Wait::Any, mask, x != 0)); }
SHARED_DEVICE int __all_sync(u32 mask, int x) { return int(emulate::vote(emulate::Wait::All, mask, x != 0)); }

namespace emulate {
template <class T>
SHARED_DEVICE T shuffle(Wait wait, u32 mask, T value, u32 from) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles are of words");
    u64 word = 0;
    memcpy(&word, &value, sizeof(T));
    word = exchange(wait, mask, word, from);
    memcpy(&value, &word, sizeof(T));
    return value;
}
// A lane that looks beyond its segment of `width` lanes gets its own value.
SHARED_DEVICE u32 above(u32 from, u32 lane, u32 width) { return from > (lane | (width - 1)) ? lane : from; }
SHARED_DEVICE u32 below(u32 delta, u32 lane, u32 width) { return (lane & (width - 1)) < delta ? lane : lane - delta; }
}  // namespace emulate

template <class T>
SHARED_DEVICE T __shfl_sync(u32 mask, T value, int from, int width = 32) {
    u32 lane = emulate::here->lane, w = u32(width);
    return emulate::shuffle(emulate::Wait::Shuffle, mask, value, (lane & ~(w - 1)) | (u32(from) & (w - 1)));
}
template <class T>
SHARED_DEVICE T __shfl_xor_sync(u32 mask, T value, int bits, int width = 32) {
    u32 lane = emulate::here->lane;
    return emulate::shuffle(emulate::Wait::ShuffleXor, mask, value, emulate::above(lane ^ u32(bits), lane, u32(width)));
}
template <class T>
SHARED_DEVICE T __shfl_down_sync(u32 mask, T value, u32 delta, int width = 32) {
    u32 lane = emulate::here->lane;
    return emulate::shuffle(emulate::Wait::ShuffleDown, mask, value, emulate::above(lane + delta, lane, u32(width)));
}
template <class T>
SHARED_DEVICE T __shfl_up_sync(u32 mask, T value, u32 delta, int width = 32) {
    u32 lane = emulate::here->lane;
    return emulate::shuffle(emulate::Wait::ShuffleUp, mask, value, emulate::below(delta, lane, u32(width)));
}

// Blocks of a launch may run on several processors.
template <class T>
SHARED_DEVICE T atomicAdd(T* at, typename emulate::Same<T>::type x) {
    return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
}
template <>
SHARED_DEVICE float atomicAdd<float>(float* at, float x) {
    u32* word = reinterpret_cast<u32*>(at);
    u32 old = __atomic_load_n(word, __ATOMIC_RELAXED);
    u32 sum = float_bits(bits_float(old) + x);
    while (!__atomic_compare_exchange_n(word, &old, sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
        sum = float_bits(bits_float(old) + x);
    }
    return bits_float(old);
}
template <class T>
SHARED_DEVICE T atomicSub(T* at, typename emulate::Same<T>::type x) {
    return __atomic_fetch_sub(at, x, __ATOMIC_RELAXED);
}
template <class T>
SHARED_DEVICE T atomicOr(T* at, typename emulate::Same<T>::type x) {
    return __atomic_fetch_or(at, x, __ATOMIC_RELAXED);
}
template <class T>
SHARED_DEVICE T atomicAnd(T* at, typename emulate::Same<T>::type x) {
    return __atomic_fetch_and(at, x, __ATOMIC_RELAXED);
}
template <class T>
SHARED_DEVICE T atomicXor(T* at, typename emulate::Same<T>::type x) {
    return __atomic_fetch_xor(at, x, __ATOMIC_RELAXED);
}
template <class T>
SHARED_DEVICE T atomicExch(T* at, typename emulate::Same<T>::type x) {
    T old;
    __atomic_exchange(at, &x, &old, __ATOMIC_RELAXED);
    return old;
}
template <class T>
SHARED_DEVICE T atomicCAS(T* at, typename emulate::Same<T>::type expected, typename emulate::Same<T>::type x) {
    __atomic_compare_exchange_n(at, &expected, x, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T>
SHARED_DEVICE T atomicMax(T* at, typename emulate::Same<T>::type x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < x && !__atomic_compare_exchange_n(at, &old, x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
template <class T>
SHARED_DEVICE T atomicMin(T* at, typename emulate::Same<T>::type x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (x < old && !__atomic_compare_exchange_n(at, &old, x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return old;
}
SHARED_DEVICE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SHARED_DEVICE void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
[[noreturn]] SHARED_DEVICE void __trap() { emulate::fail("__trap"); }

#include "intrinsics.h"
