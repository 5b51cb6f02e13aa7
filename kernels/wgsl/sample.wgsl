// Log-probabilities and the next token, by the definition in crates/tensor/src/sampling.rs: a workgroup a row.
struct Params {
    rows: u32,
    live: u32,
    vocab: u32,
    logits: u32,
    logits_stride: u32,
    params: u32,
    params_stride: u32,
    adjust: u32,
    adjust_len: u32,
    adjust_stride: u32,
    ids: u32,
    logprobs: u32,
    top_ids: u32,
    top_ids_stride: u32,
    top_logprobs: u32,
    top_logprobs_stride: u32,
    masks: u32,
    mask_rows: u32,
    masks_stride: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(2) var<storage, read> logits: array<f32>;
@group(0) @binding(3) var<storage, read> params: array<u32>;
@group(0) @binding(4) var<storage, read> adjust: array<u32>;
// `[rows][vocab]`: adjusted logits.
@group(0) @binding(5) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(6) var<storage, read_write> ids: array<u32>;
#if RESULTS_APART
@group(0) @binding(7) var<storage, read_write> logprobs: array<u32>;
@group(0) @binding(8) var<storage, read_write> top_ids: array<u32>;
@group(0) @binding(9) var<storage, read_write> top_logprobs: array<u32>;
#endif

#if MASKS
@group(0) @binding(10) var<storage, read> masks: array<u32>;
#endif

const THREADS: u32 = 256u;
// Threads that bring a workgroup's values together; each has as many to bring.
const LEADERS: u32 = 16u;
const TOP: u32 = 20u;
const GREEDY: u32 = 0u;
const RANDOM: u32 = 1u;
const NOTHING: u32 = 0xffffffffu;
// Bits of minus infinity, which is compared as an integer: a compiler may assume that there is none.
const MINUS_INFINITY: u32 = 0xff800000u;

var<workgroup> keys: array<vec2<u32>, THREADS>;
var<workgroup> sums: array<f32, THREADS>;
var<workgroup> leader_sums: array<f32, LEADERS>;
var<workgroup> masses: array<vec2<u32>, THREADS>;
var<workgroup> leaders: array<vec2<u32>, LEADERS>;
var<workgroup> answer: u32;
// Tokens of each value of a digit, and their weight in pieces of MASS_BITS bits: those of 2^21 tokens fit a word.
const MASS_BITS: u32 = 11u;
const PIECES: u32 = 4u;
var<workgroup> digit_counts: array<atomic<u32>, THREADS>;
var<workgroup> digit_masses: array<array<atomic<u32>, PIECES>, THREADS>;

fn put_logprob(row: u32, value: u32) {
#if RESULTS_APART
    logprobs[p.logprobs + row] = value;
#else
    ids[p.logprobs + row] = value;
#endif
}

fn put_top(row: u32, i: u32, id: u32, logprob: u32) {
    let at = p.top_ids + row * p.top_ids_stride + i;
    let place = p.top_logprobs + row * p.top_logprobs_stride + i;
#if RESULTS_APART
    top_ids[at] = id;
    top_logprobs[place] = logprob;
#else
    ids[at] = id;
    ids[place] = logprob;
#endif
}

// NaN becomes minus infinity and -0 becomes +0: as bits.
fn clean(logit: f32) -> u32 {
    let bits = bitcast<u32>(logit);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return MINUS_INFINITY;
    }
    return select(bits, 0u, bits == 0x80000000u);
}

// Orders tokens: a higher logit, then a lower id, has the higher key.
fn rank_key(bits: u32, id: u32) -> vec2<u32> {
    let ordered = select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
    return vec2<u32>(~id, ordered);
}

fn key_bits(key: vec2<u32>) -> u32 {
    return select(~key.y, key.y & 0x7fffffffu, (key.y >> 31u) == 1u);
}

fn row_logit(row: u32, id: u32) -> u32 {
    return clean(logits[p.logits + row * p.logits_stride + id]);
}

// Whether the mask of the row, whose parameters are at `at`, has the token's bit; true for rows without one.
fn allowed(at: u32, id: u32) -> bool {
#if MASKS
    let mask = params[at + 15u];
    if mask > 0u && mask <= p.mask_rows {
        return ((masks[p.masks + (mask - 1u) * p.masks_stride + id / 32u] >> (id % 32u)) & 1u) == 1u;
    }
#endif
    return true;
}

fn is_adjusted(at: u32) -> bool {
    return params[at + 11u] > 0u || params[at + 15u] > 0u;
}

// After `adjust_row`.
fn adjusted_logit(row: u32, id: u32) -> u32 {
    if !is_adjusted(p.params + row * p.params_stride) {
        return row_logit(row, id);
    }
    return bitcast<u32>(scratch[row * p.vocab + id]);
}

// The highest of all threads' keys.
fn highest_key(thread: u32, mine: vec2<u32>) -> vec2<u32> {
    keys[thread] = mine;
    workgroupBarrier();
    if thread < LEADERS {
        var key = keys[thread];
        for (var i = thread + LEADERS; i < THREADS; i += LEADERS) {
            if less(key, keys[i]) {
                key = keys[i];
            }
        }
        leaders[thread] = key;
    }
    workgroupBarrier();
    var key = leaders[0];
    for (var i = 1u; i < LEADERS; i++) {
        if less(key, leaders[i]) {
            key = leaders[i];
        }
    }
    return key;
}

// The thread's highest key below `below`.
fn own_key(row: u32, thread: u32, below: vec2<u32>) -> vec2<u32> {
    var key = vec2<u32>(0u);
    for (var id = thread; id < p.vocab; id += THREADS) {
        let other = rank_key(row_logit(row, id), id);
        if less(other, below) && less(key, other) {
            key = other;
        }
    }
    return key;
}

// floor(e * 2^40), e in 0..=1.
fn fixed_point(e: f32) -> vec2<u32> {
    let bits = bitcast<u32>(e);
    let exponent = bits >> 23u;
    if exponent == 0u {
        return vec2<u32>(0u);
    }
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    // The mantissa counts 2^(exponent - 150), the result 2^-40.
    if exponent >= 110u {
        let shift = exponent - 110u;
        return vec2<u32>(mantissa << shift, select(0u, mantissa >> (32u - shift), shift > 0u));
    }
    let shift = 110u - exponent;
    return vec2<u32>(select(0u, mantissa >> shift, shift < 32u), 0u);
}

fn weight(bits: u32, max_bits: u32, inverse: f32) -> vec2<u32> {
    if bits == max_bits {
        return vec2<u32>(0u, 256u);
    }
    if bits == MINUS_INFINITY || max_bits == 0x7f800000u {
        return vec2<u32>(0u);
    }
    let difference = bitcast<f32>(bits) - bitcast<f32>(max_bits);
    // At an infinite inverse temperature only the highest has weight.
    if bitcast<u32>(inverse) == 0x7f800000u {
        return vec2<u32>(0u);
    }
    return fixed_point(exact_exp(product(difference, inverse)));
}

fn philox(seed: vec2<u32>, position: u32, choice: u32) -> vec2<u32> {
    var c = vec4<u32>(position, choice, 0u, 0u);
    var key = seed;
    for (var round = 0u; round < 10u; round++) {
        if round > 0u {
            key += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
        }
        let a = multiply_words(c.x, 0xD2511F53u);
        let b = multiply_words(c.z, 0xCD9E8D57u);
        c = vec4<u32>(b.y ^ c.y ^ key.x, b.x, a.y ^ c.w ^ key.y, a.x);
    }
    return c.xy;
}

// The weight of all tokens from `least` on.
fn mass_from(row: u32, thread: u32, least: vec2<u32>, max_bits: u32, inverse: f32) -> vec2<u32> {
    var mass = vec2<u32>(0u);
    for (var id = thread; id < p.vocab; id += THREADS) {
        let bits = adjusted_logit(row, id);
        if !less(rank_key(bits, id), least) {
            mass = add(mass, weight(bits, max_bits, inverse));
        }
    }
    masses[thread] = mass;
    workgroupBarrier();
    if thread < LEADERS {
        for (var i = thread + LEADERS; i < THREADS; i += LEADERS) {
            mass = add(mass, masses[i]);
        }
        leaders[thread] = mass;
    }
    workgroupBarrier();
    mass = leaders[0];
    for (var i = 1u; i < LEADERS; i++) {
        mass = add(mass, leaders[i]);
    }
    return mass;
}

// The highest key that has at least `count` tokens of at least `mass` together above or at it, found digit by digit
// (of eight bits) from the highest.
fn cut(row: u32, thread: u32, count: u32, mass: vec2<u32>, max_bits: u32, inverse: f32) -> vec2<u32> {
    let weighs = mass.x != 0u || mass.y != 0u;
    var key = vec2<u32>(0u);
    // The digits found so far.
    var known = vec2<u32>(0u);
    // Of tokens whose known digits are higher.
    var above = 0u;
    var mass_above = vec2<u32>(0u);
    for (var digit = 8u; digit > 0u; digit--) {
        let high = digit > 4u;
        let shift = 8u * ((digit - 1u) % 4u);
        workgroupBarrier();
        atomicStore(&digit_counts[thread], 0u);
        for (var i = 0u; i < PIECES; i++) {
            atomicStore(&digit_masses[thread][i], 0u);
        }
        workgroupBarrier();
        for (var id = thread; id < p.vocab; id += THREADS) {
            let bits = adjusted_logit(row, id);
            let other = rank_key(bits, id);
            if ((other.x ^ key.x) & known.x) != 0u || ((other.y ^ key.y) & known.y) != 0u {
                continue;
            }
            let value = (select(other.x, other.y, high) >> shift) & 0xffu;
            atomicAdd(&digit_counts[value], 1u);
            if weighs {
                let w = weight(bits, max_bits, inverse);
                let piece = (1u << MASS_BITS) - 1u;
                atomicAdd(&digit_masses[value][0], w.x & piece);
                atomicAdd(&digit_masses[value][1], (w.x >> MASS_BITS) & piece);
                atomicAdd(&digit_masses[value][2], ((w.x >> (2u * MASS_BITS)) | (w.y << (32u - 2u * MASS_BITS))) & piece);
                atomicAdd(&digit_masses[value][3], w.y >> (3u * MASS_BITS - 32u));
            }
        }
        workgroupBarrier();
        var value = THREADS;
        loop {
            value--;
            let here = atomicLoad(&digit_counts[value]);
            var mass_here = vec2<u32>(0u);
            if weighs && here > 0u {
                for (var i = PIECES; i > 0u; i--) {
                    let carried = mass_here.x >> (32u - MASS_BITS);
                    mass_here = vec2<u32>(mass_here.x << MASS_BITS, (mass_here.y << MASS_BITS) | carried);
                    mass_here = add(mass_here, vec2<u32>(atomicLoad(&digit_masses[value][i - 1u]), 0u));
                }
            }
            let mass_both = add(mass_above, mass_here);
            if value == 0u || (above + here >= count && !less(mass_both, mass)) {
                break;
            }
            above += here;
            mass_above = mass_both;
        }
        if high {
            key.y |= value << shift;
            known.y |= 0xffu << shift;
        } else {
            key.x |= value << shift;
            known.x |= 0xffu << shift;
        }
    }
    return key;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = grid_index(group);
    if row >= live_rows(p.rows, p.live) {
        return;
    }
    let at = p.params + row * p.params_stride;
    let mode = params[at];
    // The highest logit, and the sum of exponentials.
    var mine = own_key(row, thread, vec2<u32>(NOTHING));
    let highest = highest_key(thread, mine);
    let max_bits = key_bits(highest);
    let infinite = (max_bits & 0x7fffffffu) == 0x7f800000u;
    var sum = 0.0;
    for (var id = thread; id < p.vocab; id += THREADS) {
        let bits = row_logit(row, id);
        if bits != MINUS_INFINITY && !infinite {
            sum += exact_exp(bitcast<f32>(bits) - bitcast<f32>(max_bits));
        }
    }
    sums[thread] = sum;
    workgroupBarrier();
    if thread < LEADERS {
        for (var i = thread + LEADERS; i < THREADS; i += LEADERS) {
            sum += sums[i];
        }
        leader_sums[thread] = sum;
    }
    workgroupBarrier();
    sum = leader_sums[0];
    for (var i = 1u; i < LEADERS; i++) {
        sum += leader_sums[i];
    }
    let log_sum = log(sum);
    // The highest tokens, one after the other: who had the last looks for another.
    var key = highest;
    for (var i = 0u; i < TOP; i++) {
        if i >= p.vocab {
            if thread == 0u {
                put_top(row, i, NOTHING, MINUS_INFINITY);
            }
            continue;
        }
        if i > 0u {
            if all(mine == key) {
                mine = own_key(row, thread, key);
            }
            key = highest_key(thread, mine);
        }
        if thread == 0u {
            put_top(row, i, ~key.x, logprob(key_bits(key), max_bits, log_sum));
        }
    }
    var id = params[at + 1u];
    if mode == GREEDY || mode == RANDOM {
        var first = highest;
        if is_adjusted(at) {
            adjust_row(row, thread, at);
            first = vec2<u32>(0u);
            for (var token = thread; token < p.vocab; token += THREADS) {
                let key = rank_key(adjusted_logit(row, token), token);
                if less(first, key) {
                    first = key;
                }
            }
            first = highest_key(thread, first);
        }
        id = ~first.x;
        if key_bits(first) == MINUS_INFINITY {
            // All are banned: the highest logit as it was, of those that a mask allows, if it allows any.
            var inside = vec2<u32>(0u);
            for (var token = thread; token < p.vocab; token += THREADS) {
                let key = rank_key(row_logit(row, token), token);
                if allowed(at, token) && less(inside, key) {
                    inside = key;
                }
            }
            inside = highest_key(thread, inside);
            id = ~select(inside, highest, all(inside == vec2<u32>(0u))).x;
        } else if mode == RANDOM {
            id = drawn(row, thread, at, key_bits(first));
        }
    }
    if thread == 0u {
        ids[p.ids + row] = id;
        put_logprob(row, logprob(row_logit(row, min(id, p.vocab - 1u)), max_bits, log_sum));
    }
}

fn logprob(bits: u32, max_bits: u32, log_sum: f32) -> u32 {
    if bits == MINUS_INFINITY && max_bits != MINUS_INFINITY {
        return MINUS_INFINITY;
    }
    if (max_bits & 0x7fffffffu) == 0x7f800000u {
        return UNDEFINED;
    }
    return bitcast<u32>((bitcast<f32>(bits) - bitcast<f32>(max_bits)) - log_sum);
}

const UNDEFINED: u32 = 0x7fc00000u;

// Writes the row's adjusted logits to `scratch`.
fn adjust_row(row: u32, thread: u32, at: u32) {
    for (var id = thread; id < p.vocab; id += THREADS) {
        scratch[row * p.vocab + id] = bitcast<f32>(select(MINUS_INFINITY, row_logit(row, id), allowed(at, id)));
    }
    storageBarrier();
    workgroupBarrier();
    let start = params[at + 10u];
    let end = min(start + params[at + 11u], p.adjust_len);
    let repetition = bitcast<f32>(params[at + 12u]);
    let frequency = bitcast<f32>(params[at + 13u]);
    let presence = bitcast<f32>(params[at + 14u]);
    for (var i = start + thread; i < end; i += THREADS) {
        let entry = p.adjust + i * p.adjust_stride;
        let token = adjust[entry];
        let uses = adjust[entry + 1u];
        let flags = adjust[entry + 2u];
        if token >= p.vocab {
            continue;
        }
        let bits = row_logit(row, token);
        var result = MINUS_INFINITY;
        if (flags & 2u) == 0u && allowed(at, token) {
            if (bits & 0x7fffffffu) == 0x7f800000u {
                result = bits;
            } else {
                var l = bitcast<f32>(bits);
                if uses > 0u || (flags & 1u) != 0u {
                    l = select(product(l, repetition), divide(l, repetition), l > 0.0);
                }
                if uses > 0u {
                    l -= product(frequency, f32(uses));
                    l -= presence;
                }
                l += bitcast<f32>(adjust[entry + 3u]);
                result = clean(l);
            }
        }
        scratch[row * p.vocab + token] = bitcast<f32>(result);
    }
    storageBarrier();
    workgroupBarrier();
}

// The token a random row takes.
fn drawn(row: u32, thread: u32, at: u32, max_bits: u32) -> u32 {
    let temperature = bitcast<f32>(params[at + 2u]);
    let top_k = params[at + 3u];
    let top_p = clamp(bitcast<f32>(params[at + 4u]), 0.0, 1.0);
    let min_p = clamp(bitcast<f32>(params[at + 5u]), 0.0, 1.0);
    let inverse = divide(1.0, temperature);
    var least = vec2<u32>(0u);
    if top_k > 0u && top_k < p.vocab {
        least = cut(row, thread, top_k, vec2<u32>(0u), max_bits, inverse);
    }
    if top_p < 1.0 {
        let total = mass_from(row, thread, least, max_bits, inverse);
        // top_p in 32-bit fixed point.
        let fraction = u32(top_p * 4294967296.0);
        let low = multiply_words(total.x, fraction);
        let high = multiply_words(total.y, fraction);
        var mass = add(high, vec2<u32>(low.y, 0u));
        if mass.x == 0u && mass.y == 0u {
            mass.x = 1u;
        }
        let key = cut(row, thread, 1u, mass, max_bits, inverse);
        if less(least, key) {
            least = key;
        }
    }
    let least_weight = fixed_point(min_p);
    // Each thread has a run of ids.
    let run = (p.vocab + THREADS - 1u) / THREADS;
    let start = min(thread * run, p.vocab);
    let end = min(start + run, p.vocab);
    var mass = vec2<u32>(0u);
    for (var id = start; id < end; id++) {
        mass = add(mass, kept(row, id, least, least_weight, max_bits, inverse));
    }
    workgroupBarrier();
    masses[thread] = mass;
    workgroupBarrier();
    var total = vec2<u32>(0u);
    var before = vec2<u32>(0u);
    for (var i = 0u; i < THREADS; i++) {
        if i == thread {
            before = total;
        }
        total = add(total, masses[i]);
    }
    let bits = philox(vec2<u32>(params[at + 6u], params[at + 7u]), params[at + 9u], params[at + 8u]);
    let goal = multiply_high(bits, total);
    let after = add(before, mass);
    if !less(goal, before) && less(goal, after) {
        var running = before;
        for (var id = start; id < end; id++) {
            running = add(running, kept(row, id, least, least_weight, max_bits, inverse));
            if less(goal, running) {
                answer = id;
                break;
            }
        }
    }
    workgroupBarrier();
    return answer;
}

fn kept(row: u32, id: u32, least: vec2<u32>, least_weight: vec2<u32>, max_bits: u32, inverse: f32) -> vec2<u32> {
    let bits = adjusted_logit(row, id);
    let mine = weight(bits, max_bits, inverse);
    if less(rank_key(bits, id), least) || less(mine, least_weight) {
        return vec2<u32>(0u);
    }
    return mine;
}
