//! The wgpu backend against the suite, on Mesa's software Vulkan where that is installed.
use anyfleet_conformance::report::Report;
use anyfleet_conformance::require::skipped;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, suite};
use anyfleet_conformance::support;
use anyfleet_tensor::Gemm;
use anyfleet_wgpu::{Variant, WgpuBackend, WgpuOptions};

/// The software adapter, where the machine has its driver.
fn software(variant: Variant) -> Option<WgpuBackend> {
    let options = WgpuOptions { adapter: Some("llvmpipe".into()), variant, ..Default::default() };
    WgpuBackend::new(&options).map_err(|e| skipped("wgpu", e)).ok()
}

fn passes(variant: Variant, op: Option<&str>) -> Option<Report> {
    let options = Options { op: op.map(str::to_owned), ..Options::new(Tier::Small, seed_from_env().unwrap()) };
    let report = suite(&software(variant)?, &options);
    println!("{} {variant}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
    assert!(report.passed(), "{}", report.failure_text());
    Some(report)
}

#[test]
fn software_vulkan_passes_and_the_support_matrix_is_current() {
    let Some(report) = passes(Variant::Portable, None) else { return };
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
    ["norm", "attention"].into_iter().for_each(|op| drop(passes(Variant::Subgroups, Some(op))));
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
