//! The CUDA backend against the suite: its kernels on the host, where the machine has a C++ compiler.
use anyfleet_conformance::report::Report;
use anyfleet_conformance::require::skipped;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, edges, narrow_caches_agree, suite};
use anyfleet_conformance::support;
use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::{Backend, Gemm};

fn emulated(gemm: Gemm) -> Option<CudaBackend> {
    emulated_with(&CudaOptions { gemm, ..Default::default() })
}

fn emulated_with(options: &CudaOptions) -> Option<CudaBackend> {
    match CudaBackend::emulated_with(options) {
        Ok(device) => Some(device),
        Err(e) if e.to_string().contains("need a C++ compiler") => {
            skipped("cuda", e);
            None
        }
        Err(e) => panic!("{e}"),
    }
}

const OPS: [&str; 17] = [
    "act_mul",
    "attention",
    "combine",
    "embed",
    "gather",
    "grouped_linear",
    "grouped_linear_act_mul",
    "head_linear",
    "latent_attention",
    "latent_kv",
    "linear",
    "linear_act_mul",
    "norm",
    "rope_kv",
    "route",
    "sample",
    "softcap",
];

fn passes(device: &CudaBackend, op: &str) -> Report {
    passes_some(device, op, None)
}

/// Only cases whose label has `case` in it.
fn passes_some(device: &CudaBackend, op: &str, case: Option<&str>) -> Report {
    let (op_only, case) = (Some(op.to_owned()), case.map(str::to_owned));
    let options = Options { op: op_only, case, ..Options::new(Tier::Small, seed_from_env().unwrap()) };
    let report = suite(device, &options);
    println!("{}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
    assert!(report.passed(), "{}", report.failure_text());
    assert!(!report.outcomes.is_empty(), "no case of {op} was chosen: the test does not test");
    report
}

#[test]
fn the_host_passes_and_the_support_matrix_is_current() {
    let Some(device) = &emulated(Gemm::Invariant) else { return };
    // Side by side on one device, whose runs do not mix: the references take longer than most launches.
    let reports: Vec<Report> = std::thread::scope(|scope| {
        let started = OPS.map(|op| scope.spawn(move || passes(device, op)));
        started.into_iter().map(|test| test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let mut all = reports.into_iter();
    let mut report = all.next().expect("a report");
    report.outcomes.extend(all.flat_map(|other| other.outcomes));
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(
        support::agrees(&text, "cuda", &[&report]),
        "kernels/README.md is stale; run: cargo run --release -p anyfleet-conformance --bin conformance -- --table"
    );
}

/// Products of the library, whose place a plain sum takes here, and what becomes of them.
#[test]
fn the_host_passes_with_fast_products() {
    let Some(device) = &emulated(Gemm::Fast) else { return };
    assert!(!device.caps().invariant && device.caps().numerics.contains(" fast "), "{}", device.caps().numerics);
    std::thread::scope(|scope| {
        let started = ["linear", "linear_act_mul"].map(|op| scope.spawn(move || passes(device, op)));
        for test in started {
            test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

/// Warpgroups compute whatever they can: of the many rows of a case, few rows and other sizes beside them. The suite holds rows to
/// the same bits whatever is around them, and so warpgroups to those of other kernels.
#[test]
fn the_host_passes_with_warpgroups() {
    let Some(device) = &emulated_with(&CudaOptions { warpgroups: Some(true), ..Default::default() }) else { return };
    std::thread::scope(|scope| {
        // What warpgroups compute.
        let all = [
            ("linear", "weight: Float(BF16)"),
            ("linear", "weight: Float(F16)"),
            ("linear_act_mul", "weight: Float(BF16)"),
            ("linear_act_mul", "weight: Float(F16)"),
            ("attention", "kv: BF16"),
        ];
        let started = all.map(|(op, types)| scope.spawn(move || passes_some(device, op, Some(types))));
        for test in started {
            test.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
    });
}

#[test]
fn the_last_unit_of_a_weight_decides() {
    let Some(device) = emulated(Gemm::Invariant) else { return };
    let report = edges(&device, seed_from_env().unwrap());
    assert!(report.passed(), "{}", report.failure_text());
}

/// Caches of floats of eight bits have no numerics of their own.
#[test]
fn narrow_caches_give_the_bits_of_bf16() {
    let Some(device) = emulated(Gemm::Invariant) else { return };
    assert_eq!(narrow_caches_agree(&device, seed_from_env().unwrap()), Ok(28));
}
