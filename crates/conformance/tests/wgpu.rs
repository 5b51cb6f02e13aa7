//! The wgpu backend against the suite, on Mesa's software Vulkan where that is installed.
use anyfleet_conformance::report::Report;
use anyfleet_conformance::require::skipped;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, suite};
use anyfleet_conformance::support;
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
