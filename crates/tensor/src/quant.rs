//! Integer weights, activations, keys and values: what they mean, to the bit.
//!
//! Weights are quantized on the host by the functions here, so that every backend keeps the same
//! integers. Activations are quantized where a product runs, by the arithmetic of [`ByteRow`]. Products
//! of bytes are summed exactly in i32, so that their order is free:
//!
//! - q8: `out = (sum over K of x * w) * x.scale * w.scale`;
//! - q4: the same with `w = q * multiplier`, four bits times a small whole number that 32 input features share.
//!
//! Weights of f8 are no integers: an element reads as a bf16 number ([`f8_value`]), and from there on a product is that with
//! a bf16 matrix.
//!
//! A row with a [`ByteRow::rest`] is two rows; their results are added before the weights' scale, the rest
//! last: `fma(rest, rest.scale, row * row.scale)`.

use crate::f8;
use half::bf16;

/// Input features that share a multiplier in [`WeightFormat::Q4`](crate::WeightFormat::Q4).
pub const GROUP: usize = 32;

/// Largest magnitude of a byte.
pub const BYTE: f32 = 127.0;

/// A row whose largest magnitude is above this many times its mean magnitude has a rest. A normal
/// distribution stays below 6, gated activations below 20; a channel at 50 times the others does not.
pub const OUTLIER: f32 = 24.0;

/// Most input features whose products, of at most `BYTE` times `BYTE` each, have a sum in i32.
pub const FEATURES: usize = i32::MAX as usize / (127 * 127);

/// Adding and subtracting it rounds magnitudes below 2^22 to integers, ties to even.
pub const ROUND: f32 = 12_582_912.0;

fn round(x: f32) -> f32 {
    (x + ROUND) - ROUND
}

/// Quantizes one output feature's weights: `w = q * scale` with `q` in -127..=127. Returns the scale.
///
/// # Panics
/// When `q` is shorter than `w`.
pub fn q8_row(w: &[f32], q: &mut [i8]) -> f32 {
    let most = w.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    if most == 0.0 || !most.is_finite() {
        q[..w.len()].fill(0);
        return if most == 0.0 { 0.0 } else { f32::NAN };
    }
    let scale = most / BYTE;
    for (q, &w) in q[..w.len()].iter_mut().zip(w) {
        *q = round(w / scale).clamp(-BYTE, BYTE) as i8;
    }
    scale
}

/// Scales that [`q4_row`] tries for a group: what its largest weight becomes, in steps of the grid.
pub const STEPS: [f32; 13] = [8.0, 7.1, 7.25, 7.4, 7.55, 7.7, 7.85, 8.15, 8.3, 8.45, 8.6, 8.75, 8.9];

/// Largest magnitude of a multiplier in q4: its products with -8..=7 are bytes.
pub const MULTIPLIER: f32 = 15.0;

/// Quantizes one output feature's weights: `w = q * multiplier * scale` with `q` in -8..=7 and, for each
/// [`GROUP`] of them, a whole multiplier in -15..=15. Returns the scale: NaN if some weight is not finite.
///
/// Each group's best scale is the one with the least square error among a few; the largest of them is 15
/// times the row's scale, and the others take the better of the two multipliers beside theirs.
///
/// # Panics
/// When `q` is shorter than `w`, or there are fewer multipliers than groups.
pub fn q4_row(w: &[f32], q: &mut [i8], multipliers: &mut [i8]) -> f32 {
    q[..w.len()].fill(0);
    multipliers[..w.len().div_ceil(GROUP)].fill(0);
    let scales: Vec<f32> = w.chunks(GROUP).map(|w| q4_scale(&padded(w))).collect();
    if scales.iter().any(|scale| !scale.is_finite()) {
        return f32::NAN;
    }
    let row = scales.iter().fold(0.0f32, |most, scale| most.max(scale.abs())) / MULTIPLIER;
    let groups = w.chunks(GROUP).zip(q.chunks_mut(GROUP)).zip(multipliers).zip(scales);
    for (((w, q), multiplier), scale) in groups.filter(|(_, scale)| row > 0.0 && *scale != 0.0) {
        let padded = padded(w);
        let low = (scale.abs() / row).floor().clamp(1.0, MULTIPLIER);
        let high = (low + 1.0).min(MULTIPLIER);
        let signed = if scale > 0.0 { row } else { -row };
        let best = if q4_error(&padded, low * signed) > q4_error(&padded, high * signed) { high } else { low };
        *multiplier = if scale > 0.0 { best } else { -best } as i8;
        let inverse = inverse(best * signed);
        q.iter_mut().zip(w).for_each(|(q, &w)| *q = nibble(w, inverse) as i8);
    }
    row
}

/// Input features that share a scale in [`WeightFormat::F8`](crate::WeightFormat::F8).
pub const F8_GROUP: usize = 128;

/// The least magnitude of a scale that is kept, 2^-100: its products with numbers of eight bits are normal f32 numbers,
/// which no device takes for zeros.
const F8_LEAST: f32 = f32::from_bits((127 - 100) << 23);

/// A scale as it is kept: 0 where its magnitude is below 2^-100, NaN where it is not finite or its product with the
/// largest number of eight bits would not be (magnitudes above `f32::MAX / 448`). Otherwise, as it is.
pub fn f8_scale(scale: f32) -> f32 {
    match scale.abs() {
        size if size < F8_LEAST => 0.0,
        size if size <= f32::MAX / f8::MAX => scale,
        _ => f32::NAN,
    }
}

/// What an element of f8 reads as: the byte's number times the scale, in f32, rounded to bf16 to nearest, ties to even.
#[inline]
pub fn f8_value(byte: u8, scale: f32) -> bf16 {
    bf16::from_f32(f8::decode(byte) * scale)
}

/// Quantizes weights that share a scale: `w / scale` to the nearest number of eight bits ([`f8::encode`]), with
/// `scale = largest magnitude / 448` ([`f8_scale`]). Returns the scale. Where it is 0, and where it is NaN because an
/// element is not finite, all bytes are 0: the group reads as zeros, or as NaN.
///
/// # Panics
/// When `bytes` is shorter than `w`.
pub fn f8_group(w: &[f32], bytes: &mut [u8]) -> f32 {
    let finite = w.iter().all(|v| v.is_finite());
    let most = w.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let scale = if finite { f8_scale(most / f8::MAX) } else { f32::NAN };
    for (byte, &w) in bytes[..w.len()].iter_mut().zip(w) {
        *byte = if scale > 0.0 { f8::encode(w / scale) } else { 0 };
    }
    scale
}

/// Quantizes one output feature's weights: [`f8_group`] for each [`F8_GROUP`] of them, the last of which may be shorter.
///
/// # Panics
/// When `bytes` is shorter than `w`, or there are fewer scales than groups.
pub fn f8_row(w: &[f32], bytes: &mut [u8], scales: &mut [f32]) {
    let scales = &mut scales[..w.len().div_ceil(F8_GROUP)];
    for ((w, bytes), scale) in w.chunks(F8_GROUP).zip(bytes.chunks_mut(F8_GROUP)).zip(scales) {
        *scale = f8_group(w, bytes);
    }
}

fn padded(w: &[f32]) -> [f32; GROUP] {
    let mut padded = [0.0; GROUP];
    padded[..w.len()].copy_from_slice(w);
    padded
}

fn nibble(w: f32, inverse: f32) -> f32 {
    round(w * inverse).clamp(-8.0, 7.0)
}

/// The scale a group has by itself.
fn q4_scale(w: &[f32; GROUP]) -> f32 {
    let largest = w.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    if !w.iter().all(|v| v.is_finite()) {
        return f32::NAN;
    }
    let mut best = (0.0f32, 0.0f32);
    for steps in STEPS {
        // The largest weight sits at the grid's longer end.
        let inverse = -steps / largest;
        if !inverse.is_finite() {
            // All are zero, or too small to be divided by.
            break;
        }
        let (mut products, mut squares) = ([0.0f32; 4], [0.0f32; 4]);
        for (i, &w) in w.iter().enumerate() {
            let t = nibble(w, inverse);
            products[i % 4] += w * t;
            squares[i % 4] += t * t;
        }
        let (product, square) = (four(products), four(squares));
        // With the best scale for these integers, product / square, the error is that of zeros less this.
        let gain = product / square * product;
        if gain > best.0 {
            best = (gain, product / square);
        }
    }
    best.1
}

/// The square error of a group with this scale.
fn q4_error(w: &[f32; GROUP], scale: f32) -> f32 {
    let inverse = inverse(scale);
    let mut sums = [0.0f32; 4];
    for (i, &w) in w.iter().enumerate() {
        let left = (-nibble(w, inverse)).mul_add(scale, w);
        sums[i % 4] += left * left;
    }
    four(sums)
}

fn four(v: [f32; 4]) -> f32 {
    (v[0] + v[1]) + (v[2] + v[3])
}

/// A row of activations as signed bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteRow {
    /// `largest magnitude / 127`; NaN where an element is not finite.
    pub scale: f32,
    /// `round(x * (1 / scale))`, ties to even; zeros where there is no scale.
    pub bytes: Vec<i8>,
    /// What the bytes leave of a row with outliers ([`OUTLIER`]), `x - bytes * scale` by one fused
    /// multiply-add, as bytes of their own.
    pub rest: Option<(f32, Vec<i8>)>,
}

/// Lanes of the sum of magnitudes that decides whether there is a rest.
const LANES: usize = 16;

impl ByteRow {
    /// Quantizes one row.
    ///
    /// The mean magnitude is a sum over sixteen strided lanes, halved by adding lane `i + 8` to lane
    /// `i`, then 4, 2, 1, divided by the length.
    pub fn new(x: &[f32]) -> ByteRow {
        let mut lanes = [0.0f32; LANES];
        let mut most = 0.0f32;
        for (i, v) in x.iter().enumerate() {
            lanes[i % LANES] += v.abs();
            most = most.max(v.abs());
        }
        let mut half = LANES / 2;
        while half > 0 {
            (0..half).for_each(|i| lanes[i] += lanes[i + half]);
            half /= 2;
        }
        let mean = lanes[0] / x.len() as f32;
        if !lanes[0].is_finite() {
            return ByteRow { scale: f32::NAN, bytes: vec![0; x.len()], rest: None };
        }
        let scale = most / BYTE;
        let bytes = bytes(x.iter().copied(), scale);
        let rest = (most > OUTLIER * mean).then(|| {
            let left: Vec<f32> = x.iter().zip(&bytes).map(|(&x, &q)| (-f32::from(q)).mul_add(scale, x)).collect();
            let scale = left.iter().fold(0.0f32, |most, v| most.max(v.abs())) / BYTE;
            let bytes = self::bytes(left.into_iter(), scale);
            (scale, bytes)
        });
        ByteRow { scale, bytes, rest }
    }

    /// What the row stands for.
    pub fn values(&self) -> Vec<f32> {
        let value = |i: usize| match &self.rest {
            Some((scale, bytes)) => f32::from(bytes[i]).mul_add(*scale, f32::from(self.bytes[i]) * self.scale),
            None => f32::from(self.bytes[i]) * self.scale,
        };
        (0..self.bytes.len()).map(value).collect()
    }
}

/// The factor of a scale: 0 where the scale is 0 or too small to have one.
pub fn inverse(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

fn bytes(x: impl Iterator<Item = f32>, scale: f32) -> Vec<i8> {
    let inverse = inverse(scale);
    x.map(|x| round(x * inverse).clamp(-BYTE, BYTE) as i8).collect()
}

/// Quantizes one head of one token for a cache of i8: `q = round(x * (1 / scale))`, ties to even, with
/// `scale = largest magnitude / 127`. Returns the scale. A head of zeros has the scale 0 and so has one of
/// such small numbers that the scale has no inverse; its bytes are 0. A head with an element that is not
/// finite has bytes of 0 and the scale `f32::NAN`: all of it reads as NaN, and nothing else does.
///
/// # Panics
/// When `q` is shorter than `x`.
pub fn kv_head(x: &[f32], q: &mut [i8]) -> f32 {
    let q = &mut q[..x.len()];
    let finite = x.iter().all(|v| v.is_finite());
    let scale = if finite { x.iter().fold(0.0f32, |most, v| most.max(v.abs())) / BYTE } else { f32::NAN };
    let inverse = inverse(scale);
    if inverse == 0.0 {
        q.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    for (q, x) in q.iter_mut().zip(x) {
        *q = round(x * inverse).clamp(-BYTE, BYTE) as i8;
    }
    scale
}

/// What an element of a cache of i8 reads as.
pub fn kv_value(q: i8, scale: f32) -> bf16 {
    bf16::from_f32(f32::from(q) * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect()
    }

    #[test]
    fn q8_rounds_to_half_a_step() {
        let w = wave(77);
        let mut q = vec![0; 77];
        let scale = q8_row(&w, &mut q);
        assert!(q.iter().any(|q| q.unsigned_abs() == 127));
        for (&q, w) in q.iter().zip(w) {
            assert!((f32::from(q) * scale - w).abs() <= scale * 0.5001);
        }
        assert_eq!(q8_row(&[0.0; 3], &mut q), 0.0);
        assert_eq!(q[..3], [0; 3]);
        assert!(q8_row(&[1.0, f32::INFINITY], &mut q).is_nan());
    }

    #[test]
    fn q4_finds_what_fits_the_grid_and_beats_the_plain_scale() {
        let (mut q, mut multipliers) = ([0; 3 * GROUP], [0; 3]);
        let mut q4 = |w: &[f32]| {
            let scale = q4_row(w, &mut q, &mut multipliers);
            let value = |i: usize| f32::from(i16::from(q[i]) * i16::from(multipliers[i / GROUP])) * scale;
            (scale, (0..w.len()).map(value).collect::<Vec<_>>(), multipliers)
        };
        // Two groups, the second five times smaller and turned round.
        let step = |i: usize| (i % 16) as f32 - 8.0;
        let on_grid: Vec<f32> = (0..64).map(|i| step(i) * if i < 32 { 3.75 } else { -0.75 }).collect();
        let (scale, values, multipliers) = q4(&on_grid);
        assert_eq!((scale, &values, &multipliers[..2]), (0.25, &on_grid, &[15, -3][..]));

        let w = wave(96);
        let error = |got: &[f32]| -> f32 { w.iter().zip(got).map(|(w, q)| (w - q).powi(2)).sum() };
        let plain = |w: &[f32]| {
            let largest = w.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
            let scale = -largest / 8.0;
            w.iter().map(|w| (w / scale).round_ties_even().clamp(-8.0, 7.0) * scale).collect::<Vec<_>>()
        };
        let plain: Vec<f32> = w.chunks(GROUP).flat_map(plain).collect();
        assert!(error(&q4(&w).1) <= error(&plain));
        let (scale, values, multipliers) = q4(&[0.0; 5]);
        assert_eq!((scale, values, multipliers[0]), (0.0, vec![0.0; 5], 0));
        assert_eq!(q4(&[1e-45; 5]).1, [0.0; 5]);
        assert!(q4(&[&w[..40], &[f32::NAN]].concat()).0.is_nan());
        // A short group is padded with zeros.
        let short = q4(&w[..39]).1;
        assert!(short.iter().zip(&w).all(|(q, w)| (q - w).abs() < 0.3) && short[38] != 0.0);
    }

    #[test]
    fn f8_keeps_three_bits_of_each_number_and_a_scale_of_each_group() {
        let w: Vec<f32> = wave(300).iter().enumerate().map(|(i, v)| v * if i < 128 { 1e-3 } else { 50.0 }).collect();
        let (mut bytes, mut scales) = ([0; 300], [0.0; 3]);
        f8_row(&w, &mut bytes, &mut scales);
        for (i, &w) in w.iter().enumerate() {
            let (got, scale) = (f8_value(bytes[i], scales[i / F8_GROUP]).to_f32(), scales[i / F8_GROUP]);
            // Half a unit of four bits, or half of the least step; and half a unit of bf16.
            let most = (w.abs() / 16.0).max(scale * 2f32.powi(-10)) + w.abs() / 256.0;
            assert!((got - w).abs() <= most, "{i}: {got}, expected {w}");
        }
        for (scale, group) in scales.iter().zip(w.chunks(F8_GROUP)) {
            assert_eq!(*scale, group.iter().fold(0.0f32, |most, v| most.max(v.abs())) / 448.0);
        }
        for (w, scale) in [([0.0, -0.0], 0.0), ([1e-30, -1e-38], 0.0), ([f32::MAX, 1.0], f32::MAX / 448.0)] {
            assert_eq!(f8_group(&w, &mut bytes), scale);
            assert_eq!(bytes[..2], if scale == 0.0 { [0, 0] } else { [0x7e, 0] });
        }
        for odd in [f32::NAN, f32::INFINITY] {
            let scale = f8_group(&[1.0, odd], &mut bytes);
            assert!(scale.is_nan() && bytes[..2] == [0, 0] && f8_value(bytes[0], scale).is_nan());
        }
        // A product is rounded once, to bf16: 1.125 * 1.0078125 lies halfway and goes to the even.
        assert_eq!(f8_value(f8::encode(1.125), 1.0 + 2f32.powi(-7)).to_f32(), 1.1328125);
        assert!([f32::INFINITY, f32::NAN, f32::MAX].iter().all(|&scale| f8_scale(scale).is_nan()));
        assert_eq!([1e-31, -1e-40, -0.5].map(f8_scale), [0.0, 0.0, -0.5]);
    }

    #[test]
    fn a_row_with_an_outlier_keeps_the_others() {
        let mut x = wave(1000);
        let plain = ByteRow::new(&x);
        assert!(plain.rest.is_none());
        x[500] = 150.0;
        let row = ByteRow::new(&x);
        assert!(row.rest.is_some());
        for (i, (got, want)) in row.values().into_iter().zip(&x).enumerate() {
            assert!((got - want).abs() < 150.0 / 127.0 / 250.0, "element {i}: {got}, expected {want}");
        }
    }

    #[test]
    fn heads_of_a_cache() {
        let x = wave(77);
        let mut q = vec![1; 77];
        let scale = kv_head(&x, &mut q);
        assert!(q.iter().any(|q| q.unsigned_abs() == 127));
        for (&q, x) in q.iter().zip(&x) {
            // Half a step, and half a unit of bf16.
            assert!((kv_value(q, scale).to_f32() - x).abs() <= scale * 0.5001 + x.abs() / 256.0);
        }
        for (x, scale) in [([0.0, -0.0], 0.0), ([1e-45, -3e-39], 0.0), ([f32::MAX, 1.0], f32::MAX / 127.0)] {
            assert_eq!(kv_head(&x, &mut q), scale);
            assert_eq!(q[0], if scale == 0.0 { 0 } else { 127 });
        }
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let scale = kv_head(&[1.0, odd], &mut q);
            assert!(scale.is_nan() && q[..2] == [0, 0] && kv_value(q[0], scale).is_nan());
        }
    }

    #[test]
    fn rows_without_a_scale() {
        assert_eq!(ByteRow::new(&[0.0; 4]), ByteRow { scale: 0.0, bytes: vec![0; 4], rest: None });
        assert!(ByteRow::new(&[1.0, f32::NAN]).scale.is_nan());
        assert!(ByteRow::new(&[f32::INFINITY, 1.0]).scale.is_nan());
        assert_eq!(ByteRow::new(&[1e-45, 0.0]).bytes, [0, 0]);
    }
}
