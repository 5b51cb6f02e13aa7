// The words of the language and the instructions that kernels use, on a device. `emulate/simt.h` has the same names for
// the host. No header of CUDA's is needed: NVRTC compiles this where no toolkit is installed.
#define SHARED_DEVICE __device__ __forceinline__

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// A kernel takes one structure by value. Its symbol has a prefix: CUDA has functions of its own, such as `norm`.
#define KERNEL(name, threads, Params) KERNEL_OF_BOUNDS(name, (threads), Params)
// One of which a multiprocessor has at least so many blocks at a time. The compiler takes the registers that leaves to each
// before it spills; told nothing, it may spill for the sake of blocks that have no room in shared memory.
#define KERNEL_OF_BLOCKS(name, threads, blocks, Params) KERNEL_OF_BOUNDS(name, (threads, blocks), Params)
#define KERNEL_OF_BOUNDS(name, bounds, Params) \
    extern "C" __global__ void __launch_bounds__ bounds anyfleet_##name(const __grid_constant__ Params p)
// Shared memory of a block, of a size known here: a structure.
#define SHARED(Type, name) __shared__ Type name
// Shared memory whose size the launch states: bytes, 128-byte aligned.
#define SHARED_BYTES(name) extern __shared__ __align__(128) u8 name[]

SHARED_DEVICE u32 float_bits(float x) { return __float_as_uint(x); }
SHARED_DEVICE float bits_float(u32 x) { return __uint_as_float(x); }

// To nearest, ties to even; a NaN stays one.
SHARED_DEVICE u32 pack_bf16(float low, float high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// The same of f16, infinity above what that holds.
SHARED_DEVICE u32 pack_f16(float low, float high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
SHARED_DEVICE float half_float(u16 x) {
    float d;
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(x));
    return d;
}
SHARED_DEVICE u16 float_half(float x) {
    u16 d;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(x));
    return d;
}
// What two f16 in a word stand for.
SHARED_DEVICE void halves_floats(float& low, float& high, u32 two) {
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(two));
}

// What four floats of eight bits (crates/tensor/src/f8.rs) stand for; none of them is NaN. As f16 they are exact.
SHARED_DEVICE void f8_floats(float (&d)[4], u32 four) {
    u32 low, high;
#if __CUDA_ARCH__ >= 890
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(low), "=r"(high)
        : "r"(four));
#else
    // Seven bits in the place of an f16's are 2^-8 times the number, subnormal ones included.
    auto halves = [](u32 upper) {
        u32 d;
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(upper & 0x80008000u | upper >> 1 & 0x3f803f80u), "r"(0x5c005c00u));
        return d;
    };
    low = halves(__byte_perm(four, 0, 0x1404));
    high = halves(__byte_perm(four, 0, 0x3424));
#endif
    halves_floats(d[0], d[1], low);
    halves_floats(d[2], d[3], high);
}

// Products of 16x16 and 16x8 tiles, added to d: lane l has of a rows l/4 and l/4 + 8 (a[0], a[2] and a[1], a[3]) and
// columns 2(l%4), +1 (a[0], a[1]) and those + 8 (a[2], a[3]); of b column l/4 and the same rows (b[0]; b[1]); of d rows
// l/4 (d[0], d[1]) and l/4 + 8 (d[2], d[3]), columns 2(l%4), +1. PTX ISA, "mma.m16n8k16".
SHARED_DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of f16, subnormal ones included.
SHARED_DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of 16x32 and 32x8 signed bytes: columns 4(l%4)..+3 and those + 16. PTX ISA, "mma.m16n8k32".
SHARED_DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements: lane l gives the address of row l%8 of matrix l/8 in shared memory and gets of each
// matrix row l/4, columns 2(l%4), +1; transposed, row 2(l%4), +1 of column l/4. PTX ISA, "ldmatrix".
SHARED_DEVICE void ldmatrix(u32 (&d)[4], const void* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(at)
                 : "memory");
}
SHARED_DEVICE void ldmatrix_transposed(u32 (&d)[4], const void* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(at)
                 : "memory");
}

// Starts copying sixteen bytes to shared memory, both 16-byte aligned; zeros where they are not wanted, and nothing is
// read then. PTX ISA, "cp.async".
SHARED_DEVICE void copy_async(void* shared, const void* global, bool wanted = true) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(shared));
    int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes) : "memory");
}
// Ends a group of copies.
SHARED_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N groups are under way. Others' copies are seen after __syncthreads.
template <int N>
SHARED_DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

struct alignas(16) Words4 {
    u32 v[4];
};
// Sixteen bytes that are read once: they need not stay in the caches. The address is 16-byte aligned.
SHARED_DEVICE Words4 load_once(const void* from) {
    Words4 d;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d.v[0]), "=r"(d.v[1]), "=r"(d.v[2]), "=r"(d.v[3])
                 : "l"(from));
    return d;
}
// Sixteen bytes that others read, too, at a 16-byte aligned address; zeros where they are not wanted, and nothing is read
// then. Lanes do not part for it: a product of the whole warp follows.
SHARED_DEVICE Words4 load_if(const void* from, bool wanted) {
    Words4 d;
    asm volatile(
        "{.reg .pred p; setp.ne.u32 p, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
        "@p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];}"
        : "=&r"(d.v[0]), "=&r"(d.v[1]), "=&r"(d.v[2]), "=&r"(d.v[3])
        : "l"(from), "r"(u32(wanted))
        : "memory");
    return d;
}
