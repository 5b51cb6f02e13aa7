//! Random inputs that a printed seed brings back.

/// SplitMix64 (Steele, Lea and Flood 2014): small, fast and the same on every platform.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose whole stream follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// A generator for one named case: the stream does not depend on which other cases run.
    pub fn for_case(seed: u64, label: &str) -> Self {
        // FNV-1a over the label, so that filtering the suite leaves each case's inputs alone.
        let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        Rng(seed ^ hash)
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "below(0)");
        ((self.bits() as u128 * n as u128) >> 64) as usize
    }

    /// Uniform in `low..=high`.
    pub fn range(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal with mean 0 and deviation 1: four 16-bit uniforms from one draw, because the
    /// large tier fills gigabytes.
    pub fn normal(&mut self) -> f32 {
        let bits = self.bits();
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        (sum as f32 - 131_070.0) * (1.0 / 37_837.0)
    }

    /// `n` values of [`Rng::normal`] times `scale`.
    pub fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * scale).collect()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One element of `items`.
    ///
    /// # Panics
    /// When `items` is empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The seed of this run: `ANYFLEET_SEED` (decimal or `0x...`) where it is set, fresh otherwise.
///
/// # Errors
/// A line for people when the variable is set to something else.
pub fn seed_from_env() -> Result<u64, String> {
    let Ok(text) = std::env::var("ANYFLEET_SEED") else {
        use std::hash::{BuildHasher, Hasher, RandomState};
        return Ok(RandomState::new().build_hasher().finish());
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("ANYFLEET_SEED={text} is not a 64-bit number; write it as 123 or 0x7b"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_is_centred_and_of_unit_deviation() {
        let mut rng = Rng::new(7);
        let values = rng.normals(100_000, 1.0);
        let mean = values.iter().map(|&v| v as f64).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.03, "mean {mean}, mean square {square}");
    }

    #[test]
    fn a_label_fixes_the_stream() {
        assert_eq!(Rng::for_case(1, "norm").bits(), Rng::for_case(1, "norm").bits());
        assert_ne!(Rng::for_case(1, "norm").bits(), Rng::for_case(1, "linear").bits());
        assert_ne!(Rng::for_case(1, "norm").bits(), Rng::for_case(2, "norm").bits());
    }
}
