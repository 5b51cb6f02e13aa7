//! Whole models against Hugging Face transformers.
use super::{Driver, Errors, Expected, PromptCase, log_softmax};
use anyfleet::{Engine, EngineBuilder, GenerateRequest, SamplingParams};
use std::path::Path;

/// f32 against the f32 reference; both are within 1e-4 of f64 (see the fixtures' README).
pub const F32_TOLERANCE: f64 = 1e-3;
/// Greedy ids are compared wherever the reference's margin exceeds this.
pub const GREEDY_MARGIN: f64 = 2e-3;

/// Errors against the f32 reference over all prompts, as the fixtures' README defines them.
pub fn errors_of(dir: &Path, reference: &Expected, builder: EngineBuilder, chunk: usize) -> Errors {
    let mut executor = builder.executor().unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut driver = Driver { executor: &mut *executor, chunk };
    let (mut tokens, mut rows) = (Vec::new(), Vec::new());
    for prompt in &reference.prompts {
        let positions: Vec<usize> = prompt.rows.iter().map(|r| r.position).collect();
        let (logprobs, logits) = driver.score(&prompt.ids, &positions);
        assert_eq!((logprobs.len(), logits.len()), (prompt.token_logprobs.len(), prompt.rows.len()));
        tokens.extend(logprobs.iter().zip(&prompt.token_logprobs).map(|(&a, &b)| (f64::from(a) - b).abs()));
        for (ours, theirs) in logits.iter().zip(&prompt.rows) {
            let (ours, theirs) = (log_softmax(ours), log_softmax(&theirs.logits()));
            assert_eq!(ours.len(), theirs.len());
            rows.extend(ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()));
        }
    }
    let max = |v: &[f64]| v.iter().copied().fold(0.0, |a: f64, b| if b.is_nan() { f64::NAN } else { a.max(b) });
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    Errors { tokens_max: max(&tokens), tokens_mean: mean(&tokens), rows_max: max(&rows), rows_mean: mean(&rows) }
}

pub fn worst(errors: &Errors) -> f64 {
    errors.tokens_max.max(errors.rows_max)
}

/// A model in bf16 is about as far from f32 as transformers' is.
pub fn assert_bf16_sized(what: &str, found: Errors, theirs: Errors) {
    for (of, found, theirs) in
        [("tokens", found.tokens_max, theirs.tokens_max), ("rows", found.rows_max, theirs.rows_max)]
    {
        assert!(found <= 2.0 * theirs + 0.02, "{what}: max error over {of} is {found}");
    }
    for (of, found, theirs) in
        [("tokens", found.tokens_mean, theirs.tokens_mean), ("rows", found.rows_mean, theirs.rows_mean)]
    {
        assert!(found <= 1.4 * theirs + 0.003, "{what}: mean error over {of} is {found}");
    }
}

/// Greedy ids that are the reference's, as many as its margins allow to compare.
pub fn equal_greedy_ids(what: &str, engine: &Engine, prompts: Vec<PromptCase>) -> usize {
    let mut compared = 0;
    for prompt in prompts {
        let params = SamplingParams {
            temperature: 0.0,
            max_tokens: Some(prompt.greedy.ids.len() as u32),
            ignore_eos: true,
            ..SamplingParams::default()
        };
        let request = GenerateRequest::tokens(prompt.ids).params(params);
        let ids = engine.generate(request).expect("greedy").token_ids();
        let sure = prompt.greedy.margins.iter().take_while(|&&m| m > GREEDY_MARGIN).count();
        assert_eq!(ids[..sure], prompt.greedy.ids[..sure], "{what}");
        compared += sure;
    }
    compared
}

pub fn name(dir: &Path) -> String {
    dir.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned())
}
