//! Whether a device computes what it should.
mod model;
mod verdict;

pub use model::ModelOutcome;
pub use verdict::SelfCheck;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub(crate) use verdict::checked;

use crate::builder::OnBackend;
use crate::{DeviceSpec, Engine, Result};
use anyfleet_conformance::case::Verdict;
use anyfleet_conformance::report::Report;
use anyfleet_conformance::suite::{self, Options, Tier};
use anyfleet_tensor::{Backend, Gemm, Identity};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;

/// What a device was found to compute: every operation with every combination of types it claims, against a naive
/// reference, and a whole model against Hugging Face transformers.
#[derive(Clone, Debug)]
pub struct Certificate {
    identity: Identity,
    report: Report,
    models: Vec<ModelOutcome>,
    notes: Vec<String>,
}

impl Certificate {
    /// Everything was as close to the references as it must be.
    pub fn passed(&self) -> bool {
        self.report.passed() && self.models.iter().all(|m| m.passed)
    }

    /// For people: a line for each operation and combination of types and for each model, then the failures.
    pub fn table(&self) -> String {
        let Identity { adapter, driver, kernels } = &self.identity;
        let mut text = format!("{}\nadapter {adapter}\ndriver  {driver}\nkernels {kernels}\n", self.report.device);
        self.notes.iter().for_each(|note| text += &format!("note: {note}\n"));
        text += &self.report.table();
        for ModelOutcome { dtype, max_error, limit, greedy_ids, passed, detail } in &self.models {
            let (types, verdict) = (format!("w={dtype}"), if *passed { Verdict::Pass } else { Verdict::Fail });
            let _ = writeln!(
                text,
                "{:<15} {types:<16} {:>5} {:>9} {max_error:>9.1e} {:>8.2}  {verdict}",
                "whole model",
                1,
                "",
                max_error / limit
            );
            let _ = match passed {
                true => {
                    let ids = greedy_ids.map_or(String::new(), |ids| format!(", {ids} greedy ids equal"));
                    writeln!(text, "  log-probabilities within {max_error:.1e}{ids}")
                }
                false => writeln!(text, "  {detail}"),
            };
        }
        text + &self.report.failure_text()
    }

    /// For programs: adapter, driver, versions, a hash of the kernels, and what was found.
    pub fn json(&self) -> Value {
        let ops = self.report.summaries().into_iter().map(|s| {
            json!({
                "op": s.op,
                "types": s.types.to_string(),
                "cases": s.cases,
                "nmse": s.nmse,
                "max_error": s.max_error,
                "of_limit": s.margin,
                "verdict": s.verdict.to_string(),
            })
        });
        let models = self.models.iter().map(|m| {
            json!({
                "dtype": m.dtype.to_string(),
                "max_logprob_error": m.max_error,
                "limit": m.limit,
                "greedy_ids": m.greedy_ids,
                "passed": m.passed,
                "detail": m.detail,
            })
        });
        json!({
            "anyfleet": env!("CARGO_PKG_VERSION"),
            "device": self.report.device,
            "adapter": self.identity.adapter,
            "driver": self.identity.driver,
            "kernels": self.identity.kernels,
            "numerics": self.report.numerics,
            "notes": self.notes,
            "seed": self.report.seed,
            "passed": self.passed(),
            "ops": ops.collect::<Vec<_>>(),
            "models": models.collect::<Vec<_>>(),
            "failures": self.report.failures().map(|o| format!("{}: {}", o.label, o.detail)).collect::<Vec<_>>(),
        })
    }
}

struct Ops<'a>(&'a mut dyn FnMut(&str));

impl OnBackend for Ops<'_> {
    type Output = (Identity, Report);

    fn run<B: Backend>(self, device: Arc<B>) -> Result<Self::Output> {
        let seed = anyfleet_conformance::rng::seed_from_env().map_err(crate::Error::Device)?;
        let report = suite::suite_with(&*device, &Options::new(Tier::Small, seed), |outcome| (self.0)(outcome.op));
        Ok((device.caps().identity.clone(), report))
    }
}

/// Runs the conformance suite and a small model on a device, with products as `gemm` says. `done` is called with the name of each operation's case
/// and of each model that is done; it takes seconds on a GPU or CPU and minutes on a software adapter.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) for a device that cannot be opened; what it computes wrong is in the
/// certificate.
pub fn check_device(device: &DeviceSpec, gemm: Gemm, mut done: impl FnMut(&str)) -> Result<Certificate> {
    let builder = Engine::builder("").device(device.clone()).gemm(gemm).self_check(SelfCheck::Off);
    let mut notes = Vec::new();
    let (identity, report) = builder.on_device(Ops(&mut done), &mut notes)?;
    let models = model::outcomes(device, gemm, &mut done)?;
    Ok(Certificate { identity, report, models, notes })
}
