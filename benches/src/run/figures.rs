//! From samples to figures.
use super::account::matrix_rate;
use super::case::Case;
use super::load::Loaded;
use super::session::Generation;
use crate::Result;
use crate::device::Ceilings;
use crate::memory::Resident;
use crate::report;
use crate::stats::{Spread, median, percentile};
use anyfleet_tensor::DType;
use serde_json::{Value, json};

/// What was measured of a case, one entry a round; times in seconds.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// From arrival to the first token, alone.
    first_token: Vec<f64>,
    /// Steps in which all sequences decoded.
    steps: Vec<f64>,
    /// The mean of a round's steps.
    mean_steps: Vec<f64>,
    /// Tokens read per sequence.
    mean_context: f64,
}

impl Samples {
    /// Runs a case once and keeps its times.
    ///
    /// # Errors
    /// A request is refused or fails.
    pub fn add(&mut self, loaded: &mut Loaded, case: &Case) -> Result<()> {
        let one = case.is_one_request();
        let prefill = loaded.session.generate(1, case.prompt, if one { case.steps } else { 0 })?;
        self.first_token.push(prefill.first_token);
        let decode = match one || case.steps == 0 {
            true => prefill,
            false => loaded.session.generate(case.batch, case.context(), case.steps)?,
        };
        let Generation { steps, mean_context, .. } = decode;
        if !steps.is_empty() {
            self.mean_steps.push(steps.iter().sum::<f64>() / steps.len() as f64);
            self.steps.extend(steps);
            self.mean_context = mean_context;
        }
        Ok(())
    }
}

/// A case, what was measured of it, and what that is compared with.
pub struct Figures<'a> {
    /// What was asked.
    pub case: Case,
    /// What was measured.
    pub samples: &'a Samples,
    /// The model.
    pub loaded: &'a Loaded,
    /// The machine.
    pub ceilings: &'a Ceilings,
    /// Memory when all was done.
    pub memory: Resident,
}

impl Figures<'_> {
    fn decode_tok_s(&self) -> Option<Spread> {
        let rates: Vec<f64> = self.samples.mean_steps.iter().map(|s| self.case.batch as f64 / s).collect();
        Spread::of(&rates)
    }

    fn prefill_tok_s(&self) -> Option<Spread> {
        let rates: Vec<f64> = self.samples.first_token.iter().map(|s| self.case.prompt as f64 / s).collect();
        Spread::of(&rates)
    }

    /// Bytes a decode step reads, and their rate over the read bandwidth.
    fn decode_bytes(&self) -> Option<(f64, f64)> {
        let bytes = self.loaded.account.bytes_per_step(self.case.batch, self.samples.mean_context);
        let rate = bytes / median(&self.samples.steps)?;
        Some((bytes, rate / self.ceilings.bandwidth()))
    }

    /// The rate of the prefill's operations over the rate that bounds them, and that rate's name; of most GPUs it is not
    /// known.
    fn matrix_share(&self) -> Option<(f64, &'static str)> {
        let (name, ceiling) = match &self.ceilings.copy {
            Some(gpu) => ("bf16 matrix units", gpu.bf16_per_s.filter(|_| self.loaded.dtype == DType::BF16)?),
            None => matrix_rate(self.ceilings, self.loaded.dtype, self.case.quantize)?,
        };
        let operations = self.loaded.account.prefill_operations(self.case.prompt);
        Some((operations / median(&self.samples.first_token)? / ceiling, name))
    }

    /// An entry of the report's `runs`.
    pub fn json(&self) -> Value {
        let Figures { case, samples, loaded, memory, .. } = self;
        let (prefill, decode) = (self.prefill_tok_s(), self.decode_tok_s());
        let ms = |seconds: Option<f64>| seconds.map(|s| s * 1e3);
        let kv = loaded.account.kv_per_step(case.batch, samples.mean_context);
        let decoded = !samples.steps.is_empty();
        json!({
            "prompt": case.prompt,
            "gen": case.steps,
            "batch": case.batch,
            "depth": case.depth,
            "quantize": case.quantize.to_string(),
            "dtype": loaded.dtype.to_string(),
            "device": loaded.plan.device,
            "numerics": loaded.plan.numerics,
            "context": case.context(),
            "mean_context": decoded.then_some(samples.mean_context),
            "prefill_tok_s": prefill.map(|s| s.median),
            "prefill_tok_s_min": prefill.map(|s| s.min),
            "prefill_tok_s_max": prefill.map(|s| s.max),
            "decode_tok_s": decode.map(|s| s.median),
            "decode_tok_s_min": decode.map(|s| s.min),
            "decode_tok_s_max": decode.map(|s| s.max),
            "ttft_ms": ms(median(&samples.first_token)),
            "ttft_ms_p99": ms(percentile(&samples.first_token, 0.99)),
            "itl_ms_p50": ms(percentile(&samples.steps, 0.5)),
            "itl_ms_p99": ms(percentile(&samples.steps, 0.99)),
            "weights_bytes": loaded.plan.weights,
            "weights_bytes_per_decode_step": loaded.account.weights_per_step,
            "kv_bytes_per_decode_step": decoded.then_some(kv.round()),
            "bytes_per_decode_step": self.decode_bytes().map(|(bytes, _)| bytes.round()),
            "share_of_bandwidth": self.decode_bytes().map(|(_, share)| share),
            "prefill_gflop": loaded.account.prefill_operations(case.prompt) / 1e9,
            "share_of_matrix_rate": self.matrix_share().map(|(share, _)| share),
            "matrix_rate": self.matrix_share().map(|(_, name)| name),
            "load_s": loaded.load_s,
            "start_to_first_token_s": loaded.first_token_s,
            "planned_bytes": loaded.plan.total(),
            "peak_resident_bytes": memory.peak,
            "peak_anonymous_bytes": loaded.peak_anonymous.max(memory.anonymous),
            "resident_anonymous_bytes": memory.anonymous,
            "resident_file_bytes": memory.file,
            "resident_before_load_bytes": loaded.before.total(),
        })
    }

    fn row(&self) -> Vec<String> {
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
        let Figures { case, samples, .. } = self;
        let percent = |share: Option<f64>| share.map_or("-".into(), |s| format!("{:.0} %", s * 100.0));
        vec![
            case.quantize.to_string(),
            case.prompt.to_string(),
            case.steps.to_string(),
            case.batch.to_string(),
            case.context().to_string(),
            number(self.prefill_tok_s().map(|s| s.median), 1),
            percent(self.matrix_share().map(|(share, _)| share)),
            number(median(&samples.first_token).map(|s| s * 1e3), 1),
            number(self.decode_tok_s().map(|s| s.median), 2),
            self.decode_tok_s().map_or("-".into(), |s| format!("{:.2}-{:.2}", s.min, s.max)),
            number(percentile(&samples.steps, 0.5).map(|s| s * 1e3), 2),
            number(percentile(&samples.steps, 0.99).map(|s| s * 1e3), 2),
            number(self.decode_bytes().map(|(bytes, _)| bytes / 1e6), 1),
            percent(self.decode_bytes().map(|(_, share)| share)),
        ]
    }
}

const HEAD: [&str; 14] = [
    "quantize",
    "prompt",
    "gen",
    "batch",
    "context",
    "prefill/s",
    "of rate",
    "ttft ms",
    "decode/s",
    "min-max",
    "itl p50",
    "itl p99",
    "MB/step",
    "of read",
];

/// For people: one line a case, then one a model.
pub fn table(figures: &[Figures<'_>]) -> String {
    let rows: Vec<Vec<String>> = figures.iter().map(Figures::row).collect();
    let mut text = report::table(&HEAD, &rows);
    let mut seen = Vec::new();
    for f in figures {
        if seen.contains(&f.case.quantize) {
            continue;
        }
        seen.push(f.case.quantize);
        let (loaded, memory) = (f.loaded, f.memory);
        let mb = |bytes: u64| bytes as f64 / 1e6;
        text += &format!(
            "{}: {} on {} ({}), weights {:.1} MB, loaded in {:.2} s, first token after {:.2} s, resident {:.1} MB \
             (peak {:.1}; {:.1} anonymous, {:.1} of files)\n",
            f.case.quantize,
            loaded.dtype,
            loaded.plan.device,
            loaded.plan.numerics,
            mb(loaded.plan.weights),
            loaded.load_s,
            loaded.first_token_s,
            mb(memory.total()),
            mb(memory.peak),
            mb(memory.anonymous),
            mb(memory.file),
        );
    }
    text
}
