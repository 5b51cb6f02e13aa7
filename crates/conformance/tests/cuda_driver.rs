//! The CUDA backend against the suite on the whole of its way to a device: its driver is a fake one, which runs kernels on
//! the host, late, and checks what it is asked for.
#![cfg(target_os = "linux")]
#[path = "../../cuda/tests/fake_driver/mod.rs"]
mod fake_driver;

use anyfleet_conformance::rng::seed_from_env;
use anyfleet_conformance::suite::{Options, Tier, suite};
use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::Gemm;
use fake_driver::on_fake;

fn passes(test: &str, op: &str, gemm: Gemm) {
    let report = on_fake(test, &[], || {
        let options = Options { op: Some(op.to_owned()), ..Options::new(Tier::Small, seed_from_env().unwrap()) };
        let device = CudaBackend::new(&CudaOptions { gemm, ..Default::default() }).unwrap();
        let report = suite(&device, &options);
        println!("{}, ANYFLEET_SEED={}\n{}", report.device, report.seed, report.table());
        assert!(report.passed(), "{}", report.failure_text());
        assert!(!report.outcomes.is_empty(), "no case of {op} was chosen: the test does not test");
    });
    if let Some(report) = report {
        report.assert_clean();
        // Kernels of attention have more shared memory than is theirs without asking.
        assert!(op != "attention" || report.calls["cuFuncSetAttribute"] > 0);
        assert_eq!(gemm == Gemm::Fast, report.calls.contains_key("product"), "products of cuBLASLt");
    }
}

macro_rules! ops {
    ($($op:ident),*) => { $(#[test] fn $op() { passes(stringify!($op), stringify!($op), Gemm::Invariant); })* };
}

ops!(
    act_mul,
    attention,
    combine,
    embed,
    gather,
    grouped_linear,
    grouped_linear_act_mul,
    linear,
    linear_act_mul,
    norm,
    rope_kv,
    route,
    sample,
    softcap
);

#[test]
fn linear_fast() {
    passes("linear_fast", "linear", Gemm::Fast);
}

#[test]
fn linear_act_mul_fast() {
    passes("linear_act_mul_fast", "linear_act_mul", Gemm::Fast);
}
