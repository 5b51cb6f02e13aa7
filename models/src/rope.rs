//! Rotary frequencies and tables, rounded step by step as transformers computes them in f32, so that
//! angles at long positions agree with it.
use crate::{RopeScaling, RopeSpec};
use std::f64::consts::PI;

/// Frequencies `[rotary_dim / 2]`, highest first, in radians per position, and the factor on cosines
/// and sines.
pub fn rope_inv_freq(rope: &RopeSpec) -> (Vec<f32>, f32) {
    let wavelengths = base_powers(rope);
    let plain = || wavelengths.iter().map(|p| 1.0 / p);
    match rope.scaling {
        RopeScaling::None => (plain().collect(), 1.0),
        RopeScaling::Linear { factor } => (plain().map(|f| f / factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let bands = Llama3 {
                factor: factor as f32,
                low: low_freq_factor as f32,
                // Divided in f64 and then rounded, like the reference's Python scalars.
                spread: (high_freq_factor - low_freq_factor) as f32,
                original: original_max_position_embeddings as f32,
                longest: (original_max_position_embeddings as f64 / low_freq_factor) as f32,
                shortest: (original_max_position_embeddings as f64 / high_freq_factor) as f32,
            };
            (plain().map(|f| bands.scale(f)).collect(), 1.0)
        }
        RopeScaling::Yarn { factor, attention_factor, .. } => {
            let ramp = yarn_ramp(rope, wavelengths.len());
            let scaled = wavelengths.iter().zip(ramp).map(|(&power, ramp)| {
                let keep = 1.0 - ramp;
                1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
            });
            (scaled.collect(), attention_factor as f32)
        }
    }
}

/// Rows `0..positions` of `rotary_dim / 2` cosines and then as many sines, times the attention
/// factor: the table of [`Rope`](anyfleet_tensor::ops::Rope).
pub fn rope_table(rope: &RopeSpec, positions: usize) -> Vec<f32> {
    let (frequencies, factor) = rope_inv_freq(rope);
    let mut table = Vec::with_capacity(positions * 2 * frequencies.len());
    let mut sines = Vec::with_capacity(frequencies.len());
    for position in 0..positions {
        sines.clear();
        for frequency in &frequencies {
            // The angle is rounded to f32 as the reference's is; its sine and cosine are exact for it.
            let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
            table.push(cos as f32 * factor);
            sines.push(sin as f32 * factor);
        }
        table.extend_from_slice(&sines);
    }
    table
}

/// `theta^(2i / rotary_dim)`.
fn base_powers(rope: &RopeSpec) -> Vec<f32> {
    let base = f64::from(rope.theta as f32);
    let exponent = |i: usize| (2 * i) as f32 / rope.rotary_dim as f32;
    (0..rope.rotary_dim / 2).map(|i| base.powf(f64::from(exponent(i))) as f32).collect()
}

/// Llama 3.1's bands: short wavelengths stay, long ones are divided, those between are blended.
struct Llama3 {
    factor: f32,
    low: f32,
    spread: f32,
    original: f32,
    longest: f32,
    shortest: f32,
}

impl Llama3 {
    fn scale(&self, frequency: f32) -> f32 {
        // Reciprocal, then product: the order in which torch divides a number by a tensor.
        let wavelength = 1.0 / frequency * (2.0 * PI) as f32;
        if wavelength > self.longest {
            return frequency / self.factor;
        }
        if wavelength < self.shortest {
            return frequency;
        }
        let smooth = (1.0 / wavelength * self.original - self.low) / self.spread;
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

/// YaRN's share of interpolation per frequency, from 0 (kept) to 1 (divided).
fn yarn_ramp(rope: &RopeSpec, frequencies: usize) -> Vec<f32> {
    let RopeScaling::Yarn { beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = rope.scaling
    else {
        return vec![0.0; frequencies];
    };
    let dim = rope.rotary_dim as f64;
    let context = original_max_position_embeddings as f64;
    let correction = |rotations: f64| dim * (context / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
    let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let span = (high - low) as f32;
    (0..frequencies).map(|i| ((i as f32 - low as f32) / span).clamp(0.0, 1.0)).collect()
}
