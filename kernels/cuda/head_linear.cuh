// What products with a matrix for each head share. They are those of `linear`, with the columns of one head: a block finds
// them and then does what a block of `linear` does, so that sums have the same bits. `blockIdx.z` is the head.
#include "linear_few.cuh"
#include "linear_tile.cuh"

struct HeadParams {
    // Of the first head.
    LinearParams linear;
    // Elements from one head to the next, of x and of the output.
    u32 x_head;
    u32 out_head;
};

namespace linear_op {

SHARED_DEVICE LinearParams head_of(const HeadParams& p) {
    LinearParams d = p.linear;
    u32 head = blockIdx.z;
    u64 row = u64(head) * d.panels * PANEL, first = u64(head) * d.rows;
    d.weight += row * d.blocks * BLOCK;
    d.multipliers += row / PANEL * d.panel_multipliers;
    if (d.scales) d.scales += row;
    d.x += u64(head) * p.x_head;
    d.out += u64(head) * p.out_head;
    d.copy += first * d.copy_bytes;
    d.rests += first * d.copy_bytes;
    d.row_scales += first;
    return d;
}

}
