// What `linear` makes of sums that a library computed: a thread two of them, features i and i + 8 of a panel, which a gated
// matrix has as gate and up.
#include "linear.cuh"

using namespace linear_op;

struct FinishParams {
    LinearParams linear;
    // Of all rows, those that are not live included: `panels` panels of features, from panel `first` on.
    const float* sums;
    u32 first;
    u32 panels;
};

KERNEL(linear_finish, 256, FinishParams) {
    u32 row = blockIdx.x, pair = blockIdx.y * 256 + threadIdx.x, panel = pair / 8, i = pair % 8;
    if (panel >= p.panels || row >= live_rows(p.linear.live, p.linear.rows)) return;
    const float* sums = p.sums + (u64(row) * p.panels + panel) * PANEL + i;
    float down = p.linear.row_scales ? p.linear.row_scales[row].scale : 1.0f;
    finish(p.linear, p.first + panel, i, row, sums[0] * down, sums[8] * down);
}
