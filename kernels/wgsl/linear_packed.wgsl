// `linear` of q8 and q4 weights on signed bytes, four to a word, as crates/tensor/src/quant.rs has it: rows of activations
// become bytes (`ByteRow`), dot4I8Packed multiplies four pairs at a time, and sums are exact in i32. Their order is
// free, so that K is cut as it suits, and a sum depends neither on who computes it nor on how many rows there are.
//
// A workgroup first measures its rows: their scales, and which have a rest, a second row of bytes. Then it takes K in
// chunks of DEPTH input features, makes bytes of a chunk of the rows, and multiplies them. Few rows: all threads read
// the weights of one panel, every step once. Many rows (TILED): PANELS panels, from tiles of weights that are bytes too.
const SPLITS: u32 = 16u;
const THREADS: u32 = SPLITS * LANES;
// Threads that measure a row.
const TEAM: u32 = THREADS / ROWS;
#if TILED
// Panels of a workgroup; threads of a row of threads are lanes, and each has PANELS lanes of SHARE rows.
const PANELS: u32 = 4u;
const SHARE: u32 = 4u;
const THREAD_ROWS: u32 = 16u;
const WIDTH: u32 = PANELS * LANES;
const DEPTH: u32 = 64u;
#else
const DEPTH: u32 = min(4096u, 8192u / ROWS);
#endif
// Bytes come in units of sixteen input features, a vec4<u32>.
const UNIT: u32 = 16u;
const UNITS: u32 = DEPTH / UNIT;
// Units of a step of weights.
const STEP_UNITS: u32 = ELEMENTS / UNIT;
// Where rests begin among the bytes.
const RESTS: u32 = ROWS * UNITS;

// Of crates/tensor/src/quant.rs.
const BYTE: f32 = 127.0;
const OUTLIER: f32 = 24.0;

struct Scales {
    row: f32,
    inverse: f32,
    rest: f32,
    rest_inverse: f32,
}
var<workgroup> scales: array<Scales, ROWS>;
var<workgroup> has_rest: array<bool, ROWS>;
// Whether any row of the workgroup has one.
var<workgroup> rests: atomic<u32>;
// The bits of largest magnitudes, which are ordered as the numbers are, those that are not finite last.
var<workgroup> largest: array<atomic<u32>, ROWS>;
var<workgroup> magnitudes: array<f32, THREADS>;
var<workgroup> bytes: array<vec4<u32>, 2u * RESTS>;
#if TILED
var<workgroup> tile: array<vec4<u32>, UNITS * WIDTH>;
var<workgroup> parts: array<f32, ROWS * LANES>;
#else
// Of rows, then of rests.
var<workgroup> sums: array<atomic<i32>, 2u * ROWS * LANES>;
#endif

// Where row `r` of the workgroup begins. Rows past the last are the last once more, and dropped in the end.
fn place_of(first_row: u32, r: u32, rows: u32) -> u32 {
    return p.x + min(first_row + r, rows - 1u) * p.x_stride;
}

// Input features from `k` on of the row that begins at `first`, zeros past the last.
fn load_four(first: u32, k: u32) -> vec4<f32> {
#if X_VECTORS
    if k < p.width {
        return x[(first + k) / 4u];
    }
    return vec4<f32>();
#else
    var v = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if k + i < p.width {
            v[i] = x[first + k + i];
        }
    }
    return v;
#endif
}

// The whole numbers that bytes hold. Nothing merges the product into what is done with it, and so it is rounded twice,
// as on the host.
fn whole(v: vec4<f32>, inverse: f32) -> vec4<f32> {
    return round(clamp(v * inverse, vec4<f32>(-BYTE), vec4<f32>(BYTE)));
}

// What bytes leave, with the bits of a fused multiply-add where the device has none: products of a byte with either part
// of the scale are exact, and so is the first difference, of numbers that are near each other.
fn left(v: vec4<f32>, s: Scales) -> vec4<f32> {
    let q = whole(v, s.inverse);
    let high = bitcast<f32>(bitcast<u32>(s.row) & 0xffffff80u);
    return (v - q * high) - q * (s.row - high);
}

fn most_of(v: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// 0 where the scale is.
fn inverse_of(scale: f32) -> f32 {
    if scale == 0.0 {
        return 0.0;
    }
    return divide(1.0, scale);
}

// Finds the scales of the workgroup's rows.
fn measure(thread: u32, first_row: u32, rows: u32) {
    let r = thread / TEAM;
    let member = thread % TEAM;
    let first = place_of(first_row, r, rows);
    var sum = 0.0;
    var most = 0u;
    for (var k = 4u * member; k < p.width; k += 4u * TEAM) {
        let v = load_four(first, k);
        most = max(most, most_of(v));
        sum += (abs(v.x) + abs(v.y)) + (abs(v.z) + abs(v.w));
    }
    atomicMax(&largest[r], most);
    magnitudes[thread] = sum;
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if member < half {
            magnitudes[thread] += magnitudes[thread + half];
        }
    }
    workgroupBarrier();
    if member == 0u {
        judge(r, first, magnitudes[thread]);
    }
    workgroupBarrier();
    if has_rest[r] {
        let s = scales[r];
        most = 0u;
        for (var k = 4u * member; k < p.width; k += 4u * TEAM) {
            most = max(most, most_of(left(load_four(first, k), s)));
        }
        atomicMax(&largest[r], most);
    }
    workgroupBarrier();
    if member == 0u && has_rest[r] {
        let scale = divide(bitcast<f32>(atomicLoad(&largest[r])), BYTE);
        scales[r].rest = scale;
        scales[r].rest_inverse = inverse_of(scale);
    }
    workgroupBarrier();
}

// The scale of a row, and whether it has a rest: `sum` is that of its magnitudes, in some order.
fn judge(r: u32, first: u32, sum: f32) {
    let most = bitcast<f32>(atomicLoad(&largest[r]));
    let n = f32(p.width);
    var exact = sum;
    // Near the limit the order decides, and near the largest number whether the sum is one. Two orders of at most
    // 133,144 numbers (`quant::FEATURES`) differ by less than one in 512.
    if sum >= 1e38 || !(abs(most * n - OUTLIER * sum) >= most * n / 512.0) {
        exact = sum_in_order(first);
    }
    let bits = bitcast<u32>(exact);
    if bits >= 0x7f800000u {
        // Not a number, and nor is what becomes of the row.
        scales[r] = Scales(bitcast<f32>(bits | 0x7fc00000u), 0.0, 0.0, 0.0);
        return;
    }
    let scale = divide(most, BYTE);
    scales[r] = Scales(scale, inverse_of(scale), 0.0, 0.0);
    if most > rounded(OUTLIER * divide(exact, n)) {
        has_rest[r] = true;
        atomicStore(&rests, 1u);
        atomicStore(&largest[r], 0u);
    }
}

// The sum of magnitudes in the order of `ByteRow`, by one thread: it is rarely asked for.
fn sum_in_order(first: u32) -> f32 {
    var lanes: array<f32, 16>;
    for (var k = 0u; k < p.width; k += 16u) {
        for (var i = 0u; i < min(16u, p.width - k); i++) {
            lanes[i] += abs(load_x(first, k + i));
        }
    }
    for (var half = 8u; half > 0u; half /= 2u) {
        for (var i = 0u; i < half; i++) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

fn word(v: vec4<f32>) -> u32 {
    return pack4xI8(vec4<i32>(v));
}

// Sixteen whole numbers as bytes. For q4, the even ones of eight before the odd ones, as `spread` has nibbles.
fn unit(v: array<vec4<f32>, 4>) -> vec4<u32> {
    let a = v[0];
    let b = v[1];
    let c = v[2];
    let d = v[3];
#if FORMAT_Q4
    return vec4<u32>(
        word(vec4<f32>(a.xz, b.xz)), word(vec4<f32>(a.yw, b.yw)), word(vec4<f32>(c.xz, d.xz)), word(vec4<f32>(c.yw, d.yw)),
    );
#else
    return vec4<u32>(word(a), word(b), word(c), word(d));
#endif
}

// Makes bytes of the input features from `start` on of the workgroup's rows.
fn load_bytes(thread: u32, first_row: u32, rows: u32, start: u32, with_rests: bool) {
    for (var at = thread; at < RESTS; at += THREADS) {
        let r = at / UNITS;
        let s = scales[r];
        let first = place_of(first_row, r, rows);
        let k = start + at % UNITS * UNIT;
        var v: array<vec4<f32>, 4>;
        for (var i = 0u; i < 4u; i++) {
            v[i] = load_four(first, k + 4u * i);
        }
        var q: array<vec4<f32>, 4>;
        for (var i = 0u; i < 4u; i++) {
            q[i] = whole(v[i], s.inverse);
        }
        bytes[at] = unit(q);
        if with_rests {
            // Zeros where the row has none.
            for (var i = 0u; i < 4u; i++) {
                q[i] = whole(left(v[i], s), s.rest_inverse);
            }
            bytes[RESTS + at] = unit(q);
        }
    }
}

fn dot_unit(a: vec4<u32>, b: vec4<u32>) -> i32 {
    return (dot4I8Packed(a.x, b.x) + dot4I8Packed(a.y, b.y)) + (dot4I8Packed(a.z, b.z) + dot4I8Packed(a.w, b.w));
}

// Sixteen nibbles as bytes that are sixteen times as large: the even ones of a word, then its odd ones.
fn spread(pair: vec2<u32>) -> vec4<u32> {
    return vec4<u32>(pair.x << 4u, pair.x, pair.y << 4u, pair.y) & vec4<u32>(0xf0f0f0f0u);
}

fn multiplier(place: u32) -> i32 {
    return extractBits(bitcast<i32>(weight[p.multipliers + place / 16u][place % 16u / 4u]), place % 4u * 8u, 8u);
}

// What row `r` with the sums of its products, and of its rest's, has as a sum over K.
fn valued(r: u32, sum: i32, rest: i32) -> f32 {
    let s = scales[r];
    let value = rounded(f32(sum) * s.row);
    if has_rest[r] {
        return fma(f32(rest), s.rest, value);
    }
    return value;
}

#if TILED
@compute @workgroup_size(LANES, THREAD_ROWS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first_panel = grid_index(group) * PANELS;
    let rows = live_rows(p.rows, p.live);
    let first_row = group.z * ROWS;
    if first_panel >= p.panels || first_row >= rows {
        return;
    }
    measure(thread, first_row, rows);
    let with_rests = atomicLoad(&rests) != 0u;
    // Those of rests after the others.
    var found: array<i32, 2u * PANELS * SHARE>;
    for (var k = 0u; k < p.width; k += DEPTH) {
        workgroupBarrier();
        load_tile(thread, first_panel, k / ELEMENTS);
        load_bytes(thread, first_row, rows, k, with_rests);
        workgroupBarrier();
        for (var u = 0u; u < UNITS; u++) {
            var w: array<vec4<u32>, PANELS>;
            for (var panel = 0u; panel < PANELS; panel++) {
                w[panel] = tile[u * WIDTH + panel * LANES + local.x];
            }
            for (var i = 0u; i < SHARE; i++) {
                let at = (i * THREAD_ROWS + local.y) * UNITS + u;
                let row = bytes[at];
                for (var panel = 0u; panel < PANELS; panel++) {
                    found[i * PANELS + panel] += dot_unit(row, w[panel]);
                }
                if with_rests {
                    let rest = bytes[RESTS + at];
                    for (var panel = 0u; panel < PANELS; panel++) {
                        found[(SHARE + i) * PANELS + panel] += dot_unit(rest, w[panel]);
                    }
                }
            }
        }
    }
    for (var panel = 0u; panel < PANELS; panel++) {
        workgroupBarrier();
        for (var i = 0u; i < SHARE; i++) {
            let r = i * THREAD_ROWS + local.y;
            parts[r * LANES + local.x] = valued(r, found[i * PANELS + panel], found[(SHARE + i) * PANELS + panel]);
        }
        workgroupBarrier();
        for (var i = thread; i < ROWS * LANES; i += THREADS) {
            let row = first_row + i / LANES;
            if row < rows && first_panel + panel < p.panels {
                finish(first_panel + panel, row, i / LANES, i % LANES);
            }
        }
    }
}

// Weights from step `first` on, of all lanes of the workgroup. What lies past the last step meets activations of zero,
// and panels past the last are read again and dropped.
fn load_tile(thread: u32, first_panel: u32, first: u32) {
    for (var at = thread; at < UNITS * WIDTH; at += THREADS) {
        let u = at / WIDTH;
        let step = min(first + u / STEP_UNITS, p.steps - 1u);
        let panel = min(first_panel + at % WIDTH / LANES, p.panels - 1u);
        let place = (panel * p.steps + step) * LANES + at % LANES;
        let w = weight[place];
#if FORMAT_Q4
        let nibbles = spread(select(w.xy, w.zw, u % 2u == 1u));
        let by = multiplier(place);
        tile[at] = vec4<u32>(times(nibbles.x, by), times(nibbles.y, by), times(nibbles.z, by), times(nibbles.w, by));
#else
        tile[at] = w;
#endif
    }
}

// Four nibbles as `spread` has them, times their multiplier.
fn times(nibbles: u32, by: i32) -> u32 {
    return pack4xI8((unpack4xI8(nibbles) >> vec4<u32>(4u)) * by);
}
#else
@compute @workgroup_size(LANES, SPLITS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let panel = grid_index(group);
    let rows = live_rows(p.rows, p.live);
    let first_row = group.z * ROWS;
    if panel >= p.panels || first_row >= rows {
        return;
    }
    measure(thread, first_row, rows);
    let with_rests = atomicLoad(&rests) != 0u;
    var found: array<i32, 2u * ROWS>;
    for (var k = 0u; k < p.width; k += DEPTH) {
        workgroupBarrier();
        load_bytes(thread, first_row, rows, k, with_rests);
        workgroupBarrier();
        let first = k / ELEMENTS;
        let end = min(p.steps - first, DEPTH / ELEMENTS);
        // Steps next to each other lie next to each other in memory, and so do the threads that take them.
        for (var step = local.y; step < end; step += SPLITS) {
            let place = (panel * p.steps + first + step) * LANES + local.x;
            let w = weight[place];
            var by = 1;
#if FORMAT_Q4
            by = multiplier(place);
#endif
            for (var r = 0u; r < ROWS; r++) {
                let at = r * UNITS + step * STEP_UNITS;
                found[r] += dot_step(w, by, at);
                if with_rests {
                    found[ROWS + r] += dot_step(w, by, RESTS + at);
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        atomicAdd(&sums[r * LANES + local.x], found[r]);
        if with_rests {
            atomicAdd(&sums[(ROWS + r) * LANES + local.x], found[ROWS + r]);
        }
    }
    workgroupBarrier();
    for (var i = thread; i < ROWS * LANES; i += THREADS) {
        let row = first_row + i / LANES;
        if row < rows {
            finish(panel, row, i / LANES, i % LANES);
        }
    }
}

// A step of weights times the bytes from `at` on. The products of a group are a whole number of sixteens.
fn dot_step(w: vec4<u32>, by: i32, at: u32) -> i32 {
#if FORMAT_Q4
    return ((dot_unit(spread(w.xy), bytes[at]) + dot_unit(spread(w.zw), bytes[at + 1u])) >> 4u) * by;
#else
    return dot_unit(w, bytes[at]);
#endif
}
#endif

// The sum of lane `lane` for row `r` of the workgroup.
fn sum_of(panel: u32, r: u32, lane: u32) -> f32 {
#if TILED
    return parts[r * LANES + lane];
#else
    return valued(r, atomicLoad(&sums[r * LANES + lane]), atomicLoad(&sums[(ROWS + r) * LANES + lane]));
#endif
}
