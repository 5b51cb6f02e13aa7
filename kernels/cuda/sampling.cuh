// The arithmetic of crates/tensor/src/sampling.rs, to the bit.

// `SampleParams` of crates/tensor.
struct Sampling {
    u32 mode;
    u32 target;
    float temperature;
    u32 top_k;
    float top_p;
    float min_p;
    u32 seed_low;
    u32 seed_high;
    u32 choice;
    u32 position;
    u32 adjust_start;
    u32 adjust_len;
    float repetition;
    float frequency;
    float presence;
    u32 mask;
};
// Of `SampleMode`; what is below chooses the highest, what is above nothing.
const u32 RANDOM = 1;

// `Adjust` of crates/tensor.
struct Adjust {
    u32 token;
    u32 output_count;
    u32 flags;
    float bias;
};
const u32 IN_PROMPT = 1, BANNED = 2;

// NaN becomes minus infinity and -0 becomes +0.
SHARED_DEVICE float clean(float l) { return l != l ? -infinity() : l + 0.0f; }

SHARED_DEVICE float adjusted(float l, const Adjust& entry, const Sampling& s) {
    if (entry.output_count > 0 || (entry.flags & IN_PROMPT)) l = l > 0.0f ? l / s.repetition : l * s.repetition;
    if (entry.output_count > 0) {
        l -= s.frequency * float(entry.output_count);
        l -= s.presence;
    }
    l += entry.bias;
    return entry.flags & BANNED ? -infinity() : clean(l);
}

// Codes are ordered as the cleaned logits are that they stand for.
SHARED_DEVICE u32 code_of(float l) {
    u32 bits = float_bits(l);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
SHARED_DEVICE float logit_of(u32 code) { return bits_float(code >> 31 ? code & 0x7fffffffu : ~code); }

// A higher logit, then a lower id, has the higher key. 0 is no token's.
SHARED_DEVICE u64 rank_key(float l, u32 id) { return u64(code_of(l)) << 32 | ~id; }
SHARED_DEVICE u32 key_id(u64 key) { return ~u32(key); }
SHARED_DEVICE float key_logit(u64 key) { return logit_of(u32(key >> 32)); }

SHARED_DEVICE bool is_infinite(float l) { return (float_bits(l) & 0x7fffffffu) == 0x7f800000u; }

// (l - max) / temperature; 0 for the highest even where they are infinite.
SHARED_DEVICE float exponent(float l, float max, float inverse) { return l < max ? (l - max) * inverse : 0.0f; }
// floor(e * 2^40), e in 0..=1.
SHARED_DEVICE u64 fixed_point(float e) { return u64(e * 1099511627776.0f); }
SHARED_DEVICE u64 weight(float l, float max, float inverse) {
    return fixed_point(exact_exp(exponent(l, max, inverse)));
}

SHARED_DEVICE float unit_clamped(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
// What a prefix of a set of weight `total` must reach; `top_p` is brought to 32 bits, rounded down.
SHARED_DEVICE u64 top_p_mass(u64 total, float top_p) {
    u64 fraction = u64(unit_clamped(top_p) * 4294967296.0f);
    u64 mass = __umul64hi(total, fraction) << 32 | total * fraction >> 32;
    return mass > 0 ? mass : 1;
}

// Philox4x32-10 of the seed, position and choice: the first 64 bits.
SHARED_DEVICE u64 random_bits(const Sampling& s) {
    u32 c[4] = {s.position, s.choice, 0, 0}, key[2] = {s.seed_low, s.seed_high};
    for (u32 round = 0; round < 10; round++) {
        if (round > 0) {
            key[0] += 0x9E3779B9u;
            key[1] += 0xBB67AE85u;
        }
        u64 a = u64(c[0]) * 0xD2511F53u, b = u64(c[2]) * 0xCD9E8D57u;
        c[0] = u32(b >> 32) ^ c[1] ^ key[0];
        c[1] = u32(b);
        c[2] = u32(a >> 32) ^ c[3] ^ key[1];
        c[3] = u32(a);
    }
    return u64(c[1]) << 32 | c[0];
}

// Natural logarithm of a positive, finite, normal number.
SHARED_DEVICE double exact_ln(float x) {
    u32 bits = float_bits(x);
    int power = int(bits >> 23) - 127;
    double m = bits_float((bits & 0x7fffffu) | 0x3f800000u);
    if (m > 1.41421356237309504880) {
        m *= 0.5;
        power += 1;
    }
    double t = (m - 1.0) / (m + 1.0), t2 = t * t, series = 0.0;
    for (int i = 10; i >= 0; i--) series = series * t2 + 1.0 / double(2 * i + 1);
    return double(power) * 0.69314718055994530942 + 2.0 * t * series;
}

// Of a row whose highest logit is `max`; not a number where that is infinite.
SHARED_DEVICE float logprob(float l, float max, float log_sum) {
    if (l == -infinity() && max != -infinity()) return l;
    return is_infinite(max) ? not_a_number() : (l - max) - log_sum;
}
