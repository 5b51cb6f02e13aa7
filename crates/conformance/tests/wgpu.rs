//! The wgpu backend against the suite, on Mesa's software Vulkan where that is installed.
use anyfleet_conformance::report::Report;
use anyfleet_conformance::require::skipped;
use anyfleet_conformance::rng::{Rng, seed_from_env};
use anyfleet_conformance::suite::{Options, Tier, suite};
use anyfleet_conformance::support;
use anyfleet_cpu::{CpuBackend, CpuOptions};
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::quant::{ByteRow, OUTLIER};
use anyfleet_tensor::{Backend, DType, Gemm, HostPart, HostWeight, Live, Readback, Tensor, WeightFormat};
use anyfleet_wgpu::{Variant, WgpuBackend, WgpuOptions};

/// The software adapter, where the machine has its driver.
fn software(variant: Variant) -> Option<WgpuBackend> {
    let options = WgpuOptions { adapter: Some("llvmpipe".into()), variant, ..Default::default() };
    WgpuBackend::new(&options).map_err(|e| skipped("wgpu", e)).ok()
}

fn passes(variant: Variant, op: Option<&str>, case: Option<&str>) -> Option<Report> {
    let [op, case] = [op, case].map(|text| text.map(str::to_owned));
    let options = Options { op, case, ..Options::new(Tier::Small, seed_from_env().unwrap()) };
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
    for op in ["linear", "linear_act_mul"] {
        let options = Options { op: Some(op.into()), ..Options::new(Tier::Small, seed_from_env().unwrap()) };
        let report = suite(&device, &options);
        assert!(report.passed(), "{}", report.failure_text());
    }
}

#[test]
fn software_vulkan_passes_with_packed_bytes() {
    ["linear", "linear_act_mul"].into_iter().for_each(|op| drop(passes(Variant::Packed, Some(op), Some("weight: Q"))));
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
    let parts = vec![HostPart { dtype: DType::F32, rows: n, bytes }];
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
