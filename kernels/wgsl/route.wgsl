// Chooses PER_TOKEN of EXPERTS experts and their weights: a workgroup a row. `route_sort` makes the order of pairs.
//
// An expert's rank is how many come before it, by key and then by number: ranks are all different whatever the logits
// are, so the experts of a row are too.
struct Params {
    rows: u32,
    live: u32,
    sigmoid: u32,
    renormalise: u32,
    scale: f32,
    logits: u32,
    logits_stride: u32,
    bias: u32,
    weights: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
// `[rows][PER_TOKEN]`: chosen experts, the best first.
@group(0) @binding(4) var<storage, read_write> chosen: array<u32>;
#if BIAS
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#endif

const THREADS: u32 = 128u;
// Threads that bring a workgroup's values together.
const LEADERS: u32 = 16u;
// The least that weights are divided by.
const LEAST: f32 = 1e-20;
const MINUS_INFINITY: u32 = 0xff800000u;

var<workgroup> keys: array<u32, EXPERTS>;
var<workgroup> scores: array<f32, PER_TOKEN>;
var<workgroup> most: array<u32, THREADS>;
var<workgroup> sums: array<f32, THREADS>;
#if GROUPS
var<workgroup> group_keys: array<u32, GROUP_COUNT>;
#endif

// Integers in the order of floats; what is not a number is minus infinity, and both zeros are one.
fn ordered(x: f32) -> u32 {
    var bits = bitcast<u32>(x);
    if is_nan(x) {
        bits = MINUS_INFINITY;
    }
    bits = select(bits, 0u, bits == 0x80000000u);
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// The number that `ordered` made an integer of.
fn number(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key >> 31u) == 1u));
}

fn logit(row: u32, expert: u32) -> f32 {
    return logits[p.logits + row * p.logits_stride + expert];
}

// The largest logit of the row, and what e^(logit - largest) add up to.
fn softmax_of(row: u32, thread: u32) -> vec2<f32> {
    var key = 0u;
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        key = max(key, ordered(logit(row, expert)));
    }
    most[thread] = key;
    workgroupBarrier();
    for (var i = 0u; i < THREADS; i++) {
        key = max(key, most[i]);
    }
    let largest = number(key);
    var sum = 0.0;
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        sum += exact_exp(logit(row, expert) - largest);
    }
    sums[thread] = sum;
    workgroupBarrier();
    if thread < LEADERS {
        for (var i = thread + LEADERS; i < THREADS; i += LEADERS) {
            sum += sums[i];
        }
        sums[thread] = sum;
    }
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < LEADERS; i++) {
        sum += sums[i];
    }
    return vec2<f32>(largest, sum);
}

fn score(row: u32, expert: u32, softmax: vec2<f32>) -> f32 {
    let x = logit(row, expert);
    if p.sigmoid != 0u {
        return quotient(1.0, 1.0 + exact_exp(-x));
    }
    return quotient(exact_exp(x - softmax.x), softmax.y);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    var softmax = vec2<f32>(0.0);
    if p.sigmoid == 0u {
        softmax = softmax_of(row, thread);
    }
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
#if BIAS
        keys[expert] = ordered(score(row, expert, softmax) + bias[p.bias + expert]);
#else
#if BY_SCORE
        keys[expert] = ordered(score(row, expert, softmax));
#else
        // Softmax keeps the order of logits, and does not make different ones equal.
        var value = logit(row, expert);
        if p.sigmoid != 0u {
            value = score(row, expert, softmax);
        }
        keys[expert] = ordered(value);
#endif
#endif
    }
    workgroupBarrier();
#if GROUPS
    keep_groups(thread);
#endif
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        let key = keys[expert];
        var rank = 0u;
        for (var other = 0u; other < EXPERTS; other++) {
            let before = keys[other] > key || (keys[other] == key && other < expert);
            rank += select(0u, 1u, before);
        }
        if rank < PER_TOKEN {
            chosen[row * PER_TOKEN + rank] = expert;
            scores[rank] = score(row, expert, softmax);
        }
    }
    workgroupBarrier();
    var divisor = 1.0;
    if p.renormalise != 0u {
        var sum = 0.0;
        for (var i = 0u; i < PER_TOKEN; i++) {
            sum += scores[i];
        }
        divisor = max(sum, LEAST);
    }
    for (var i = thread; i < PER_TOKEN; i += THREADS) {
        weights[p.weights + row * PER_TOKEN + i] = quotient(scores[i], divisor) * p.scale;
    }
}

#if GROUPS
// Experts of other groups than the best get the key below all others.
fn keep_groups(thread: u32) {
    let size = EXPERTS / GROUP_COUNT;
    for (var group = thread; group < GROUP_COUNT; group += THREADS) {
        var most = 0u;
        var second = 0u;
        for (var i = group * size; i < (group + 1u) * size; i++) {
            second = max(second, min(most, keys[i]));
            most = max(most, keys[i]);
        }
#if TWO_HIGHEST
        if size > 1u {
            most = ordered(number(most) + number(second));
        }
#endif
        group_keys[group] = most;
    }
    workgroupBarrier();
    for (var expert = thread; expert < EXPERTS; expert += THREADS) {
        let group = expert / size;
        let key = group_keys[group];
        var rank = 0u;
        for (var other = 0u; other < GROUP_COUNT; other++) {
            let before = group_keys[other] > key || (group_keys[other] == key && other < group);
            rank += select(0u, 1u, before);
        }
        if rank >= GROUPS_KEPT {
            keys[expert] = 0u;
        }
    }
    workgroupBarrier();
}
#endif
