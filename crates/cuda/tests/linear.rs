//! Products of bytes have the bits that `quant.rs` states, those of f16 weights take x as `halves.rs` states, and all products
//! have the same bits in every kernel.
#![cfg(feature = "emulate")]
mod common;

use anyfleet_cuda::{CudaBackend, CudaWeight};
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::quant::{self, ByteRow};
use anyfleet_tensor::{Backend, DType, Live, Readback, StepHeader, Tensor, WeightFormat, halves};
use common::{devices, load, noise, tensor};
use half::f16;

const N: usize = 200;

/// Rows whose scales are hard to find.
fn rows(k: usize) -> Vec<Vec<f32>> {
    let scaled = |seed: u32, by: f32| noise(seed, k).into_iter().map(|v| v * by).collect::<Vec<_>>();
    let with = |seed: u32, value: f32| {
        let mut row = scaled(seed, 1.0);
        row[seed as usize * 7 % k] = value;
        row
    };
    let mut rows = vec![scaled(1, 1.0), scaled(2, 1e37), scaled(3, 1e-42), vec![0.0; k], with(4, 300.0), with(5, -5e4)];
    rows.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX].map(|value| with(6, value)));
    // At the limit between rows with a rest and without: the order of the sum decides.
    for seed in 10..14 {
        let mut row = scaled(seed, 1.0);
        row[k / 2] = 0.0;
        let others: f64 = row.iter().map(|v| f64::from(v.abs())).sum();
        let limit = f64::from(quant::OUTLIER) * others / (k as f64 - f64::from(quant::OUTLIER));
        for ulps in -3..=3 {
            row[k / 2] = f32::from_bits((limit as f32).to_bits().wrapping_add_signed(ulps));
            rows.push(row.clone());
        }
    }
    rows
}

/// The integers of a row of weights, multipliers applied, and its scale.
fn integers(w: &[f32], format: WeightFormat) -> (Vec<i64>, f32) {
    let mut q = vec![0; w.len()];
    if format == WeightFormat::Q8 {
        let scale = quant::q8_row(w, &mut q);
        return (q.into_iter().map(i64::from).collect(), scale);
    }
    let mut groups = vec![0; w.len().div_ceil(quant::GROUP)];
    let scale = quant::q4_row(w, &mut q, &mut groups);
    let times = |(k, &q): (usize, &i8)| i64::from(q) * i64::from(groups[k / quant::GROUP]);
    (q.iter().enumerate().map(times).collect(), scale)
}

fn expected(x: &[f32], weights: &[(Vec<i64>, f32)], bias: &[f32], residual: &[f32]) -> Vec<f32> {
    let row = ByteRow::new(x);
    let value = |(n, (w, scale)): (usize, &(Vec<i64>, f32))| {
        let sum = |bytes: &[i8]| bytes.iter().zip(w).map(|(&x, w)| i64::from(x) * w).sum::<i64>() as f32;
        let whole = sum(&row.bytes) * row.scale;
        let value = row.rest.as_ref().map_or(whole, |(scale, bytes)| sum(bytes).mul_add(*scale, whole));
        value * scale + bias[n] + residual[n]
    };
    weights.iter().enumerate().map(value).collect()
}

/// Of `capacity` rows, of which those of `x` are live; with bias and residual where they are `added`.
fn product(device: &CudaBackend, weight: &CudaWeight, x: &[f32], capacity: usize, added: bool) -> Vec<f32> {
    let (n, k) = CudaBackend::weight_shape(weight);
    let rows = x.len() / k;
    let [bias, residual] =
        [tensor(device, &[n], &noise(7, n)), tensor(device, &[capacity, n], &noise(8, capacity * n))];
    let header = Tensor::new(device, DType::U32, &[4]).unwrap();
    let counts = StepHeader { tokens: rows as u32, ..StepHeader::default() };
    device.write(&header, bytemuck::bytes_of(&counts)).unwrap();
    let (x, out) = (tensor(device, &[capacity, k], x), tensor(device, &[capacity, n], &[]));
    let [bias, residual] = [&bias, &residual].map(|tensor| added.then_some(tensor));
    device
        .run(|encoder| {
            encoder.header(&header);
            encoder.linear(Linear { out: &out, x: &x, weight, bias, residual, live: Live::Tokens });
        })
        .unwrap();
    let mut got = vec![0.0f32; capacity * n];
    device.read(&out).unwrap().wait(bytemuck::cast_slice_mut(&mut got)).unwrap();
    got.truncate(rows * n);
    got
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan()
}

#[test]
fn products_of_bytes_have_the_bits_that_are_stated() {
    for (device, format, k) in devices().iter().flat_map(|device| {
        // The longest rows are more than the threads of a block keep.
        let sizes = [130, 1000, 5000, 18_000].into_iter();
        sizes.flat_map(move |k| [WeightFormat::Q8, WeightFormat::Q4].map(|format| (device, format, k)))
    }) {
        let w = noise(99, N * k);
        let weight = load(device, &w, k, format, false);
        let weights: Vec<_> = w.chunks(k).map(|w| integers(w, format)).collect();
        let (bias, rows) = (noise(7, N), rows(k));
        // Of the longer ones, parts of K are blocks of their own.
        let counts: &[usize] = match k {
            18_000 => &[13, 40],
            5000 => &[],
            _ => &[1, 3, 13, 40, 64, 65, 200],
        };
        let some =
            |&count: &usize| rows.iter().cycle().skip(count).take(count).flatten().copied().collect::<Vec<f32>>();
        let mut all: Vec<_> = counts.iter().map(some).collect();
        if k == 1000 || k == 5000 {
            // One row has a rest, one of the last that a warp looks at.
            let mut x = noise(15, 40 * k);
            x[37 * k + 5] = 300.0;
            all.push(x);
        }
        for x in all {
            let count = x.len() / k;
            let got = product(device, &weight, &x, count, true);
            let residual = noise(8, count * N);
            for (i, ((x, got), residual)) in x.chunks(k).zip(got.chunks(N)).zip(residual.chunks(N)).enumerate() {
                for (n, (&got, want)) in got.iter().zip(expected(x, &weights, &bias, residual)).enumerate() {
                    let place = format!("{format}, K {k}, row {i} of {count}, feature {n}");
                    assert!(same(got, want), "{place}: {got:e}, expected {want:e}");
                }
            }
        }
    }
}

/// Where rows have their largest number: in what different threads see, and at different times.
fn places(k: usize) -> [usize; 3] {
    [0, k * 5 / 8, k - 1]
}

/// Rows whose largest magnitude stands far above the others: these are subnormal, or just not, as f16.
fn rows_of_small_numbers(k: usize) -> Vec<Vec<f32>> {
    let row = |seed: u32| {
        let mut row: Vec<f32> = noise(seed, k).into_iter().map(|v| v * 2f32.powi(-24 - seed as i32 % 6)).collect();
        row[places(k)[seed as usize / 3 % 3]] = 1.0;
        row.iter().map(|v| v * [1.0, 1e30, 1e-20][seed as usize % 3]).collect()
    };
    (20..32).map(row).collect()
}

/// What a row stands for as f16. The largest floats round to 2^128, which `halves::values` has no float for.
fn as_halves(x: &[f32]) -> Vec<f64> {
    let exponent = halves::exponent(x);
    x.iter().map(|v| f16::from_f32(v * 2f32.powi(exponent)).to_f64() * 2f64.powi(-exponent)).collect()
}

/// Features of f16 around one, of subnormal and of the largest numbers, and of zeros; every third has none where a row's largest
/// number may be.
fn halves_of_all_sizes(k: usize) -> Vec<f32> {
    let feature = |n: usize| {
        let scale = [1.0, 1e-6, 6e4, 0.0][n % 4];
        let mut w = noise(200 + n as u32, k);
        places(k).into_iter().filter(|_| n.is_multiple_of(3)).for_each(|place| w[place] = 0.0);
        w.into_iter().map(move |v| f16::from_f32(v * scale).to_f32())
    };
    (0..N).flat_map(feature).collect()
}

#[test]
fn products_with_f16_weights_have_the_values_that_are_stated() {
    for (device, k) in devices().iter().flat_map(|device| [130, 1000, 2052].map(|k| (device, k))) {
        let w = halves_of_all_sizes(k);
        let weight = load(device, &w, k, WeightFormat::Float(DType::F16), false);
        let rows = [rows(k), rows_of_small_numbers(k)].concat();
        for count in [1, 2, 3, 4, 5, 6, 7, 8, 13, 40, 64, 65, 200] {
            // All of them come to be the only row of a product, and one of two.
            let most = if count < 3 { rows.len() } else { 1 };
            for first in 0..most {
                let x: Vec<f32> =
                    rows.iter().cycle().skip(first * count + count).take(count).flatten().copied().collect();
                let got = product(device, &weight, &x, count, false);
                for (i, (x, got)) in x.chunks(k).zip(got.chunks(N)).enumerate() {
                    let x = as_halves(x);
                    for (n, (&got, w)) in got.iter().zip(w.chunks(k)).enumerate() {
                        let products = x.iter().zip(w).map(|(&x, &w)| x * f64::from(w));
                        let (want, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                        // Rounding errors of sums, and half a subnormal number when they are multiplied back.
                        let limit = size * (4.0 + 2.0 * (k as f64).sqrt()) / f64::from(1 << 24) + 1e-45;
                        let beyond = !(want as f32).is_finite();
                        let near = if beyond { same(got, want as f32) } else { (f64::from(got) - want).abs() <= limit };
                        assert!(
                            near,
                            "K {k}, row {i} of {count} from {first}, feature {n}: {got:e}, expected {want:e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_kernel() {
    let floats = [DType::F32, DType::BF16, DType::F16].map(WeightFormat::Float);
    for device in devices() {
        for format in floats.into_iter().chain([WeightFormat::Q8, WeightFormat::Q4, WeightFormat::F8]) {
            // More than one turn of all rings, and segments that are not full. One tile of features, which is cut into parts of
            // K, and as many as fill the device.
            for (n, k) in [(N, 998), (N, 2052), (300, 998)] {
                let [weight, gated] = [false, true].map(|gated| load(&device, &noise(98, n * k), k, format, gated));
                let x = noise(97, 200 * k);
                let want = product(&device, &weight, &x, 200, false);
                for (rows, capacity) in
                    [(1, 1), (1, 64), (8, 8), (9, 9), (17, 32), (33, 60), (64, 64), (66, 70), (140, 200)]
                {
                    for weight in [&weight, &gated] {
                        let got = product(&device, weight, &x[..rows * k], capacity, false);
                        let differs = got.iter().zip(&want).position(|(&got, &want)| !same(got, want));
                        assert_eq!(differs, None, "{format}, {n}x{k}, {rows} rows of {capacity}");
                    }
                }
            }
        }
    }
}

/// What the matrix of f8 reads as that a checkpoint of floats becomes.
fn as_bf16(w: &[f32], k: usize) -> Vec<f32> {
    let row = |w: &[f32]| {
        let (mut bytes, mut scales) = (vec![0; k], vec![0.0; k.div_ceil(quant::F8_GROUP)]);
        quant::f8_row(w, &mut bytes, &mut scales);
        let number = |(k, byte): (usize, u8)| quant::f8_value(byte, scales[k / quant::F8_GROUP]).to_f32();
        bytes.into_iter().enumerate().map(number).collect::<Vec<f32>>()
    };
    w.chunks(k).flat_map(row).collect()
}

#[test]
fn a_matrix_of_f8_has_the_bits_of_the_bf16_matrix_that_it_reads_as() {
    for device in devices() {
        // Less than a group, odd numbers of blocks, of features, and segments that are not full or begin within a group, which
        // are blocks of their own of nine rows.
        for k in [37, 130, 3500] {
            // Groups of all sizes: a scale that is not its own shows.
            let mut w = noise(96, N * k);
            for (i, w) in w.iter_mut().enumerate() {
                *w *= 2f32.powi((i / k * 7 + i % k / quant::F8_GROUP * 5) as i32 % 9);
            }
            w[5 * k + 3] = f32::NAN;
            let wide = as_bf16(&w, k);
            let x = noise(95, 150 * k);
            for gated in [false, true] {
                let narrow = load(&device, &w, k, WeightFormat::F8, gated);
                let wide = load(&device, &wide, k, WeightFormat::Float(DType::BF16), gated);
                for (rows, capacity) in [(1, 1), (7, 8), (9, 9), (17, 32), (33, 60), (66, 70), (140, 150)] {
                    let x = &x[..rows * k];
                    let [got, want] = [&narrow, &wide].map(|weight| product(&device, weight, x, capacity, false));
                    let differs = got.iter().zip(&want).position(|(&got, &want)| !same(got, want));
                    assert_eq!(differs, None, "K {k}, gated {gated}, {rows} rows of {capacity}");
                    // The NaN is in one feature's group, and nowhere else.
                    assert!(got.iter().enumerate().all(|(i, v)| v.is_nan() == (i % N == 5)), "K {k}");
                }
            }
        }
    }
}
