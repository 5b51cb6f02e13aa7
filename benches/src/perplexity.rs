//! Perplexity of a text: what a quantization costs in quality.
//!
//! The text is cut into windows that overlap by one token, so that every token but the first is scored once,
//! given between one and `window - 1` tokens before it. Per token and per byte: the first compares runs of one
//! model, the second models with different tokenizers.
use crate::Result;
use crate::args::PerplexityArgs;
use crate::options::Quantize;
use crate::report::{self, JsonFile};
use anyfleet::{Engine, EngineBuilder, GenerateRequest, SamplingParams, Tokenizer};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Largest text read, in bytes: tokenizers take many times that.
const MAX_TEXT: u64 = 256 << 20;

/// Log-likelihood of a text under a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Sum of natural logarithms, negated.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Bytes of text those tokens stand for.
    pub bytes: usize,
}

impl Score {
    /// Per token.
    pub fn perplexity(&self) -> f64 {
        (self.nll / self.tokens as f64).exp()
    }

    /// Per byte.
    pub fn byte_perplexity(&self) -> f64 {
        (self.nll / self.bytes as f64).exp()
    }

    /// Bits per byte.
    pub fn bits_per_byte(&self) -> f64 {
        self.nll / self.bytes as f64 / std::f64::consts::LN_2
    }
}

/// `bench perplexity`.
///
/// # Errors
/// One line: a model or a file that cannot be used.
pub fn run(args: &PerplexityArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref())?;
    let text = read(&args.text)?;
    let mut scores: Vec<(Quantize, String, Score)> = Vec::new();
    for &quantize in &args.quantize {
        if scores.iter().any(|(other, ..)| *other == quantize) {
            continue;
        }
        let (numerics, score) = score(args, quantize, &text)?;
        scores.push((quantize, numerics, score));
    }
    report::print(&table(&scores));
    json.write(&to_json(args, &scores))
}

fn read(path: &Path) -> Result<String> {
    let fail = |reason: String| format!("{}: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|e| fail(format!("cannot be read: {e}")))?.len();
    if size > MAX_TEXT {
        return Err(fail(format!("has {size} bytes; at most {MAX_TEXT} are read, so cut it")));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    String::from_utf8(bytes).map_err(|_| fail("is not UTF-8".into()))
}

fn builder(args: &PerplexityArgs) -> EngineBuilder {
    match &args.source.model {
        Some(model) => Engine::builder(model),
        None => Engine::bundled(),
    }
}

/// Numerics id and score under one quantization.
fn score(args: &PerplexityArgs, quantize: Quantize, text: &str) -> Result<(String, Score)> {
    let fail = |e: anyfleet::Error| e.to_string();
    let builder = args.options.apply(builder(args), quantize).prefix_cache(false).max_num_seqs(1);
    let most = builder.plan().map_err(fail)?.limits.max_model_len;
    let window = args.window.min(most);
    // One page more than a window: the runtime keeps room for a token to come.
    let engine = builder.max_model_len((window + 1).min(most)).build().map_err(fail)?;
    let Some(tokenizer) = engine.tokenizer() else {
        return Err("this model has no tokenizer.json, so it cannot read a text".into());
    };
    let mut ids = tokenizer.encode(text, true).map_err(|e| e.to_string())?;
    if let Some(limit) = args.limit_tokens {
        ids.truncate(limit);
    }
    if ids.len() < 2 {
        return Err(format!("{}: has fewer than two tokens", args.text.display()));
    }
    let start = Instant::now();
    let mut score = Score { bytes: bytes(tokenizer, &ids[1..]), ..Score::default() };
    for window in windows(&ids, window) {
        let params = SamplingParams { max_tokens: Some(0), prompt_logprobs: Some(0), ..SamplingParams::default() };
        let scored = engine.generate(GenerateRequest::tokens(window).params(params)).map_err(fail)?;
        let logprobs = scored.prompt_logprobs.ok_or("the engine scored no prompt")?;
        score.nll -= logprobs.iter().map(|token| f64::from(token.logprob)).sum::<f64>();
        score.tokens += logprobs.len();
    }
    report::progress(&format!("{quantize}: {} tokens in {:.1} s", score.tokens, start.elapsed().as_secs_f64()));
    Ok((engine.info().identity.numerics_id.clone(), score))
}

/// Windows of at most `size` tokens; each begins with the last token of the one before.
fn windows(ids: &[u32], size: usize) -> impl Iterator<Item = &[u32]> {
    let step = size - 1;
    (0..ids.len() - 1).step_by(step).map(move |start| &ids[start..ids.len().min(start + size)])
}

fn bytes(tokenizer: &Tokenizer, ids: &[u32]) -> usize {
    ids.iter().filter(|&&id| !tokenizer.is_special(id)).map(|&id| tokenizer.token_bytes(id).len()).sum()
}

fn table(scores: &[(Quantize, String, Score)]) -> String {
    let first = scores.first().map_or(f64::NAN, |(.., score)| score.perplexity());
    let row = |(quantize, numerics, score): &(Quantize, String, Score)| {
        vec![
            quantize.to_string(),
            score.tokens.to_string(),
            score.bytes.to_string(),
            format!("{:.4}", score.perplexity()),
            format!("{:.4}", score.perplexity() / first),
            format!("{:.4}", score.byte_perplexity()),
            format!("{:.4}", score.bits_per_byte()),
            numerics.clone(),
        ]
    };
    let head = ["quantize", "tokens", "bytes", "perplexity", "ratio", "per byte", "bits/byte", "numerics"];
    report::table(&head, &scores.iter().map(row).collect::<Vec<_>>())
}

fn to_json(args: &PerplexityArgs, scores: &[(Quantize, String, Score)]) -> Value {
    let first = scores.first().map_or(f64::NAN, |(.., score)| score.perplexity());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let run = |(quantize, numerics, score): &(Quantize, String, Score)| {
        json!({
            "quantize": quantize.to_string(),
            "numerics_id": numerics,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "nll": score.nll,
            "perplexity": score.perplexity(),
            "ratio_to_first": score.perplexity() / first,
            "byte_perplexity": score.byte_perplexity(),
            "bits_per_byte": score.bits_per_byte(),
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": args.source.model.as_deref().map_or(Some("pocket".into()), |model| name(Path::new(model))),
        "text": name(&args.text),
        "window": args.window,
        "runs": scores.iter().map(run).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        let ids: Vec<u32> = (0..10).collect();
        let cut = |size| windows(&ids, size).map(<[u32]>::to_vec).collect::<Vec<_>>();
        assert_eq!(cut(4), [vec![0, 1, 2, 3], vec![3, 4, 5, 6], vec![6, 7, 8, 9]]);
        assert_eq!(cut(8), [vec![0, 1, 2, 3, 4, 5, 6, 7], vec![7, 8, 9]]);
        assert_eq!(cut(100).concat(), ids);
        for size in 2..12 {
            let scored: Vec<u32> = windows(&ids, size).flat_map(|w| w[1..].to_vec()).collect();
            assert_eq!(scored, ids[1..], "windows of {size}");
        }
    }

    #[test]
    fn normalisations() {
        let score = Score { nll: 20.0 * std::f64::consts::LN_2, tokens: 10, bytes: 40 };
        assert!((score.perplexity() - 4.0).abs() < 1e-12);
        assert!((score.byte_perplexity() - 2f64.sqrt()).abs() < 1e-12);
        assert!((score.bits_per_byte() - 0.5).abs() < 1e-12);
    }
}
