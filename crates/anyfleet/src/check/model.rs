//! A whole model on a device.
use crate::{DTypeSpec, DeviceSpec, EngineBuilder, GenerateRequest, Result, SamplingParams, SelfCheck};
use anyfleet_tensor::Gemm;
use serde_json::Value;

/// Log-probabilities in f32: both sides are within 1e-4 of f64.
const F32_LIMIT: f64 = 1e-3;
/// Greedy ids are compared as long as the reference's margin is above this.
const MARGIN: f64 = 2e-3;

/// How a whole model fared.
#[derive(Clone, Debug)]
pub struct ModelOutcome {
    /// Type of weights, keys and values.
    pub dtype: DTypeSpec,
    /// Largest error of a log-probability.
    pub max_error: f64,
    /// What it may be.
    pub limit: f64,
    /// Greedily chosen tokens that are those of the reference, as far as its margin tells; `None` where rounding may
    /// choose others.
    pub greedy_ids: Option<usize>,
    /// All of this is as it must be.
    pub passed: bool,
    /// What is not.
    pub detail: String,
}

/// What a whole model is held to.
#[derive(Clone, Copy)]
struct Limits {
    /// Error of a log-probability.
    error: f64,
    /// Margin of the reference above which a greedy id must be its own.
    margin: f64,
}

pub(super) fn outcomes(device: &DeviceSpec, gemm: Gemm, done: &mut dyn FnMut(&str)) -> Result<Vec<ModelOutcome>> {
    let bundle = anyfleet_models::check_model();
    let expected = bundle.file("expected.json").and_then(|text| serde_json::from_slice(text).ok());
    let expected: Value = expected.expect("check: the bundled reference");
    // As models/parity/README.md has it: twice the reference's own error and a little.
    let bf16_error = 2.0 * expected["bf16_error_against_f32"]["tokens_max"].as_f64().unwrap_or(0.0);
    // Matrix units may take factors of eleven bits, where bf16 has eight: an eighth of its error. Both of two
    // log-probabilities may be that far off.
    let rounding = if gemm == Gemm::Fast { bf16_error / 8.0 } else { 0.0 };
    let limits = |error| Limits { error: error + rounding, margin: MARGIN + 2.0 * rounding };
    let kinds = [(DTypeSpec::F32, F32_LIMIT), (DTypeSpec::Bf16, bf16_error + 0.02)];
    kinds
        .into_iter()
        .map(|(dtype, error)| {
            let builder =
                EngineBuilder::new("check".into(), Some(bundle)).device(device.clone()).dtype(dtype).gemm(gemm);
            let builder = builder.kv_cache_bytes(1 << 20).max_num_seqs(2).self_check(SelfCheck::Off);
            let outcome = outcome(builder, dtype, limits(error), &expected);
            done("whole model");
            outcome
        })
        .collect()
}

fn outcome(builder: EngineBuilder, dtype: DTypeSpec, limits: Limits, expected: &Value) -> Result<ModelOutcome> {
    let engine = builder.build()?;
    let Limits { error: limit, margin } = limits;
    let mut outcome =
        ModelOutcome { dtype, max_error: 0.0, limit, greedy_ids: None, passed: true, detail: String::new() };
    let wrong = |outcome: &mut ModelOutcome, detail: String| {
        (outcome.passed, outcome.detail) = (false, detail);
    };
    let numbers =
        |value: &Value| -> Vec<f64> { value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    for (i, prompt) in expected["prompts"].as_array().into_iter().flatten().enumerate() {
        let ids: Vec<u32> = numbers(&prompt["ids"]).into_iter().map(|id| id as u32).collect();
        let greedy: Vec<u32> = numbers(&prompt["greedy"]["ids"]).into_iter().map(|id| id as u32).collect();
        let sure = numbers(&prompt["greedy"]["margins"]).into_iter().take_while(|&found| found > margin).count();
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: Some(greedy.len() as u32),
            ignore_eos: true,
            prompt_logprobs: Some(0),
            ..SamplingParams::default()
        };
        let completion = engine.generate(GenerateRequest::tokens(ids).params(params))?;
        let found = completion.prompt_logprobs.iter().flatten();
        for (found, want) in found.zip(numbers(&prompt["token_logprobs"])) {
            let error = (f64::from(found.logprob) - want).abs();
            // A NaN is above every limit.
            if error <= limit {
                outcome.max_error = outcome.max_error.max(error);
            } else {
                outcome.max_error = if error.is_nan() { f64::INFINITY } else { outcome.max_error.max(error) };
                wrong(&mut outcome, format!("prompt {i}: a log-probability is {}, not {want}", found.logprob));
            }
        }
        // Rounding of bf16 may decide otherwise earlier.
        if dtype == DTypeSpec::F32 {
            let same = completion.token_ids().iter().zip(&greedy[..sure]).take_while(|(a, b)| a == b).count();
            outcome.greedy_ids = Some(outcome.greedy_ids.unwrap_or(0) + same);
            if same < sure {
                wrong(&mut outcome, format!("prompt {i}: greedy token {same} is not that of the reference"));
            }
        }
    }
    Ok(outcome)
}
