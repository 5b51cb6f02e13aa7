//! The wgpu backend against the suite, on Mesa's software Vulkan where that is installed.
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, suite};
use anyfleet_wgpu::{WgpuBackend, WgpuOptions};

/// The software adapter; none where the machine has no such driver, unless ANYFLEET_REQUIRE wants it.
fn software() -> Option<WgpuBackend> {
    match WgpuBackend::new(&WgpuOptions { adapter: Some("llvmpipe".into()), memory: None }) {
        Ok(backend) => Some(backend),
        Err(e) => {
            let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "wgpu"), "ANYFLEET_REQUIRE={required}: {e}");
            eprintln!("SKIPPED: {e} (Debian: mesa-vulkan-drivers; ANYFLEET_REQUIRE=wgpu makes this a failure)");
            None
        }
    }
}

#[test]
fn software_vulkan_passes() {
    let Some(backend) = software() else { return };
    let report = suite(&backend, &Options::new(Tier::Small, seed_from_env().unwrap()));
    println!("{}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
    assert!(report.passed(), "{}", report.failure_text());
}
