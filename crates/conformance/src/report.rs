//! Outcomes of a run, for people and for programs.
use crate::case::{Outcome, Types, Verdict};
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

/// Cases of one op and one combination of types, each figure the worst of them.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The op's one name.
    pub op: &'static str,
    /// Its types.
    pub types: Types,
    /// How many cases there are.
    pub cases: usize,
    /// Mean square error in units of the reference's mean square.
    pub nmse: f64,
    /// Largest error, in units of an element's scale.
    pub max_error: f64,
    /// Largest error, in units of what its tolerance allows.
    pub margin: f64,
    /// Of all of them.
    pub verdict: Verdict,
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.cases += 1;
        self.nmse = self.nmse.max(outcome.nmse);
        self.max_error = self.max_error.max(outcome.max_error);
        self.margin = self.margin.max(outcome.margin);
        self.verdict = match (self.verdict, outcome.verdict) {
            (Verdict::Fail, _) | (_, Verdict::Fail) => Verdict::Fail,
            (Verdict::Error, _) | (_, Verdict::Error) => Verdict::Error,
            (Verdict::Pass, _) | (_, Verdict::Pass) => Verdict::Pass,
            _ => Verdict::Unsupported,
        };
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

    /// Failed cases, those in which the backend gave an error included.
    pub fn failures(&self) -> impl Iterator<Item = &Outcome> {
        self.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Fail | Verdict::Error))
    }

    /// One for each op and combination of types.
    pub fn summaries(&self) -> Vec<Summary> {
        let mut by_name: BTreeMap<(&'static str, String), Summary> = BTreeMap::new();
        for outcome in &self.outcomes {
            let (op, types) = (outcome.op, outcome.types);
            let none =
                Summary { op, types, cases: 0, nmse: 0.0, max_error: 0.0, margin: 0.0, verdict: Verdict::Unsupported };
            by_name.entry((op, types.to_string())).or_insert(none).add(outcome);
        }
        by_name.into_values().collect()
    }

    /// A line for each summary.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<15} {:<16} {:>5} {:>9} {:>9} {:>8}  verdict\n",
            "op", "types", "cases", "nmse", "max error", "of limit"
        );
        for Summary { op, types, cases, nmse, max_error, margin, verdict } in self.summaries() {
            let types = types.to_string();
            writeln!(text, "{op:<15} {types:<16} {cases:>5} {nmse:>9.1e} {max_error:>9.1e} {margin:>8.2}  {verdict}")
                .expect("a String takes every write");
        }
        text
    }

    /// Every failed case with what to set to see it again.
    pub fn failure_text(&self) -> String {
        let seed = self.seed;
        let text = |o: &Outcome| {
            let Outcome { op, label, verdict, detail, .. } = o;
            format!("{verdict} {op} on {} with ANYFLEET_SEED={seed}\n  {label}\n  {detail}\n", self.device)
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
