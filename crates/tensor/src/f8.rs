//! Floats of eight bits: E4M3 of the OCP 8-bit floating point specification (OFP8, revision 1.0), as checkpoints and caches
//! have them: a sign, four bits of exponent with a bias of 7, three of mantissa. There are no infinities; the largest
//! magnitude is 448, the smallest above zero 2^-9, and all ones but for the sign are NaN.

/// Largest magnitude.
pub const MAX: f32 = 448.0;

/// The byte of NaN; with the sign bit it is NaN, too.
pub const NAN: u8 = 0x7f;

/// What a byte stands for; exact, in bf16 and f16 too.
#[inline]
pub fn decode(byte: u8) -> f32 {
    let magnitude = byte & 0x7f;
    if magnitude == NAN {
        return f32::NAN;
    }
    // The bits in the place of an f32's are 2^-120 times the number, subnormal ones included.
    let scaled = f32::from_bits(u32::from(magnitude) << 20) * f32::from_bits((127 + 120) << 23);
    if byte & 0x80 == 0 { scaled } else { -scaled }
}

/// The nearest byte, ties to even. What is larger than [`MAX`], infinities included, becomes the largest of its sign; NaN
/// becomes [`NAN`].
#[inline]
pub fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 24 & 0x80) as u8, f32::from_bits(bits & 0x7fff_ffff));
    if value.is_nan() {
        return NAN;
    }
    if magnitude >= MAX {
        return sign | 0x7e;
    }
    // Below 2^-6 a byte counts 2^-9ths; adding 2^14 leaves an f32 exactly those, rounded to nearest, ties to even.
    if magnitude < f32::from_bits((127 - 6) << 23) {
        const LOW: f32 = 16384.0;
        return sign | ((magnitude + LOW).to_bits() - LOW.to_bits()) as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of a byte by the specification's formula.
    fn by_definition(byte: u8) -> f32 {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f32.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        if byte & 0x80 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_byte_is_what_the_specification_says_and_comes_back() {
        for byte in 0..=255u8 {
            if byte & 0x7f == NAN {
                assert!(decode(byte).is_nan());
                continue;
            }
            assert_eq!(decode(byte).to_bits(), by_definition(byte).to_bits(), "{byte:#x}");
            assert_eq!(encode(decode(byte)), byte, "{byte:#x}");
        }
        assert_eq!((decode(0x7e), decode(1)), (MAX, 2f32.powi(-9)));
        assert_eq!((encode(f32::NAN), encode(-f32::NAN)), (NAN, NAN));
    }

    #[test]
    fn numbers_between_go_to_the_nearest_and_ties_to_the_even() {
        for byte in 0..0x7eu8 {
            let (low, high) = (decode(byte), decode(byte + 1));
            let middle = (low + high) / 2.0;
            let even = if byte % 2 == 0 { byte } else { byte + 1 };
            assert_eq!(encode(middle), even, "{middle}");
            assert_eq!(encode(f32::from_bits(middle.to_bits() - 1)), byte, "below {middle}");
            assert_eq!(encode(f32::from_bits(middle.to_bits() + 1)), byte + 1, "above {middle}");
            assert_eq!(encode(-middle), 0x80 | even, "-{middle}");
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest() {
        for value in [448.0, 449.0, 464.0, 1e30, f32::INFINITY] {
            assert_eq!((encode(value), encode(-value)), (0x7e, 0xfe), "{value}");
        }
        assert_eq!((encode(1e-30), encode(-1e-30), encode(f32::MIN_POSITIVE / 2.0)), (0, 0x80, 0));
    }
}
