//! Element types as the reference sees them: exact conversions, and rounding to nearest even.
use anyfleet_tensor::quant::ByteRow;
use anyfleet_tensor::{DType, Operand, f8, halves};
use half::{bf16, f16};

/// Largest relative error of one rounding to f32.
pub const UNIT_F32: f64 = 1.0 / (1u64 << 24) as f64;

/// Largest relative error of one rounding to `dtype` (0 for integers).
pub fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => UNIT_F32,
        DType::BF16 => 1.0 / 256.0,
        DType::F16 => 1.0 / 2048.0,
        DType::F8 => 1.0 / 16.0,
        DType::U32 | DType::U8 | DType::I8 => 0.0,
    }
}

/// `value` after a store in `dtype` and a load.
pub fn round(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::F8 => f8::decode(f8::encode(value)),
        _ => value,
    }
}

/// The exact element of `dtype` that `value` rounds to, for ops that only convert.
pub fn round_all(dtype: DType, mut values: Vec<f32>) -> Vec<f32> {
    if dtype != DType::F32 {
        values.iter_mut().for_each(|v| *v = round(dtype, *v));
    }
    values
}

/// Rows of `width` activations as a product takes them.
pub fn as_operand(operand: Option<Operand>, values: Vec<f32>, width: usize) -> Vec<f32> {
    match operand {
        None => values,
        Some(Operand::Rounded(dtype)) => round_all(dtype, values),
        Some(Operand::Bytes) => values.chunks(width.max(1)).flat_map(|row| ByteRow::new(row).values()).collect(),
        Some(Operand::Halves) => values.chunks(width.max(1)).flat_map(halves::values).collect(),
    }
}

/// Little-endian elements of a float `dtype`.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::F8 => values.iter().map(|&v| f8::encode(v)).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Little-endian u32 elements.
pub fn encode_u32(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Element `i` of `bytes` as a number; exact for every type.
pub fn decode(dtype: DType, bytes: &[u8], i: usize) -> f64 {
    let two = || [bytes[2 * i], bytes[2 * i + 1]];
    let four = || [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]];
    match dtype {
        DType::F32 => f32::from_le_bytes(four()) as f64,
        DType::BF16 => bf16::from_le_bytes(two()).to_f64(),
        DType::F16 => f16::from_le_bytes(two()).to_f64(),
        DType::U32 => u32::from_le_bytes(four()) as f64,
        DType::U8 => bytes[i] as f64,
        DType::I8 => bytes[i] as i8 as f64,
        DType::F8 => f8::decode(bytes[i]) as f64,
    }
}

/// What every byte that a case does not set holds: a quiet NaN with a payload, so that a read past
/// an input shows in the result and an output element nobody wrote is recognised. As an integer it
/// is an index far out of any range.
pub fn poison(dtype: DType) -> &'static [u8] {
    match dtype {
        DType::F32 | DType::U32 => &[0xad, 0xde, 0xc0, 0x7f],
        DType::BF16 => &[0xde, 0x7f],
        DType::F16 => &[0xde, 0x7e],
        DType::U8 | DType::I8 => &[0xa5],
        DType::F8 => &[f8::NAN],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_is_not_a_number() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F8] {
            assert_eq!(poison(dtype).len(), dtype.size());
            assert!(decode(dtype, poison(dtype), 0).is_nan(), "{dtype}");
        }
    }

    #[test]
    fn a_store_rounds_as_encode_and_decode_do() {
        let value = 1.0 + 1.0 / 300.0;
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::F8] {
            let back = decode(dtype, &encode(dtype, &[value]), 0);
            assert_eq!(back, round(dtype, value) as f64);
            assert!((back - value as f64).abs() <= unit_roundoff(dtype) * value as f64);
        }
    }
}
