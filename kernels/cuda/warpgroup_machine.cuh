// The instructions of warpgroup.cuh on a device.

// Counts arrivals and bytes in shared memory; what is waited for is the end of a phase, which are 0 and 1 in turn.
struct alignas(8) Barrier {
    u64 state;
};
// Describes a matrix in the device's memory whose tiles are copied: what `cuTensorMapEncodeTiled` makes.
struct alignas(64) TileMap {
    u64 opaque[16];
};

SHARED_DEVICE u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

#if __CUDA_ARCH__ >= 900
SHARED_DEVICE void barrier_init(Barrier& barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// After barriers are there, before others see them.
SHARED_DEVICE void barriers_ready() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
SHARED_DEVICE void barrier_arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrives, and has the phase wait for so many bytes, too.
SHARED_DEVICE void barrier_expect(Barrier& barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}
// Waits until the phase is over. Of a barrier at its beginning, phase 1 is.
SHARED_DEVICE void barrier_wait(Barrier& barrier, u32 phase) {
    u32 done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(shared_address(&barrier)), "r"(phase)
                     : "memory");
    } while (!done);
}
// Copies the tile from column `x` (of numbers) and row `y` on, in lines; zeros beyond the matrix. One thread asks for it,
// and its bytes arrive at the barrier.
SHARED_DEVICE void copy_tile(void* shared, const TileMap& map, u32 x, u32 y, Barrier& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(shared)),
        "l"(&map), "r"(x), "r"(y), "r"(shared_address(&barrier))
        : "memory");
}
#endif

// A barrier of the first so many threads that come to the one of this number; 0 is that of __syncthreads.
SHARED_DEVICE void sync_some(u32 number, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

#ifdef HAS_WARPGROUPS
// Registers of a thread from here on: warpgroups that copy leave theirs to those that multiply. All of a warpgroup ask.
template <int N>
SHARED_DEVICE void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
SHARED_DEVICE void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// What threads wrote to shared memory is seen by products that begin after a barrier.
SHARED_DEVICE void shared_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Sums, or what products take from registers, are there: whatever else reads or writes them does not pass. Before products
// begin, and of sums after they were waited for.
template <int N>
SHARED_DEVICE void products_hold(u32 (&a)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(a[i])::"memory");
}
template <int N>
SHARED_DEVICE void products_hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Before products whose registers others have written.
SHARED_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SHARED_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most LEFT groups of products are under way.
template <int LEFT>
SHARED_DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// The sums of a warpgroup, 64 rows by as many columns as its threads have twice numbers: warp w has rows 16w.. of them, as
// `mma_bf16` has its, for each eight columns.
#define SUMS_64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"\
                "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"
#define HELD_64(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define SUMS_128 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"\
                "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"\
                "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"\
                "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define HELD_128(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])

// Starts to add a product of sixteen columns of a and b to d, or to leave it there: a from registers, as `mma_bf16` has it.
#define PRODUCTS(NAME, TYPE, N, A0, A1, A2, A3, B, ADD, TRANSPOSE)                                                     \
    template <int TRANSPOSED>                                                                                          \
    SHARED_DEVICE void NAME(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) {                                   \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " ADD ", 0;\n"                                                     \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " " SUMS_##N ", {" A0 "," A1 "," \
                     A2 "," A3 "}, " B ", p, 1, 1, " TRANSPOSE ";}"                                                    \
                     : HELD_##N(d)                                                                                     \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(u32(add)), "n"(TRANSPOSED));            \
    }
PRODUCTS(multiply_bf16, "bf16", 64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PRODUCTS(multiply_bf16, "bf16", 128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
PRODUCTS(multiply_f16, "f16", 128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
#undef PRODUCTS

// The same with a in shared memory.
SHARED_DEVICE void multiply_bf16(float (&d)[32], u64 a, u64 b, bool add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " SUMS_64 ", %32, %33, p, 1, 1, 0, 0;}"
                 : HELD_64(d)
                 : "l"(a), "l"(b), "r"(u32(add)));
}
#endif
