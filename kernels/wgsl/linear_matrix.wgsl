// `linear` on matrix units, which multiply f16 and add in f32, in an order of their own.
//
// Activations come from `linear_halves`; a float weight is multiplied with a power of two of its output feature before it
// is made f16, integers are f16 as they are. The powers leave the sums at the end. A workgroup computes PANELS panels for
// ROWS rows, from tiles of DEPTH input features; each of its subgroups computes a square of them.
enable f16;
enable wgpu_cooperative_matrix;
@group(0) @binding(3) var<storage, read> x: array<vec4<f16>>;

const PANELS: u32 = 4u;
const WIDTH: u32 = PANELS * LANES;
const DEPTH: u32 = 32u;
// Halves from a row of a tile to the next: an odd number of 16 bytes, so that rows begin in different banks.
const STRIDE: u32 = DEPTH + 8u;
// Rows and lanes of a subgroup, and squares beside each other.
const SIDE: u32 = 32u;
const ACROSS: u32 = WIDTH / SIDE;
const SQUARES: u32 = ROWS / SIDE * ACROSS;
const THREADS: u32 = SQUARES * SUBGROUP;
// Fragments along a side.
const COUNT: u32 = SIDE / FRAGMENT;
#if FRAGMENT_16
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;
#else
alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Sums = coop_mat8x8<f32, C>;
#endif
// `[row][k]`, `[lane][k]` and `[row][lane]`.
var<workgroup> tile_x: array<f16, ROWS * STRIDE>;
var<workgroup> tile_w: array<f16, WIDTH * STRIDE>;
var<workgroup> parts: array<f32, ROWS * WIDTH>;
// Of the powers of two that rows and lanes were multiplied with.
var<workgroup> row_exponents: array<i32, ROWS>;
var<workgroup> lane_exponents: array<i32, WIDTH>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
) {
    // As `grid_index` and `live_rows` have it, and without `||`: after a return that perhaps not all threads take, naga
    // allows no matrices, and what comes out of a function or a branch it takes for different in each thread.
    let first_panel = (group.y * GRID + group.x) * PANELS;
    let rows = min(p.rows, select(header[select(p.live, 0u, p.live == ALL)], p.rows, p.live == ALL));
    let first_row = group.z * ROWS;
    if (first_panel >= p.panels) | (first_row >= rows) {
        return;
    }
    load_exponents(thread, first_panel, first_row, rows);
    // Where a device makes smaller subgroups than it might, those too many repeat the last one's work.
    let square = min(subgroup, SQUARES - 1u);
    let top = square / ACROSS * SIDE;
    let left = square % ACROSS * SIDE;
    var sums: array<Sums, COUNT * COUNT>;
    for (var k = 0u; k < p.width; k += DEPTH) {
        workgroupBarrier();
        load_x(thread, first_row, rows, k);
        load_weight(thread, first_panel, k);
        workgroupBarrier();
        for (var i = 0u; i < DEPTH; i += FRAGMENT) {
            var w: array<Right, COUNT>;
            for (var c = 0u; c < COUNT; c++) {
                w[c] = coopLoad<Right>(&tile_w[(left + c * FRAGMENT) * STRIDE + i], STRIDE);
            }
            for (var r = 0u; r < COUNT; r++) {
                let v = coopLoadT<Left>(&tile_x[(top + r * FRAGMENT) * STRIDE + i], STRIDE);
                for (var c = 0u; c < COUNT; c++) {
                    sums[r * COUNT + c] = coopMultiplyAdd(v, w[c], sums[r * COUNT + c]);
                }
            }
        }
    }
    for (var r = 0u; r < COUNT; r++) {
        for (var c = 0u; c < COUNT; c++) {
            coopStoreT(sums[r * COUNT + c], &parts[(top + r * FRAGMENT) * WIDTH + left + c * FRAGMENT], WIDTH);
        }
    }
    workgroupBarrier();
    for (var i = thread; i < ROWS * WIDTH; i += THREADS) {
        let row = first_row + i / WIDTH;
        let panel = first_panel + i % WIDTH / LANES;
        if row < rows && panel < p.panels {
            finish(panel, row, i / WIDTH, i % LANES);
        }
    }
}

// Panels past the last and rows past the last live one are those again, and dropped.
fn panel_of(first_panel: u32, lane: u32) -> u32 {
    return min(first_panel + lane / LANES, p.panels - 1u);
}

fn load_exponents(thread: u32, first_panel: u32, first_row: u32, rows: u32) {
    for (var i = thread; i < ROWS; i += THREADS) {
        let row = min(first_row + i, rows - 1u);
        row_exponents[i] = i32(x[p.rows * p.x_stride + row / 2u][row % 2u * 2u]);
    }
    for (var i = thread; i < WIDTH; i += THREADS) {
        let lane = panel_of(first_panel, i) * LANES + i % LANES;
        lane_exponents[i] = 0;
        if FORMAT != Q8 && FORMAT != Q4 {
            lane_exponents[i] = bitcast<i32>(weight[p.scales + lane / 4u][lane % 4u]);
        }
    }
}

// Input features from `k` on; rows of halves end with zeros up to a whole tile.
fn load_x(thread: u32, first_row: u32, rows: u32, k: u32) {
    for (var at = thread; at < ROWS * DEPTH / 4u; at += THREADS) {
        let r = at / (DEPTH / 4u);
        let i = at % (DEPTH / 4u);
        let four = x[min(first_row + r, rows - 1u) * p.x_stride + k / 4u + i];
        for (var j = 0u; j < 4u; j++) {
            tile_x[r * STRIDE + 4u * i + j] = four[j];
        }
    }
}

fn load_weight(thread: u32, first_panel: u32, k: u32) {
    for (var at = thread; at < WIDTH * DEPTH / ELEMENTS; at += THREADS) {
        let lane = at % WIDTH;
        let s = k / ELEMENTS + at / WIDTH;
        var step = vec4<u32>();
        var multiplier = 0.0;
        if s < p.steps {
            let panel = panel_of(first_panel, lane);
            step = step_at((panel * p.steps + s) * LANES + lane % LANES);
            multiplier = multiplier_of(panel, s, lane % LANES);
        }
        let power = power_of_two(lane_exponents[lane]);
        for (var i = 0u; i < ELEMENTS; i++) {
            tile_w[lane * STRIDE + at / WIDTH * ELEMENTS + i] = half(number(step, i, multiplier) * power);
        }
    }
}

// To nearest, ties to even, where a device might round otherwise: other formats are f16 without rounding, but for what is
// far below the feature's largest.
fn half(value: f32) -> f16 {
    let bits = bitcast<u32>(value);
    if FORMAT == F32 && !is_nan(value) {
        return f16(bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u));
    }
    return f16(value);
}

fn sum_of(panel: u32, r: u32, lane: u32) -> f32 {
    let column = panel % PANELS * LANES + lane;
    let exponent = -(row_exponents[r] + lane_exponents[column]);
    // In two steps: a product of both powers may be out of range where the result is not.
    return parts[r * WIDTH + column] * power_of_two(exponent / 2) * power_of_two(exponent - exponent / 2);
}
