//! The CPU backend against the suite, and the support matrix that follows from it.
use anyfleet_conformance::case::Case;
use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, agree, cases, edges, narrow_caches_agree, suite};
use anyfleet_conformance::support;
use anyfleet_cpu::{CpuBackend, CpuOptions, Isa};
use anyfleet_tensor::Backend;
use std::collections::BTreeSet;

fn cpu(threads: usize, isa: Option<Isa>) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: Some(threads), isa }).unwrap()
}

fn options() -> Options {
    Options::new(Tier::Small, seed_from_env().unwrap())
}

#[test]
fn the_cpu_passes_and_the_support_matrix_is_current() {
    let options = options();
    let report = suite(&cpu(2, None), &options);
    println!("{}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
    assert!(report.passed(), "{}", report.failure_text());
    let readme = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/README.md");
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(
        support::agrees(&text, "cpu", &[&report]),
        "kernels/README.md is stale; run: cargo run --release -p anyfleet-conformance --bin conformance -- --table"
    );
}

#[test]
fn a_share_of_the_cases_has_every_op_and_type() {
    let device = cpu(1, None);
    let of = |share, seed| cases::<CpuBackend>(device.caps(), &Options { share, ..Options::new(Tier::Small, seed) });
    let seed = seed_from_env().unwrap();
    let [all, some] = [of(1, seed), of(4, seed)];
    let kinds = |cases: &[Box<dyn Case<CpuBackend>>]| -> BTreeSet<_> {
        cases.iter().map(|case| (case.op(), case.types())).collect()
    };
    assert_eq!(kinds(&all), kinds(&some));
    assert!(some.len() * 3 < all.len(), "{} of {}", some.len(), all.len());
    // Others with other seeds.
    let labels = |cases: &[Box<dyn Case<CpuBackend>>]| cases.iter().map(|case| case.label()).collect::<Vec<_>>();
    assert_eq!(labels(&some), labels(&of(4, seed)));
    assert!((1..5).any(|more| labels(&of(4, seed ^ more)) != labels(&some)));
}

#[test]
fn the_last_unit_of_a_weight_decides() {
    for isa in Isa::supported() {
        let report = edges(&cpu(1, Some(isa)), seed_from_env().unwrap());
        assert!(report.passed(), "{}", report.failure_text());
    }
}

#[test]
fn kernel_sets_and_thread_counts_agree_bit_for_bit() {
    let options = options();
    let first = cpu(2, None);
    for other in Isa::supported().map(|isa| cpu(1, Some(isa))) {
        let compared = agree(&first, &other, &options).unwrap();
        assert!(compared > 100, "only {compared} cases were compared");
    }
}

/// Caches of floats of eight bits have no numerics of their own.
#[test]
fn narrow_caches_give_the_bits_of_bf16() {
    let device = cpu(2, None);
    assert_eq!(narrow_caches_agree(&device, seed_from_env().unwrap()), Ok(28));
}
