//! The wgpu backend against the suite, on Mesa's software Vulkan where that is installed.
use anyfleet_conformance::report::Report;
use anyfleet_conformance::require::{brief, skipped};
use anyfleet_conformance::rng::{Rng, seed_from_env};
use anyfleet_conformance::suite::{Options, Tier, narrow_caches_agree, suite};
use anyfleet_conformance::support;
use anyfleet_cpu::{CpuBackend, CpuOptions};
use anyfleet_tensor::ops::{GroupedLinear, Linear};
use anyfleet_tensor::quant::{ByteRow, OUTLIER};
use anyfleet_tensor::{Backend, DType, Gemm, HostPart, HostWeight, Live, Readback, Tensor, WeightFormat};
use anyfleet_wgpu::{Variant, WgpuBackend, WgpuOptions};

/// Operations with weights whose kernels depend on the variant or may be mistaken for such.
const PRODUCTS: [&str; 4] = ["linear", "linear_act_mul", "grouped_linear", "grouped_linear_act_mul"];

/// The software adapter, where the machine has its driver.
fn software(variant: Variant) -> Option<WgpuBackend> {
    let options = WgpuOptions { adapter: Some("llvmpipe".into()), variant, ..Default::default() };
    WgpuBackend::new(&options).map_err(|e| skipped("wgpu", e)).ok()
}

fn passes(variant: Variant, op: Option<&str>, case: Option<&str>) -> Option<Report> {
    let [op, case] = [op, case].map(|text| text.map(str::to_owned));
    let share = if brief() { 6 } else { 1 };
    let options = Options { op, case, share, ..Options::new(Tier::Small, seed_from_env().unwrap()) };
    let report = suite(&software(variant)?, &options);
    println!("{} {variant}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
    assert!(report.passed(), "{}", report.failure_text());
    assert!(!report.outcomes.is_empty(), "no case of {:?} was chosen: the test does not test", options.op);
    Some(report)
}

#[test]
fn software_vulkan_passes_and_the_support_matrix_is_current() {
    let Some(report) = passes(Variant::Portable, None, None) else { return };
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(
        support::agrees(&text, "wgpu", &[&report]),
        "kernels/README.md is stale; run: cargo run --release -p anyfleet-conformance --bin conformance -- --table"
    );
}

#[test]
fn software_vulkan_passes_with_subgroups() {
    // The others have the same kernels in both.
    ["norm", "attention"].into_iter().for_each(|op| drop(passes(Variant::Subgroups, Some(op), None)));
}

/// Newer Mesas have them on llvmpipe: `.ci/matrix` brings one.
#[test]
fn software_vulkan_passes_on_matrix_units() {
    let Some(device) = software(Variant::Subgroups) else { return };
    let (adapter, variant, gemm) = (Some(device.adapter().index.to_string()), Variant::Subgroups, Gemm::Fast);
    let options = WgpuOptions { adapter, variant, gemm, ..Default::default() };
    if let Some(reason) = WgpuBackend::missing_for_fast(&options).unwrap() {
        let error = WgpuBackend::new(&options).err().expect("no matrix units").to_string();
        assert!(error.contains("there is no fast gemm") && error.contains(reason), "{error}");
        eprintln!("SKIPPED: {}: {reason}", device.adapter().name);
        return;
    }
    let device = WgpuBackend::new(&options).unwrap();
    for op in PRODUCTS {
        let options = Options { op: Some(op.into()), ..Options::new(Tier::Small, seed_from_env().unwrap()) };
        let report = suite(&device, &options);
        assert!(report.passed(), "{}", report.failure_text());
    }
}

#[test]
fn software_vulkan_passes_with_packed_bytes() {
    PRODUCTS.into_iter().for_each(|op| drop(passes(Variant::Packed, Some(op), Some("weight: Q"))));
}

/// Rows of `k` activations that are quantized in every way there is.
fn odd_rows(rng: &mut Rng, k: usize) -> Vec<Vec<f32>> {
    let plain = |rng: &mut Rng, scale| rng.normals(k, scale);
    let mut rows = vec![vec![0.0; k], plain(rng, 1.0), plain(rng, 1e5), plain(rng, 1e-20)];
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut row = plain(rng, 1.0);
        row[k / 2] = odd;
        rows.push(row);
    }
    // Finite numbers whose magnitudes have no finite sum, and some that have.
    rows.push(vec![f32::MAX / 8.0; k]);
    rows.push(vec![f32::MAX / (2.0 * k as f32); k]);
    // An outlier far above the limit, and some right at it: there the order of a sum decides.
    for height in [100.0, 1e4] {
        let mut row = plain(rng, 1.0);
        row[k - 1] = height;
        rows.push(row);
    }
    for _ in 0..8 {
        let mut row = plain(rng, 0.1);
        row[k / 3] = 0.0;
        let others: f32 = row.iter().map(|v| v.abs()).sum();
        row[k / 3] = OUTLIER * others / (k as f32 - OUTLIER);
        for _ in 0..rng.below(4) {
            row[k / 3] = row[k / 3].next_up();
        }
        rows.push(row);
    }
    rows
}

/// `x * weight^T + residual`.
fn product<B: Backend>(device: &B, x: &[Vec<f32>], weight: &[f32], residual: &[f32], store: WeightFormat) -> Vec<f32> {
    let (rows, k) = (x.len(), x[0].len());
    let n = weight.len() / k;
    let bytes = bytemuck::cast_slice(weight);
    let parts = vec![HostPart { dtype: DType::F32, rows: n, bytes, scales: None }];
    let weight =
        device.load(HostWeight { name: "weight".into(), stack: 1, cols: k, parts, store, gated: false }).unwrap();
    let tensor = |shape: [usize; 2], values: &[f32]| {
        let tensor = Tensor::new(device, DType::F32, &shape).unwrap();
        device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
        tensor
    };
    let (x, residual) = (tensor([rows, k], &x.concat()), tensor([rows, n], residual));
    let out = Tensor::new(device, DType::F32, &[rows, n]).unwrap();
    device
        .run(|enc| {
            let (out, x, weight, residual) = (&out, &x, &weight, Some(&residual));
            enc.linear(Linear { out, x, weight, bias: None, residual, live: Live::All });
        })
        .unwrap();
    let mut values = vec![0.0f32; rows * n];
    device.read(&out).unwrap().wait(bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

#[test]
fn packed_bytes_have_the_bits_of_the_cpu() {
    let Some(gpu) = software(Variant::Packed) else { return };
    let cpu = CpuBackend::new(CpuOptions { threads: Some(2), isa: None }).unwrap();
    let mut rng = Rng::new(seed_from_env().unwrap());
    for (k, n) in [(60, 40), (257, 33), (1024, 16), (4500, 20)] {
        let odd = odd_rows(&mut rng, k);
        let has_rest: Vec<bool> = odd.iter().map(|row| ByteRow::new(row).rest.is_some()).collect();
        let rests = has_rest.iter().filter(|&&rest| rest).count();
        assert!((3..odd.len()).contains(&rests), "{rests} of {} rows have a rest: the test does not test", odd.len());
        let weight = rng.normals(n * k, 0.1);
        for (count, store) in [(1, WeightFormat::Q8), (4, WeightFormat::Q4), (odd.len(), WeightFormat::Q8)]
            .into_iter()
            .chain([(odd.len(), WeightFormat::Q4), (70, WeightFormat::Q8), (70, WeightFormat::Q4)])
        {
            let first = rng.below(odd.len());
            let x: Vec<Vec<f32>> = odd.iter().cycle().skip(first).take(count).cloned().collect();
            let residual = rng.normals(count * n, 1.0);
            let [got, want] =
                [product(&gpu, &x, &weight, &residual, store), product(&cpu, &x, &weight, &residual, store)];
            for (i, (got, want)) in got.into_iter().zip(want).enumerate() {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                let row = (first + i / n) % odd.len();
                // A rest is added by one fused multiply-add, which not every device has.
                let magnitudes = odd[row].iter().zip(&weight[i % n * k..]).map(|(x, w)| (x * w).abs());
                let size = magnitudes.sum::<f32>() + residual[i].abs();
                let near = has_rest[row] && (got - want).abs() <= 2e-7 * size;
                assert!(
                    same || near,
                    "{store}, {count} rows of {k}, row {row}, output {}: {got}, on the CPU {want}",
                    i % n
                );
            }
        }
    }
}

/// A tensor of `values`.
fn tensor<B: Backend>(device: &B, dtype: DType, shape: &[usize], values: &[u32]) -> Tensor<B> {
    let tensor = Tensor::new(device, dtype, shape).unwrap();
    device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
    tensor
}

/// `linear` by itself is held to the reference: an expert's rows must have its bits, wherever the expert's matrix lies.
#[test]
fn stacks_larger_than_a_binding_have_the_bits_of_single_matrices() {
    let Some(device) = software(Variant::Portable) else { return };
    let most = device.caps().max_buffer.expect("a limit");
    // Some experts in each part, and parts of an expert.
    for (experts, n, k) in [(5, 1280, 8192), (2, 4352, 8192)] {
        let values =
            (0..(experts * n * k) as u32).map(|i| f32::from((i.wrapping_mul(2_654_435_761) >> 20) as i16 - 2048));
        let values: Vec<f32> = values.collect();
        let load = |stack, values: &[f32]| {
            let bytes = bytemuck::cast_slice(values);
            let parts = vec![HostPart { dtype: DType::F32, rows: stack * n, bytes, scales: None }];
            let store = WeightFormat::Float(DType::F32);
            device.load(HostWeight { name: "experts".into(), stack, cols: k, parts, store, gated: true }).unwrap()
        };
        let before = device.counts().bytes;
        let weight = load(experts, &values);
        let bytes = device.counts().bytes - before;
        assert_eq!(bytes, (experts * device.weight_bytes(n, k, WeightFormat::Float(DType::F32))) as u64);
        if bytes <= most {
            eprintln!("SKIPPED: {} binds {most} bytes, more than a stack of {bytes}", device.caps().device);
            return;
        }
        // Pairs of the first, third and last expert, or of both of two.
        let of_pair: Vec<usize> = [0, 0, 2, 2, 2, 4].into_iter().map(|e: usize| e.min(experts - 1)).collect();
        let rows = [1u32, 2, 0, 1, 2, 0];
        let mut rng = Rng::new(seed_from_env().unwrap());
        let x = rng.normals(3 * k, 1.0);
        let offsets: Vec<u32> = (0..=experts).map(|e| of_pair.iter().filter(|&&of| of < e).count() as u32).collect();
        let mut hit = of_pair.clone();
        hit.dedup();
        let mut hits = vec![hit.len() as u32];
        hits.extend(hit.iter().map(|&e| e as u32));
        hits.resize(1 + experts.min(rows.len()), 0);
        let lists = [&rows[..], &offsets, &hits].map(|list| tensor(&device, DType::U32, &[list.len()], list));
        let [rows_on, offsets, hits] = &lists;
        let x_on = tensor(&device, DType::F32, &[3, k], bytemuck::cast_slice(&x));
        let out = Tensor::new(&device, DType::F32, &[rows.len(), n]).unwrap();
        let (x, rows_on, weight) = (&x_on, Some(rows_on), &weight);
        device
            .run(|enc| enc.grouped_linear(GroupedLinear { out: &out, x, rows: rows_on, weight, offsets, hits }))
            .unwrap();
        let read = |tensor: &Tensor<WgpuBackend>| {
            let mut bits = vec![0u32; tensor.len()];
            device.read(tensor).unwrap().wait(bytemuck::cast_slice_mut(&mut bits)).unwrap();
            bits
        };
        let got = read(&out);
        for &expert in &hit {
            let single = load(1, &values[expert * n * k..][..n * k]);
            let out = Tensor::new(&device, DType::F32, &[3, n]).unwrap();
            let (weight, bias, residual, live) = (&single, None, None, Live::All);
            device.run(|enc| enc.linear(Linear { out: &out, x, weight, bias, residual, live })).unwrap();
            let want = read(&out);
            for (place, _) in of_pair.iter().enumerate().filter(|&(_, &of)| of == expert) {
                let (got, want) = (&got[place * n..][..n], &want[rows[place] as usize * n..][..n]);
                assert!(got == want, "{experts} experts of {n} x {k}: pair {place} differs from expert {expert} alone");
            }
        }
    }
}

/// Caches of floats of eight bits have no numerics of their own.
#[test]
fn narrow_caches_give_the_bits_of_bf16() {
    let Some(device) = software(Variant::Portable) else { return };
    assert_eq!(narrow_caches_agree(&device, seed_from_env().unwrap()), Ok(28));
}
