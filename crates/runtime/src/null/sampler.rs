//! A sampler for the host, as plain as the definition.
use crate::{LogitRow, SampleMode, TokenAdjust};

/// The token that a row chooses from these logits: repetition, frequency and presence penalties, bias
/// and bans; temperature; top-k; top-p; min-p; then a draw that depends on nothing but seed, choice
/// and position.
pub fn choose(logits: &[f32], row: &LogitRow, adjust: &[TokenAdjust]) -> u32 {
    let mut adjusted = logits.to_vec();
    for entry in adjust {
        let logit = &mut adjusted[entry.token as usize];
        if entry.in_prompt || entry.output_count > 0 {
            *logit = match *logit > 0.0 {
                true => *logit / row.repetition_penalty,
                false => *logit * row.repetition_penalty,
            };
        }
        *logit -= row.frequency_penalty * entry.output_count as f32;
        *logit -= if entry.output_count > 0 { row.presence_penalty } else { 0.0 };
        *logit += entry.bias;
        if entry.banned {
            *logit = f32::NEG_INFINITY;
        }
    }
    let mut order = highest_first(&adjusted);
    // Where all are banned none has a weight.
    if row.mode == SampleMode::Greedy || adjusted[order[0] as usize] == f32::NEG_INFINITY {
        return order[0];
    }
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    let highest = adjusted[order[0] as usize];
    let weights: Vec<f32> =
        order.iter().map(|&id| ((adjusted[id as usize] - highest) / row.temperature).exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut mass = 0.0;
    let mut kept = 0;
    while kept < weights.len() && (kept == 0 || mass < row.top_p * total) && weights[kept] >= row.min_p {
        mass += weights[kept];
        kept += 1;
    }
    let mut left = uniform(row) * mass;
    for (&id, weight) in order[..kept].iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return id;
        }
    }
    order[kept - 1]
}

/// As [`choose`], among the tokens that a mask allows.
pub(super) fn choose_masked(logits: &[f32], row: &LogitRow, adjust: &[TokenAdjust], mask: Option<&[u32]>) -> u32 {
    let Some(mask) = mask else { return choose(logits, row, adjust) };
    let allowed = |id: u32| mask[id as usize / 32] >> (id % 32) & 1 == 1;
    let masked = (0..).zip(logits).map(|(id, &logit)| if allowed(id) { logit } else { f32::NEG_INFINITY });
    let id = choose(&masked.collect::<Vec<_>>(), row, adjust);
    // All that are allowed may be banned.
    if allowed(id) { id } else { highest_first(logits).into_iter().find(|&id| allowed(id)).unwrap_or(id) }
}

/// All token ids, the highest logit first, the lowest id among equals.
pub(super) fn highest_first(logits: &[f32]) -> Vec<u32> {
    // The bits of floats, with the negative ones turned round, are in the floats' order: one integer
    // per token sorts faster than a comparison of two keys.
    let key = |(id, logit): (usize, &f32)| {
        let bits = logit.to_bits();
        let ascending = bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 };
        u64::from(!ascending) << 32 | id as u64
    };
    let mut keys: Vec<u64> = logits.iter().enumerate().map(key).collect();
    keys.sort_unstable();
    keys.into_iter().map(|key| key as u32).collect()
}

/// A number in 0..1 for this seed, choice and position.
fn uniform(row: &LogitRow) -> f32 {
    let counter = u64::from(row.choice) << 32 | u64::from(row.position);
    let bits = super::memory::mix(super::memory::mix(0, row.seed), counter) >> 40;
    bits as f32 / (1 << 24) as f32
}
