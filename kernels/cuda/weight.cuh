// How matrices lie on a device: crates/cuda/src/weight.rs packs them. Row-major, rows padded with zeros to a whole number of
// blocks and matrices to a whole number of panels. A gated matrix has in row 8 + i of a panel what row i of it is
// multiplied with.
const u32 PANEL = 16;
// Bytes of a row that the four lanes of a fragment's row load at once.
const u32 BLOCK = 64;

// q4: a block is 128 input features. Lane t of a row loads sixteen bytes of it, a word for each group of 32: low nibbles
// are the features 4t..4t+3 of the group and high ones those + 16, which is what lane t has in a product (`mma_s8`).
const u32 Q4_GROUP = 32;
const u32 Q4_BLOCK = 128;
// Bytes of multipliers of a panel and block: four for each row, row i beside row i + 8.
const u32 Q4_MULTIPLIERS = 64;

// f8: a block is 64 input features, which are two blocks of bf16. Lane t of a row loads sixteen bytes of it: the features
// 8t..8t+7 of the first 32 and of the others, as it has them of bf16.
const u32 F8_GROUP = 128;
// Bytes of scales of a panel and group: a float for each row, row i beside row i + 8.
const u32 F8_SCALES = 64;

// Of input feature k in its row.
SHARED_DEVICE u32 f8_place(u32 k) { return k / BLOCK * BLOCK + k % 32 / 8 * 16 + k % BLOCK / 32 * 8 + k % 8; }
// Where the scale of a row and block is.
SHARED_DEVICE u64 f8_scale(u32 row, u32 block, u32 blocks) {
    const u32 together = F8_GROUP / BLOCK;
    u64 group = u64(row / PANEL) * ceil_div(blocks, together) + block / together;
    return group * F8_SCALES + (row % 8 * 2 + row % PANEL / 8) * 4;
}

struct Q4Place {
    u32 byte;
    u32 high;
};
// Of input feature k in its row.
SHARED_DEVICE Q4Place q4_place(u32 k) {
    u32 group = k % Q4_BLOCK / Q4_GROUP;
    return {k / Q4_BLOCK * BLOCK + k % 16 / 4 * 16 + group * 4 + k % 4, k / 16 % 2};
}
// Where the four multipliers of a row and block begin.
SHARED_DEVICE u64 q4_multipliers(u32 row, u32 block, u32 blocks) {
    return (u64(row / PANEL) * blocks + block) * Q4_MULTIPLIERS + (row % 8 * 2 + row % PANEL / 8) * 4;
}
