// What instructions compute that C++ has no words for. The last lines of simt.h.
#pragma once

using std::isfinite;
using std::isinf;
using std::isnan;

SHARED_DEVICE u32 __float_as_uint(float x) { return float_bits(x); }
SHARED_DEVICE float __uint_as_float(u32 x) { return bits_float(x); }
SHARED_DEVICE int __float_as_int(float x) { return int(float_bits(x)); }
SHARED_DEVICE float __int_as_float(int x) { return bits_float(u32(x)); }
SHARED_DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }

SHARED_DEVICE int __clz(int x) { return x ? __builtin_clz(u32(x)) : 32; }
SHARED_DEVICE int __clzll(i64 x) { return x ? __builtin_clzll(u64(x)) : 64; }
SHARED_DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
SHARED_DEVICE int __popcll(u64 x) { return __builtin_popcountll(x); }
SHARED_DEVICE int __ffs(int x) { return __builtin_ffs(x); }
SHARED_DEVICE int __ffsll(i64 x) { return __builtin_ffsll(x); }
SHARED_DEVICE u32 __brev(u32 x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(x);
}
SHARED_DEVICE u32 __umulhi(u32 a, u32 b) { return u32(u64(a) * b >> 32); }
SHARED_DEVICE int __mulhi(int a, int b) { return int(i64(a) * b >> 32); }
SHARED_DEVICE u64 __umul64hi(u64 a, u64 b) { return u64((unsigned __int128)(a)*b >> 64); }
// Byte i of the result is the byte of y:x that nibble i names; its upper bit spreads that byte's sign.
SHARED_DEVICE u32 __byte_perm(u32 x, u32 y, u32 selector) {
    u64 both = u64(y) << 32 | x;
    u32 d = 0;
    for (u32 i = 0; i < 4; i++) {
        u32 pick = selector >> (4 * i) & 15u, byte = u32(both >> (8 * (pick & 7u))) & 255u;
        if (pick & 8u) byte = byte & 128u ? 255u : 0u;
        d |= byte << (8 * i);
    }
    return d;
}
SHARED_DEVICE u32 __funnelshift_l(u32 low, u32 high, u32 shift) {
    return u32((u64(high) << 32 | low) << (shift & 31u) >> 32);
}
SHARED_DEVICE u32 __funnelshift_r(u32 low, u32 high, u32 shift) {
    return u32((u64(high) << 32 | low) >> (shift & 31u));
}
SHARED_DEVICE int __dp4a(int a, int b, int c) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) sum += int(i8(u32(a) >> i)) * int(i8(u32(b) >> i));
    return int(u32(c) + u32(sum));
}
SHARED_DEVICE u32 __dp4a(u32 a, u32 b, u32 c) {
    for (int i = 0; i < 32; i += 8) c += (a >> i & 255u) * (b >> i & 255u);
    return c;
}

// Of mixed kinds as CUDA has them: unsigned wins.
#define ANYFLEET_MIN_MAX(Result, A, B)                                            \
    SHARED_DEVICE Result min(A a, B b) {                                          \
        Result left = static_cast<Result>(a), right = static_cast<Result>(b);     \
        return left < right ? left : right;                                       \
    }                                                                             \
    SHARED_DEVICE Result max(A a, B b) {                                          \
        Result left = static_cast<Result>(a), right = static_cast<Result>(b);     \
        return left > right ? left : right;                                       \
    }
ANYFLEET_MIN_MAX(int, int, int)
ANYFLEET_MIN_MAX(u32, u32, u32)
ANYFLEET_MIN_MAX(u32, int, u32)
ANYFLEET_MIN_MAX(u32, u32, int)
ANYFLEET_MIN_MAX(long, long, long)
ANYFLEET_MIN_MAX(unsigned long, unsigned long, unsigned long)
ANYFLEET_MIN_MAX(unsigned long, long, unsigned long)
ANYFLEET_MIN_MAX(unsigned long, unsigned long, long)
ANYFLEET_MIN_MAX(i64, i64, i64)
ANYFLEET_MIN_MAX(u64, u64, u64)
ANYFLEET_MIN_MAX(u64, i64, u64)
ANYFLEET_MIN_MAX(u64, u64, i64)
#undef ANYFLEET_MIN_MAX
// Of a number and a NaN, the number.
SHARED_DEVICE float min(float a, float b) { return fminf(a, b); }
SHARED_DEVICE float max(float a, float b) { return fmaxf(a, b); }
SHARED_DEVICE double min(double a, double b) { return fmin(a, b); }
SHARED_DEVICE double max(double a, double b) { return fmax(a, b); }

struct __align__(8) float2 {
    float x, y;
};
struct __align__(16) float4 {
    float x, y, z, w;
};
struct __align__(8) int2 {
    int x, y;
};
struct __align__(16) int4 {
    int x, y, z, w;
};
struct __align__(8) uint2 {
    u32 x, y;
};
struct __align__(16) uint4 {
    u32 x, y, z, w;
};
SHARED_DEVICE float2 make_float2(float x, float y) { return {x, y}; }
SHARED_DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
SHARED_DEVICE int2 make_int2(int x, int y) { return {x, y}; }
SHARED_DEVICE int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
SHARED_DEVICE uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
SHARED_DEVICE uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
