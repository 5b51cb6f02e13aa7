// What the kernels of attention have in common.
//
// A tile is up to M rows of one sequence and one key/value head; a row is a token and one of the head's query heads, so that
// keys and values are read once for all of them. Keys are taken in chunks of 64 and segments of 256, both counted from
// position 0. A segment has a running maximum, sum of weights and output (online softmax, Milakov and Gimelshein 2018),
// begun afresh; segments are combined in order, in the block or by `attention_merge` after blocks that had some each, with
// the same operations. So a row's bits depend on its position and on what it sees, and on nothing around it.
#include "common.cuh"
#include "kv.cuh"

struct AttentionParams {
    float* out;
    const float* q;
    const void* k_cache;
    const void* v_cache;
    const float* k_scales;
    const float* v_scales;
    const u32* seqs;
    const u32* table;
    const u32* live;
    // Where blocks of a part of the segments leave them: none where blocks have all. [rows][heads][slots][2 + value_size]
    float* records;
    // Of each query head, or nothing.
    const float* sinks;
    u32 rows;
    u32 sequences;
    u32 groups;
    // Query heads of a key/value head.
    u32 group_heads;
    u32 size;
    u32 page_size;
    u32 pages;
    u32 table_len;
    u32 seqs_stride;
    u32 q_stride;
    u32 out_stride;
    // 0: no window.
    u32 window;
    // Segments that a row may see.
    u32 slots;
    float scale;
    // Heads in the caches are whole groups of sixteen bytes, on addresses that are multiples of them.
    u32 whole;
    // What the scores are bounded by, and by which `scale` is divided already; 0: nothing.
    float softcap;
    // Of latents less than `size`: values are the first elements of keys.
    u32 value_size;
    u32 reserved;
};

namespace attention {
const u32 THREADS = 128;
const u32 WARPS = THREADS / WARP;
const u32 CHUNK = 64;
const u32 SEGMENT = 256;
// Below every score; finite, so that two of them have a difference.
const float LOWEST = -3.0e38f;

// Keys from `low` to before `end`.
struct Range {
    u32 low, end;
    SHARED_DEVICE bool has(u32 key) const { return key >= low && key < end; }
};

// What the query before position `end` sees.
SHARED_DEVICE Range seen_before(const AttentionParams& p, u32 end) {
    Range range = {p.window != 0 && end > p.window ? end - p.window : 0, end};
    return range;
}

struct Tile {
    // First token row of the sequence, and the tokens before it.
    u32 row_start, context;
    // First row of the tile among the sequence's, and how many there are.
    u32 first, count;
    // Where the sequence's part of the table begins, and which page that entry is.
    u32 table_start, first_page;
    u32 group;
};

// Finds the block's tile of at most `most` rows: tiles are counted sequence by sequence. Each warp looks for itself.
SHARED_DEVICE bool find_tile(const AttentionParams& p, u32 most, Tile& tile) {
    // Sequences that a lane asks for at once.
    const u32 GLANCE = 4;
    u32 entries = live_rows(p.live, p.sequences), lane = threadIdx.x % WARP, before = 0;
    for (u32 begin = 0; begin < entries; begin += GLANCE * WARP) {
        u32 tiles[GLANCE];
#pragma unroll
        for (u32 i = 0; i < GLANCE; i++) {
            u32 s = begin + i * WARP + lane;
            const u32* seq = p.seqs + u64(min_u32(s, entries - 1)) * p.seqs_stride;
            u32 rows = seq[1], context = seq[2];
            tiles[i] = s < entries && rows <= context ? ceil_div(rows * p.group_heads, most) : 0;
        }
#pragma unroll
        for (u32 i = 0; i < GLANCE; i++) {
            u32 sum = tiles[i];
            for (u32 step = 1; step < WARP; step *= 2) {
                u32 lower = __shfl_up_sync(EVERY_LANE, sum, step);
                if (lane >= step) sum += lower;
            }
            u32 has = __ballot_sync(EVERY_LANE, blockIdx.x < before + sum);
            if (has) {
                u32 place = __ffs(int(has)) - 1;
                u32 after = before + __shfl_sync(EVERY_LANE, sum, place);
                const u32* seq = p.seqs + u64(begin + i * WARP + place) * p.seqs_stride;
                u32 rows = seq[1];
                tile.row_start = seq[0];
                tile.context = seq[2] - rows;
                // The last tiles see most: they come first.
                tile.first = (after - 1 - blockIdx.x) * most;
                tile.count = min_u32(most, rows * p.group_heads - tile.first);
                tile.table_start = seq[3];
                tile.first_page = seq[4];
                tile.group = blockIdx.y;
                return true;
            }
            before += __shfl_sync(EVERY_LANE, sum, int(WARP) - 1);
        }
    }
    return false;
}

// What row `r` of a tile sees; nothing where there is none.
SHARED_DEVICE Range seen_by(const AttentionParams& p, const Tile& tile, u32 r) {
    Range none = {0, 0};
    return r < tile.count ? seen_before(p, tile.context + (tile.first + r) / p.group_heads + 1) : none;
}

// The query head of a row.
SHARED_DEVICE u32 query_head(const AttentionParams& p, const Tile& tile, u32 r) {
    return tile.group * p.group_heads + (tile.first + r) % p.group_heads;
}

// Where a row's head is in `rows` of queries or results, of `size` elements a head; nothing where there is none.
template <class T>
SHARED_DEVICE T* head_of(const AttentionParams& p, const Tile& tile, T* rows, u32 stride, u32 size, u32 r) {
    u32 row = tile.row_start + (tile.first + r) / p.group_heads;
    u32 head = query_head(p, tile, r);
    return r < tile.count && row < p.rows ? rows + u64(row) * stride + u64(head) * size : nullptr;
}

// The record of segments of a row and query head, from the first it sees on.
SHARED_DEVICE float* records_of(const AttentionParams& p, u32 row, u32 head) {
    return p.records + (u64(row) * p.groups * p.group_heads + head) * p.slots * (p.value_size + 2);
}
// The record of a segment of a row; nothing where it sees nothing of it.
SHARED_DEVICE float* record_of(const AttentionParams& p, const Tile& tile, u32 r, u32 segment) {
    u32 row = tile.row_start + (tile.first + r) / p.group_heads;
    u32 head = query_head(p, tile, r);
    Range seen = seen_by(p, tile, r);
    u32 slot = segment - seen.low / SEGMENT;
    bool there = segment * SEGMENT < seen.end && segment >= seen.low / SEGMENT && slot < p.slots && row < p.rows;
    return there ? records_of(p, row, head) + u64(slot) * (p.value_size + 2) : nullptr;
}

// Place of a key in the caches, in heads. Inside them, whatever the table says.
SHARED_DEVICE u32 key_place(const AttentionParams& p, const Tile& tile, u32 key) {
    u32 entry = tile.table_start + key / p.page_size - tile.first_page;
    u32 page = min_u32(p.table[min_u32(entry, p.table_len - 1)], p.pages - 1);
    return kv::place(page, p.groups, tile.group, p.page_size, key % p.page_size);
}

// The chunks that a block takes: those of its segments.
struct Chunks {
    u32 chunk, last;
    SHARED_DEVICE bool more() const { return chunk <= last; }
    SHARED_DEVICE u32 start() const { return chunk * CHUNK; }
    SHARED_DEVICE u32 segment() const { return chunk / (SEGMENT / CHUNK); }
    SHARED_DEVICE bool ends_segment() const { return chunk == last || (chunk + 1) % (SEGMENT / CHUNK) == 0; }
    SHARED_DEVICE Chunks next() const {
        Chunks next = {chunk + 1, last};
        if (next.chunk % (SEGMENT / CHUNK) == 0) next.chunk += (gridDim.z - 1) * (SEGMENT / CHUNK);
        return next;
    }
};
SHARED_DEVICE Chunks chunks_of(Range needed) {
    u32 first = blockIdx.z == 0 ? needed.low / CHUNK : (needed.low / SEGMENT + blockIdx.z) * (SEGMENT / CHUNK);
    Chunks chunks = {first, (needed.end - 1) / CHUNK};
    return chunks;
}

// Combines segments: `all` are those before. What has no keys changes nothing.
struct Fold {
    float before, added, highest;
};
SHARED_DEVICE Fold fold_of(float all_highest, float highest) {
    Fold fold;
    fold.highest = fmaxf(all_highest, highest);
    fold.before = exact_exp(all_highest - fold.highest);
    fold.added = exact_exp(highest - fold.highest);
    return fold;
}
SHARED_DEVICE float folded(float all, float before, float x, float added) { return fmaf(all, before, x * added); }

// A head's logit without a value joins when all segments are combined: the factor of what they left.
SHARED_DEVICE float join_sink(float sink, float all_highest, float& total) {
    Fold fold = fold_of(all_highest, sink);
    total = folded(total, fold.before, 1.0f, fold.added);
    return fold.before;
}

// A chunk that a row does not see may have left a sum of -0, or not.
SHARED_DEVICE float output(float sum, float total) { return sum / total + 0.0f; }
}
