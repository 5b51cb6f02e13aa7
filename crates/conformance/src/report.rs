//! Outcomes of a run, for people and for programs.
use crate::case::{Outcome, Verdict};
use anyfleet_tensor::Caps;
use std::collections::BTreeMap;
use std::fmt::Write;

/// All outcomes of one backend.
#[derive(Clone, Debug)]
pub struct Report {
    /// Device name for people.
    pub device: String,
    /// Backend and kernel set.
    pub numerics: String,
    /// The seed that brings the same inputs back.
    pub seed: u64,
    /// One per case, in the order they ran.
    pub outcomes: Vec<Outcome>,
}

/// Cases of one op and one combination of types.
#[derive(Default)]
struct Group {
    cases: usize,
    failed: usize,
    unsupported: usize,
    nmse: f64,
    max_error: f64,
    margin: f64,
}

impl Group {
    fn verdict(&self) -> Verdict {
        match (self.failed, self.unsupported) {
            (0, unsupported) if unsupported == self.cases => Verdict::Unsupported,
            (0, _) => Verdict::Pass,
            _ => Verdict::Fail,
        }
    }
}

impl Report {
    pub(crate) fn new(caps: &Caps, seed: u64) -> Self {
        Report { device: caps.device.clone(), numerics: caps.numerics.clone(), seed, outcomes: Vec::new() }
    }

    /// True when something ran and nothing failed.
    pub fn passed(&self) -> bool {
        !self.outcomes.is_empty() && self.failures().next().is_none()
    }

    /// Failed cases.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|o| o.verdict == Verdict::Fail)
    }

    fn groups(&self) -> BTreeMap<(&'static str, String), Group> {
        let mut groups: BTreeMap<_, Group> = BTreeMap::new();
        for outcome in &self.outcomes {
            let group = groups.entry((outcome.op, outcome.types.to_string())).or_default();
            group.cases += 1;
            group.failed += usize::from(outcome.verdict == Verdict::Fail);
            group.unsupported += usize::from(outcome.verdict == Verdict::Unsupported);
            group.nmse = group.nmse.max(outcome.nmse);
            group.max_error = group.max_error.max(outcome.max_error);
            group.margin = group.margin.max(outcome.margin);
        }
        groups
    }

    /// One line for each op and combination of types. `max error` is in units of an element's
    /// scale, `of limit` in units of what its tolerance allows.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<15} {:<16} {:>5} {:>9} {:>9} {:>8}  verdict\n",
            "op", "types", "cases", "nmse", "max error", "of limit"
        );
        for ((op, types), group) in self.groups() {
            let (nmse, max, limit) = (group.nmse, group.max_error, group.margin);
            let verdict = group.verdict();
            writeln!(text, "{op:<15} {types:<16} {:>5} {nmse:>9.1e} {max:>9.1e} {limit:>8.2}  {verdict}", group.cases)
                .expect("a String takes every write");
        }
        text
    }

    /// Every failed case with what to set to see it again.
    pub fn failure_text(&self) -> String {
        let seed = self.seed;
        let text = |o: &Outcome| {
            format!("FAIL {} on {} with ANYFLEET_SEED={seed}\n  {}\n  {}\n", o.op, self.device, o.label, o.detail)
        };
        self.failures().map(text).collect()
    }

    /// The whole report as JSON.
    pub fn json(&self) -> serde_json::Value {
        let case = |o: &Outcome| {
            serde_json::json!({
                "op": o.op,
                "types": o.types.to_string(),
                "case": o.label,
                "nmse": o.nmse,
                "max_error": o.max_error,
                "margin": o.margin,
                "verdict": o.verdict.to_string(),
                "detail": o.detail,
            })
        };
        serde_json::json!({
            "device": self.device,
            "numerics": self.numerics,
            "seed": self.seed,
            "passed": self.passed(),
            "cases": self.outcomes.iter().map(case).collect::<Vec<_>>(),
        })
    }
}
