// What products with experts' matrices share. They are those of `linear`, of the rows of one expert at a time: a block
// finds out which these are and then does what a block of `linear` does with one matrix, so that sums have the same bits.
//
// Rows are places: those of an expert are consecutive. Copies of x (`_x` kernels) are made in the order of places; kernels
// that take x as it is read it through the list.
#include "linear_few.cuh"
#include "linear_tile.cuh"

struct GroupedParams {
    // Of the first expert's matrix and of all places; `live` points to their number, which is `offsets[experts]`.
    LinearParams linear;
    // Which row of x a place has; none where x is in their order.
    const u32* list;
    const u32* offsets;
    const u32* hits;
    u32 experts;
    u32 x_rows;
};

namespace linear_op {

// What `linear` takes, of the rows of one expert.
struct ExpertParams : LinearParams {
    const u32* list;
    u32 x_rows;
    // The row of x that this lane has of a fragment, where kernels take it as it is.
    const float* of_lane;
};

SHARED_DEVICE const float* x_base(const ExpertParams& p, u32) { return p.x; }
SHARED_DEVICE u32 x_index(const ExpertParams& p, u32 first, u32 row) {
    return p.list ? min_u32(p.list[first + row], p.x_rows - 1) : first + row;
}
SHARED_DEVICE const float* x_of_lane(const ExpertParams& p, u32) { return p.of_lane; }

// All places, as rows of x.
SHARED_DEVICE ExpertParams all_places(const GroupedParams& p) {
    ExpertParams d;
    static_cast<LinearParams&>(d) = p.linear;
    d.list = p.list;
    d.x_rows = p.x_rows;
    d.of_lane = nullptr;
    return d;
}

// The places of an expert; none past the last there are.
struct Run {
    u32 expert;
    u32 first;
    u32 rows;
};
SHARED_DEVICE Run run_of(const GroupedParams& p, u32 expert) {
    u32 end = min_u32(p.offsets[expert + 1], p.linear.rows), first = min_u32(p.offsets[expert], end);
    return {expert, first, end - first};
}
// Of the `hit`-th expert that has some.
SHARED_DEVICE Run run_of_hit(const GroupedParams& p, u32 hit) {
    if (hit >= p.hits[0]) return {};
    return run_of(p, min_u32(p.hits[1 + hit], p.experts - 1));
}

// An expert's part of what is multiplied and written.
SHARED_DEVICE ExpertParams expert_of(const GroupedParams& p, const Run& run) {
    ExpertParams d = all_places(p);
    // Panels of all experts are no more than a u32 counts.
    u64 panel = run.expert * p.linear.panels;
    d.weight += panel * PANEL * p.linear.blocks * BLOCK;
    d.multipliers += panel * p.linear.panel_multipliers;
    if (d.scales) d.scales += panel * PANEL;
    d.out += u64(run.first) * d.out_stride;
    d.copy += u64(run.first) * d.copy_bytes;
    d.rests += u64(run.first) * d.copy_bytes;
    d.row_scales += run.first;
    if (d.list) d.list += run.first;
    else d.x += u64(run.first) * d.x_stride;
    d.rows = run.rows;
    d.live = nullptr;
    return d;
}

// Calls visit(p, group) for each group of ROWS rows of the expert that blocks of this row of the grid have. One after the
// other: nearly always there is one, and the weights of the next come from the caches.
template <u32 ROWS, class Visit>
SHARED_DEVICE void visit_groups(const GroupedParams& params, Visit visit) {
    Run run = run_of_hit(params, blockIdx.y);
    ExpertParams p = expert_of(params, run);
    for (u32 group = 0; group * ROWS < run.rows; group++) {
        // What threads have in common is free again.
        if (group > 0) __syncthreads();
        visit(p, group);
    }
}

// The tile of `size` rows that is this row of the grid's when those of all experts stand in line, and where in its run
// it is. Every lane looks at an expert: there are more rows of the grid than tiles by less than one an expert.
SHARED_DEVICE Run run_of_tile(const GroupedParams& p, u32 size, u32& tile) {
    u32 lane = threadIdx.x % WARP, before = 0, wanted = blockIdx.y;
#pragma unroll 4
    for (u32 start = 0; start < p.experts; start += WARP) {
        u32 expert = start + lane;
        u32 tiles = expert < p.experts ? ceil_div(run_of(p, expert).rows, size) : 0, to = tiles;
        for (u32 i = 1; i < WARP; i *= 2) {
            u32 other = __shfl_up_sync(EVERY_LANE, to, i);
            if (lane >= i) to += other;
        }
        u32 found = __ballot_sync(EVERY_LANE, before + to > wanted);
        if (found) {
            u32 which = __ffs(int(found)) - 1;
            tile = wanted - before - __shfl_sync(EVERY_LANE, to - tiles, which);
            return run_of(p, start + which);
        }
        before += __shfl_sync(EVERY_LANE, to, WARP - 1);
    }
    tile = 0;
    return {};
}

// Calls visit(p, tile) for the tile of `size` rows that a block has.
template <class Visit>
SHARED_DEVICE void visit_tile(const GroupedParams& params, u32 size, Visit visit) {
    u32 tile;
    Run run = run_of_tile(params, size, tile);
    if (run.rows > 0) visit(expert_of(params, run), tile);
}

// Few rows an expert: see `few_rows`. `blockIdx.x` is a group of MT panels.
template <class F, int MT, int NT>
SHARED_DEVICE void grouped_few(const GroupedParams& params) {
    visit_groups<8 * NT>(params, [](const ExpertParams& p, u32 group) {
        few_rows<F, MT, NT>(p, group, blockIdx.x * MT);
    });
}
// At most eight at a time, of x as it is.
template <class F>
SHARED_DEVICE void grouped_direct(const GroupedParams& params) {
    visit_groups<8>(params, [](ExpertParams& p, u32 group) {
        u32 row = group * 8 + threadIdx.x % WARP / 4;
        p.of_lane = x_row(p, min_u32(row, p.rows - 1));
        few_rows<F, 1, 1>(p, group, blockIdx.x);
    });
}

}
