// What kernels that try the emulation are given.
#include "common.cuh"
#include "warpgroup.cuh"

struct TestParams {
    const u32* x;
    const u32* w;
    u32* y;
    u32 n, mode;
    // Tiles of x.
    TileMap map;
};
