//! Integer weights and activations: what they mean, to the bit.
//!
//! Weights are quantized on the host by the functions here, so that every backend keeps the same
//! integers. Activations are quantized where a product runs, by the arithmetic of [`ByteRow`]. Products
//! of bytes are summed exactly in i32, so that their order is free:
//!
//! - q8: `out = (sum over K of x * w) * x.scale * w.scale`;
//! - q4: `out = (sum over groups g, in order, of fma(sum over g of x * w, w.scale[g], .)) * x.scale`.
//!
//! A row with a [`ByteRow::rest`] is two rows; their results are added before the weights' scale (q8)
//! or before the bias (q4), the rest last: `fma(rest, rest.scale, row * row.scale)`.
use half::bf16;

/// Input features that share a scale in [`WeightFormat::Q4`](crate::WeightFormat::Q4).
pub const GROUP: usize = 32;

/// Largest magnitude of a byte.
pub const BYTE: f32 = 127.0;

/// A row whose largest magnitude is above this many times its mean magnitude has a rest. A normal
/// distribution stays below 6, gated activations below 20; a channel at 50 times the others does not.
pub const OUTLIER: f32 = 24.0;

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

/// Scales that [`q4_group`] tries: what the largest weight becomes, in steps of the grid.
pub const STEPS: [f32; 13] = [8.0, 7.1, 7.25, 7.4, 7.55, 7.7, 7.85, 8.15, 8.3, 8.45, 8.6, 8.75, 8.9];

/// Quantizes up to [`GROUP`] weights of one output feature: `w = q * scale` with `q` in -8..=7, the scale
/// with the least square error among a few. Weights past `w` become 0. Returns the scale.
pub fn q4_group(w: &[f32], q: &mut [i8; GROUP]) -> bf16 {
    let mut padded = [0.0f32; GROUP];
    padded[..w.len()].copy_from_slice(w);
    let w = &padded;
    *q = [0; GROUP];
    let largest = w.iter().fold(0.0f32, |most, &v| if v.abs() > most.abs() { v } else { most });
    if !w.iter().all(|v| v.is_finite()) {
        return bf16::NAN;
    }
    let mut best = (0.0f32, 0.0f32);
    let mut values = [0.0f32; GROUP];
    for steps in STEPS {
        // The largest weight sits at the grid's longer end.
        let inverse = -steps / largest;
        if !inverse.is_finite() {
            // All are zero, or too small to be divided by.
            break;
        }
        let mut tried = [0.0f32; GROUP];
        let (mut products, mut squares) = ([0.0f32; 4], [0.0f32; 4]);
        for (i, (t, &w)) in tried.iter_mut().zip(w).enumerate() {
            *t = round(w * inverse).clamp(-8.0, 7.0);
            products[i % 4] += w * *t;
            squares[i % 4] += *t * *t;
        }
        let sum = |v: [f32; 4]| (v[0] + v[1]) + (v[2] + v[3]);
        let (product, square) = (sum(products), sum(squares));
        // With the best scale for these integers, product / square, the error is that of zeros less this.
        let gain = product / square * product;
        if gain > best.0 {
            best = (gain, product / square);
            values = tried;
        }
    }
    let scale = bf16::from_f32(best.1);
    if scale.to_f32() != 0.0 {
        q.iter_mut().zip(values).for_each(|(q, v)| *q = v as i8);
    }
    scale
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
        let mut q = [0; GROUP];
        let on_grid: Vec<f32> = (0..32).map(|i| (i % 16 - 8) as f32 * 0.25).collect();
        assert_eq!(q4_group(&on_grid, &mut q).to_f32(), 0.25);
        assert!(q.iter().zip(&on_grid).all(|(&q, &w)| f32::from(q) * 0.25 == w));
        let w = wave(32);
        let error =
            |scale: f32, q: &[i8]| -> f32 { w.iter().zip(q).map(|(w, &q)| (w - f32::from(q) * scale).powi(2)).sum() };
        let scale = q4_group(&w, &mut q).to_f32();
        let largest = w.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let plain = -largest / 8.0;
        let plain_q: Vec<i8> = w.iter().map(|w| (w / plain).round_ties_even().clamp(-8.0, 7.0) as i8).collect();
        assert!(error(scale, &q) <= error(plain, &plain_q));
        assert_eq!(q4_group(&[0.0; 5], &mut q).to_f32(), 0.0);
        assert_eq!(q4_group(&[1e-45; 5], &mut q).to_f32(), 0.0);
        assert_eq!(q, [0; GROUP]);
        assert!(q4_group(&[f32::NAN], &mut q).is_nan());
        // A short group is padded with zeros.
        let scale = q4_group(&w[..7], &mut q).to_f32();
        assert!(scale != 0.0 && q[7..] == [0; 25]);
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
    fn rows_without_a_scale() {
        assert_eq!(ByteRow::new(&[0.0; 4]), ByteRow { scale: 0.0, bytes: vec![0; 4], rest: None });
        assert!(ByteRow::new(&[1.0, f32::NAN]).scale.is_nan());
        assert!(ByteRow::new(&[f32::INFINITY, 1.0]).scale.is_nan());
        assert_eq!(ByteRow::new(&[1e-45, 0.0]).bytes, [0, 0]);
    }
}
