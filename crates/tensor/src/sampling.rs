//! The arithmetic of sampling, shared by every backend and the reference, so that equal logits and
//! equal [`SampleParams`] choose equal tokens everywhere.
//!
//! # Definition
//! 1. A logit is cleaned ([`clean`]): NaN counts as minus infinity, -0 as +0.
//! 2. Log-probabilities are taken of the cleaned logits: `(l - max) - ln(sum exp(l - max))`.
//! 3. The row's [`Adjust`] entries are applied ([`adjusted`]); ids past the vocabulary are ignored. Then a
//!    token that the row's mask does not allow ([`allows`]) gets minus infinity.
//! 4. If every adjusted logit is minus infinity (all banned), the token is the highest *unadjusted*
//!    logit, the lowest id among equals: of the tokens that the mask allows, so that a grammar is not
//!    left, or of all where there is no mask or it allows none. Otherwise greedy takes the highest
//!    adjusted logit, the lowest id among equals.
//! 5. Random: with `m` the highest adjusted logit, a token's weight is the integer
//!    [`weight`]`(l, m, 1 / temperature)`: `floor(exp((l - m) / T) * 2^40)`. Sums of weights
//!    are exact, so they depend on no order.
//! 6. Rank tokens by (adjusted logit descending, id ascending), i.e. [`rank_key`] descending. Top-k
//!    keeps the first k. Top-p keeps the shortest prefix of those whose weight reaches
//!    [`top_p_mass`]`(sum of their weights)`. Min-p then drops tokens whose weight is below
//!    [`min_p_weight`]. What is kept is a prefix of the ranking: one cut-off key describes it.
//! 7. [`draw`] maps [`random_bits`] to `0..sum of kept weights`; walking the kept tokens by
//!    **ascending id**, the token at which the running sum first exceeds that number is chosen.
use crate::{Adjust, SampleParams};

/// Weight of the highest token; all others are scaled to it.
pub const WEIGHT_ONE: u64 = 1 << 40;

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// The 64 random bits of a row: Philox with the seed as key and `(position, choice, 0, 0)` as
/// counter; the first output word is the low half.
pub fn random_bits(params: &SampleParams) -> u64 {
    let word = philox4x32_10([params.position, params.choice, 0, 0], [params.seed_lo, params.seed_hi]);
    u64::from(word[0]) | u64::from(word[1]) << 32
}

/// A number below `total`: the high half of the 128-bit product `bits * total`.
pub fn draw(bits: u64, total: u64) -> u64 {
    ((u128::from(bits) * u128::from(total)) >> 64) as u64
}

/// NaN becomes minus infinity and -0 becomes +0; everything else stays.
#[inline]
pub fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit + 0.0 }
}

/// Applies penalties, bias and ban to a cleaned logit, each operation rounded to f32.
#[inline]
pub fn adjusted(logit: f32, entry: &Adjust, params: &SampleParams) -> f32 {
    let mut l = logit;
    if entry.output_count > 0 || entry.flags & Adjust::IN_PROMPT != 0 {
        l = if l > 0.0 { l / params.repetition_penalty } else { l * params.repetition_penalty };
    }
    if entry.output_count > 0 {
        l -= params.frequency_penalty * entry.output_count as f32;
        l -= params.presence_penalty;
    }
    l += entry.bias;
    if entry.flags & Adjust::BANNED != 0 { f32::NEG_INFINITY } else { clean(l) }
}

/// Words of a mask over a vocabulary.
pub const fn mask_words(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32)
}

/// Whether a mask allows a token: bit `token % 32` of word `token / 32`. Bits past the vocabulary mean nothing.
#[inline]
pub fn allows(mask: &[u32], token: usize) -> bool {
    mask[token / 32] >> (token % 32) & 1 == 1
}

/// Below this `exp` is 0: the results would be subnormal.
pub const EXP_ZERO: f32 = -87.3365;
/// Above this `exp` is infinite (a little early: the largest results are not representable anyway).
pub const EXP_INFINITE: f32 = 88.72;
/// `log2(e)`.
pub const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// Adding this rounds to an integer, which then sits in the low mantissa bits.
pub const ROUND_MAGIC: f32 = 12_582_912.0;
/// Upper part of `ln 2`: its products with the integers of `exp` are exact.
pub const LN2_HIGH: f32 = f32::from_bits(0x3f31_8000);
/// `ln 2 - LN2_HIGH`.
pub const LN2_LOW: f32 = -2.121_944_4e-4;
/// `1 / i!` for i = 7 down to 0: on `|r| <= ln(2) / 2` the series ends 5e-9 short of `exp(r)`.
pub const EXP_SERIES: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// `e^x` in f32 with fused multiply-adds in a fixed order, so that every device can compute the same
/// bits; within 2 units in the last place. `-inf` gives 0, `+inf` gives `+inf`, NaN gives NaN.
#[inline]
pub fn exp(x: f32) -> f32 {
    if x < EXP_ZERO {
        return 0.0;
    }
    if x > EXP_INFINITE {
        return f32::INFINITY;
    }
    let shifted = x.mul_add(LOG2_E, ROUND_MAGIC);
    let n = shifted - ROUND_MAGIC;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let series = EXP_SERIES[1..].iter().fold(EXP_SERIES[0], |sum, &c| sum.mul_add(r, c));
    f32::from_bits(series.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `(l - max) * inv_temperature`, the exponent of a token's weight; 0 for the highest tokens even
/// where they are infinite.
#[inline]
pub fn exponent(logit: f32, max: f32, inv_temperature: f32) -> f32 {
    if logit < max { (logit - max) * inv_temperature } else { 0.0 }
}

/// Fixed-point form of `e = exp(exponent)`, `e` in 0..=1.
#[inline]
pub fn fixed_point(e: f32) -> u64 {
    (e * WEIGHT_ONE as f32) as u64
}

/// Integer weight of a token; see the module's text.
#[inline]
pub fn weight(logit: f32, max: f32, inv_temperature: f32) -> u64 {
    fixed_point(exp(exponent(logit, max, inv_temperature)))
}

/// A key that orders tokens: a higher cleaned logit, then a lower id, has the higher key.
#[inline]
pub fn rank_key(logit: f32, id: u32) -> u64 {
    let bits = logit.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The weight a top-p prefix of a set of weight `total` must reach: `total * top_p`, with `top_p` in
/// 32-bit fixed point, rounded down; at least 1.
pub fn top_p_mass(total: u64, top_p: f32) -> u64 {
    let p = (top_p.clamp(0.0, 1.0) * 4_294_967_296.0) as u64;
    (((u128::from(total) * u128::from(p)) >> 32) as u64).max(1)
}

/// The lowest weight min-p keeps.
pub fn min_p_weight(min_p: f32) -> u64 {
    fixed_point(min_p.clamp(0.0, 1.0))
}

/// Natural logarithm of a positive, finite, normal number by a fixed sequence of operations, for
/// hosts whose libraries differ in the last bit; relative error below 1e-15.
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    // ln m = 2 artanh(t); |t| <= 0.172, so eleven terms reach 1e-17.
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    let series = (0..11).rev().fold(0.0, |sum, i| sum * t2 + 1.0 / f64::from(2 * i + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * t * series
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, want) in cases {
            assert_eq!(philox4x32_10(counter, key), want);
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x = -87.33 + i as f32 * (176.04 / 200_000.0);
            let want = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((want as f32).to_bits() + 1)) - f64::from(want as f32);
            worst = worst.max((f64::from(exp(x)) - want).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_extremes() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(EXP_ZERO) >= f32::MIN_POSITIVE && exp(EXP_INFINITE).is_finite());
    }

    #[test]
    fn ln_agrees_with_the_library() {
        for i in 1..20_000 {
            let x = f64::from(i) * f64::from(i) * 0.37;
            assert!((ln(x) - x.ln()).abs() <= 1e-15 * x.ln().abs().max(1.0), "ln({x})");
        }
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn keys_rank_by_logit_then_id() {
        let ranked = [(f32::INFINITY, 9), (2.0, 1), (2.0, 4), (0.0, 0), (-1.0, 7), (-1.5, 2), (f32::NEG_INFINITY, 3)];
        assert!(ranked.windows(2).all(|w| rank_key(w[0].0, w[0].1) > rank_key(w[1].0, w[1].1)));
        assert_eq!(rank_key(clean(-0.0), 5), rank_key(0.0, 5));
        assert_eq!(rank_key(clean(f32::NAN), 5), rank_key(f32::NEG_INFINITY, 5));
    }

    #[test]
    fn weights_masses_and_draws() {
        assert_eq!(weight(3.0, 3.0, 2.0), WEIGHT_ONE);
        assert_eq!(weight(f32::INFINITY, f32::INFINITY, 1.0), WEIGHT_ONE);
        assert_eq!(weight(f32::NEG_INFINITY, 1.0, 1.0), 0);
        assert_eq!(weight(1.0, 1.0, f32::INFINITY), WEIGHT_ONE);
        assert_eq!(weight(0.5, 1.0, f32::INFINITY), 0);
        assert_eq!(top_p_mass(1000, 0.25), 250);
        assert_eq!(top_p_mass(1000, 0.0), 1);
        assert_eq!(top_p_mass(u64::MAX, 1.0), u64::MAX);
        assert_eq!(min_p_weight(0.5), WEIGHT_ONE / 2);
        assert_eq!(draw(u64::MAX, 10), 9);
        assert_eq!(draw(0, 10), 0);
        assert_eq!(draw(1 << 63, 10), 5);
    }

    #[test]
    fn adjustments_apply_in_order() {
        let params = SampleParams {
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..SampleParams::default()
        };
        let seen = Adjust { token: 0, output_count: 2, flags: 0, bias: 1.0 };
        assert_eq!(adjusted(4.0, &seen, &params), 4.0 / 2.0 - 1.0 - 0.25 + 1.0);
        assert_eq!(adjusted(-4.0, &seen, &params), -8.0 - 1.0 - 0.25 + 1.0);
        let prompt = Adjust { output_count: 0, flags: Adjust::IN_PROMPT, ..seen };
        assert_eq!(adjusted(4.0, &prompt, &params), 3.0);
        let banned = Adjust { flags: Adjust::BANNED, ..seen };
        assert_eq!(adjusted(4.0, &banned, &params), f32::NEG_INFINITY);
    }

    #[test]
    fn masks_have_the_lowest_token_in_the_lowest_bit() {
        assert_eq!([0, 1, 32, 33].map(mask_words), [0, 1, 1, 2]);
        let mask = [1 | 1 << 31, 1 << 1];
        let allowed: Vec<usize> = (0..64).filter(|&token| allows(&mask, token)).collect();
        assert_eq!(allowed, [0, 31, 33]);
    }
}
