//! Rows as f16 for matrix units that multiply f16 only, whatever the magnitude of their elements.
//!
//! A row is multiplied with the power of two that brings its largest magnitude into `[2^14, 2^15)`, just below what f16
//! holds, and then rounded to f16: eleven bits of every element within 2^-28 of the largest, and half a unit of 2^-24
//! for those below, which is 2^-39 of the largest. Products and sums are taken of the rounded numbers; the powers of
//! two leave again at the end, exactly.
//!
//! Numbers that are f16 already keep their values, but for subnormal ones in a row with magnitudes from 2^15 on, which may lose
//! their last bit.
use half::f16;

/// Exponent of the largest magnitude of a scaled row.
const TOP: i32 = 14;
/// Exponents of powers of two that are normal numbers, as are their inverses.
const MOST: i32 = 126;

/// The exponent of the power of two that a row is multiplied with; 0 for a row of zeros. The power and its inverse are
/// normal numbers.
pub fn exponent(row: &[f32]) -> i32 {
    // As integers, magnitudes are in order, and what is not finite is above all others.
    let most = row.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    match most {
        0 => 0,
        _ => (TOP - ((most >> 23) as i32 - 127)).min(MOST),
    }
}

/// What the elements of a row stand for once they are f16.
pub fn values(row: &[f32]) -> Vec<f32> {
    let (up, down) = (2f32.powi(exponent(row)), 2f32.powi(-exponent(row)));
    row.iter().map(|v| f16::from_f32(v * up).to_f32() * down).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eleven_bits_at_any_magnitude() {
        for magnitude in [1e-36f32, 1e-6, 1.0, 65504.0, 1e5, 1e38] {
            let row = [1.0, -1.2345, 0.7e-3, 1.9e-8, 0.0].map(|v| v * magnitude);
            for (value, v) in values(&row).into_iter().zip(row) {
                assert!((value - v).abs() <= v.abs() / 2048.0, "{v} became {value}");
            }
        }
    }

    #[test]
    fn rows_of_f16_stay() {
        let all: Vec<f32> = (0..0x7c00).map(|bits| f16::from_bits(bits).to_f32()).collect();
        for largest in (0..15).map(|exponent| 2f32.powi(exponent) * 1.999) {
            let largest = f16::from_f32(largest).to_f32();
            let row: Vec<f32> = all.iter().copied().filter(|&v| v <= largest).collect();
            assert_eq!(values(&row), row, "up to {largest}");
        }
        let (unit, largest) = (2f32.powi(-24), 65504.0);
        assert_eq!(values(&[largest, 2.0 * unit, unit, 2f32.powi(-14)]), [largest, 2.0 * unit, 0.0, 2f32.powi(-14)]);
    }

    #[test]
    fn what_f16_holds_stays() {
        let row = [0.5, -3.0, 1.0 / 1024.0, 65504.0];
        assert_eq!(values(&row), row);
        assert_eq!(values(&[0.0, -0.0]), [0.0, 0.0]);
        assert_eq!(exponent(&[1.0, 0.5]), 14);
        assert_eq!(exponent(&[f32::MIN_POSITIVE]), 126);
        assert_eq!(values(&[f32::INFINITY, 1.0])[0], f32::INFINITY);
    }
}
