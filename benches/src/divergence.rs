//! How often an answer differs after a move between two devices, and how close the choice was.
//!
//! Requests are drawn, greedy and seeded in turn, and begin on one device and the other. Each runs there without
//! interruption; then, from a drawn token on, the other device goes on from what a caller was told until then. Of a
//! greedy answer that differs this says the *margin*: how far the two best log-probabilities were apart at its first
//! other token. A token that was drawn has none, as it depends on sums of probabilities. Of all this says the *shift*:
//! how far the devices' log-probabilities of one token, after one prefix, were apart.
use crate::args::DivergenceArgs;
use crate::report::{self, JsonFile};
use crate::stats::percentile;
use crate::{Result, checkpoint};
use anyfleet::{
    DeviceSpec, Engine, GenerateRequest, RequestSnapshot, SamplingParams, StreamEvent, TokenLogprob, TokenStream,
};
use anyfleet_conformance::rng::Rng;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Requests that run at once: enough that steps have company, as in a server.
const AT_ONCE: usize = 16;
/// Words of prompts; what of a vocabulary they become is the tokenizer's matter.
const WORDS: &[&str] = &[
    "the", "cat", "saw", "a", "red", "bird", "and", "said", "hello", "to", "Tom", "who", "was", "very", "happy", "in",
    "his", "garden", "What", "is", "opposite", "of", "hot?", "One", "day,", "little", "girl", "went", "home.",
];

/// A request of the experiment.
struct Case {
    prompt: Vec<u32>,
    params: SamplingParams,
    /// Tokens before it moves.
    at: usize,
    /// The device it begins on: the first or the second.
    begins: usize,
}

impl Case {
    fn is_greedy(&self) -> bool {
        self.params.temperature == 0.0
    }

    fn request(&self) -> GenerateRequest {
        GenerateRequest::tokens(self.prompt.clone()).params(self.params.clone())
    }
}

/// What became of a request.
struct Outcome {
    greedy: bool,
    /// Tokens from the move to the first other one, and the margin there.
    difference: Option<(usize, f64)>,
    /// The largest shift of its tokens up to there.
    shift: f64,
}

/// `bench divergence`.
///
/// # Errors
/// One line: a model, a device or a file that cannot be used.
pub fn run(args: &DivergenceArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref())?;
    let temporary = args.source.random_weights.as_deref().map(checkpoint::write).transpose()?;
    let dir = temporary.as_ref().map(|dir| dir.path().to_owned());
    let engines = [build(args, dir.as_ref(), &args.from)?, build(args, dir.as_ref(), &args.to)?];
    let cases = cases(args, &engines[0])?;
    let start = Instant::now();
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || -> Result<()> {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let outcome = compare(case, &engines)?;
            let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push(outcome);
            if outcomes.len().is_multiple_of(100) {
                report::progress(&format!("{} requests in {:.0} s", outcomes.len(), start.elapsed().as_secs_f64()));
            }
        }
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a request panicked".into()))).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let numerics = engines.each_ref().map(|engine| engine.info().identity.numerics_id.clone());
    let rows = [true, false].map(|greedy| Row::of(outcomes.iter().filter(|outcome| outcome.greedy == greedy)));
    report::print(&format!("{}\n{}\n\n{}", numerics[0], numerics[1], table(&rows)));
    json.write(&to_json(args, &numerics, &rows))
}

fn build(args: &DivergenceArgs, dir: Option<&PathBuf>, device: &DeviceSpec) -> Result<Engine> {
    let builder = match (&args.source.model, dir) {
        (_, Some(dir)) => Engine::builder(dir.to_string_lossy()),
        (Some(model), None) => Engine::builder(model),
        (None, None) => Engine::bundled(),
    };
    let builder = builder.device(device.clone()).dtype(args.dtype).max_num_seqs(AT_ONCE);
    // A prefix that is found needs no computing, which is what a move is about.
    let builder = builder.prefix_cache(false).max_model_len(args.tokens + 64).max_batch_tokens(128);
    builder.build().map_err(|e| e.to_string())
}

fn cases(args: &DivergenceArgs, engine: &Engine) -> Result<Vec<Case>> {
    let mut rng = Rng::new(args.seed);
    let vocabulary = engine.info().vocab_size;
    let mut case = |number: usize| {
        let words = rng.range(1, 24);
        let prompt = match engine.tokenizer() {
            Some(_) => {
                let text: Vec<&str> = (0..words).map(|_| rng.pick(WORDS)).collect();
                let mut ids = engine.encode(&text.join(" "), true).map_err(|e| e.to_string())?;
                ids.truncate(60);
                ids
            }
            None => (0..words).map(|_| rng.range(0, vocabulary) as u32).collect(),
        };
        let params = SamplingParams {
            temperature: if number.is_multiple_of(2) { 0.0 } else { 1.0 },
            seed: Some(number as u64),
            max_tokens: Some(args.tokens as u32),
            ignore_eos: true,
            logprobs: Some(2),
            ..SamplingParams::default()
        };
        // Greedy and seeded requests begin on either device.
        Ok(Case { prompt, params, at: rng.below(args.tokens), begins: number / 2 % 2 })
    };
    (0..args.requests).map(&mut case).collect()
}

fn compare(case: &Case, engines: &[Engine; 2]) -> Result<Outcome> {
    let fail = |e: anyfleet::Error| e.to_string();
    let (here, there) = (&engines[case.begins], &engines[1 - case.begins]);
    let whole = deltas(here.stream(case.request()).map_err(fail)?)?;
    let identity = here.info().identity.clone();
    let mut snapshot = RequestSnapshot::new(identity, case.prompt.clone(), case.params.clone(), 0);
    let said = &mut snapshot.choices[0];
    let mut deltas_said = 0;
    for (text, tokens) in &whole {
        if said.tokens.len() + tokens.len() > case.at {
            break;
        }
        said.sent_bytes += text.len();
        said.tokens.extend(tokens.iter().map(|token| token.id));
        deltas_said += 1;
    }
    let moved = deltas(there.resume(snapshot, None).map_err(fail)?)?;
    let rest = whole[deltas_said..].iter().flat_map(|(_, tokens)| tokens);
    let pairs = rest.zip(moved.iter().flat_map(|(_, tokens)| tokens));
    let (mut difference, mut shift) = (None, 0f64);
    for (after, (was, is)) in pairs.enumerate() {
        if was.id != is.id {
            let mut best: Vec<f32> = was.top.iter().map(|&(_, logprob)| logprob).collect();
            best.sort_by(|a, b| b.total_cmp(a));
            difference = Some((after, f64::from(best[0] - best[1])));
            break;
        }
        shift = shift.max(f64::from((was.logprob - is.logprob).abs()));
    }
    Ok(Outcome { greedy: case.is_greedy(), difference, shift })
}

type Delta = (String, Vec<TokenLogprob>);

fn deltas(stream: TokenStream) -> Result<Vec<Delta>> {
    let mut all = Vec::new();
    for event in stream {
        if let StreamEvent::Delta { text, tokens, .. } = event.map_err(|e| e.to_string())? {
            all.push((text, tokens));
        }
    }
    Ok(all)
}

/// Requests of one kind.
struct Row {
    requests: usize,
    /// Margins of those that differ, ascending.
    margins: Vec<f64>,
    /// Tokens from the move to the first other one.
    after: Vec<f64>,
    shifts: Vec<f64>,
}

impl Row {
    fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut row = Row { requests: 0, margins: Vec::new(), after: Vec::new(), shifts: Vec::new() };
        for outcome in outcomes {
            row.requests += 1;
            row.shifts.push(outcome.shift);
            if let Some((after, margin)) = outcome.difference {
                row.margins.push(margin);
                row.after.push(after as f64);
            }
        }
        row.margins.sort_by(f64::total_cmp);
        row
    }

    fn share(&self) -> f64 {
        self.margins.len() as f64 / self.requests.max(1) as f64
    }
}

const KINDS: [&str; 2] = ["greedy", "seeded"];

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.2e}"))
}

fn table(rows: &[Row; 2]) -> String {
    let head =
        ["", "requests", "differ", "share", "margin p50", "margin max", "tokens after p50", "shift p50", "shift max"];
    let lines: Vec<Vec<String>> = KINDS
        .iter()
        .zip(rows)
        .map(|(kind, row)| {
            let margins: &[f64] = if *kind == "greedy" { &row.margins } else { &[] };
            vec![
                (*kind).to_owned(),
                row.requests.to_string(),
                row.margins.len().to_string(),
                format!("{:.1} %", 100.0 * row.share()),
                number(percentile(margins, 0.5)),
                number(percentile(margins, 1.0)),
                percentile(&row.after, 0.5).map_or("-".into(), |tokens| format!("{tokens:.0}")),
                number(percentile(&row.shifts, 0.5)),
                number(percentile(&row.shifts, 1.0)),
            ]
        })
        .collect();
    report::table(&head, &lines)
}

fn to_json(args: &DivergenceArgs, numerics: &[String; 2], rows: &[Row; 2]) -> Value {
    let row = |(kind, row): (&&str, &Row)| {
        json!({"kind": kind, "requests": row.requests, "margins": row.margins, "tokens_after": row.after,
            "shifts": row.shifts})
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "numerics_ids": numerics,
        "seed": args.seed,
        "tokens": args.tokens,
        "rows": KINDS.iter().zip(rows).map(row).collect::<Vec<_>>(),
    })
}
