// What a Hopper offers to four warps together, a warpgroup: products from shared memory that run by themselves, copies of
// whole tiles, and barriers that count bytes. PTX ISA, "wgmma.mma_async", "cp.async.bulk.tensor", "mbarrier". Devices of
// sm_90a alone have the products: HAS_WARPGROUPS says whether this is compiled for one.
//
// Matrices in shared memory are in lines of 128 bytes, eight of which are a block on a multiple of 1024 bytes; the
// sixteen bytes at piece c of line l lie at piece c ^ l % 8 ("128-byte swizzling").
#ifdef ANYFLEET_EMULATE
#define HAS_WARPGROUPS
#include "emulate/warpgroup.h"
#else
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WARPGROUPS
#endif
#include "warpgroup_machine.cuh"
#endif

const u32 WARPGROUP = 4 * WARP;
const u32 SWIZZLED_LINE = 128;
const u32 SWIZZLED_BLOCK = 1024;

// After products were waited for: what they read from registers is theirs until then, but an assembler may take the registers
// for free as soon as the last product was asked for (ptxas before CUDA 13.3). So they are read once more, where the kernel
// knows that it is not `never` and the compiler does not.
template <int N>
SHARED_DEVICE void products_read(const u32 (&a)[N], bool never, void* shared) {
    if (!never) return;
#pragma unroll
    for (int i = 0; i < N; i++) static_cast<volatile u32*>(shared)[i] = a[i];
}

// Where a piece of sixteen bytes of a line is.
SHARED_DEVICE u32 swizzled(u32 line, u32 piece) { return line * SWIZZLED_LINE + (piece ^ line % 8) * 16; }

// A matrix in shared memory as products are told of it. One whose rows are lines: `leading` is not used, `stride` is from
// eight rows to the next eight. One whose columns are lines, which a product takes TRANSPOSED: `leading` is from 64 rows to
// the next 64, `stride` from eight columns to the next eight. Products take sixteen columns: those of rows are bytes
// 32i.. of the lines, from which the address then is. PTX ISA, "Matrix Descriptor Format".
SHARED_DEVICE u64 matrix_at(u32 address, u32 leading, u32 stride) {
    return u64(address >> 4 & 0x3fffu) | u64(leading >> 4) << 16 | u64(stride >> 4) << 32 | u64(1) << 62;
}
