//! Measures a model: every case once a round, round after round, so that whatever disturbs the machine
//! disturbs all of them; medians over the rounds.
//!
//! A case is two measurements. The **prefill** is one request alone: its prompt runs in steps of the engine's
//! token rows, and ends with the first sampled token. **Decode** is `batch` requests whose caches hold the
//! prompt, or `depth` tokens; steps count once all of them decode. Both go through the real runtime, greedy,
//! without prefix sharing. The machine's ceilings are measured before and after, and the better figures used.
mod account;
mod case;
mod figures;
mod load;
mod session;

use crate::args::RunArgs;
use crate::device::Ceilings;
use crate::memory::Resident;
use crate::report::{self, JsonFile};
use crate::{Result, checkpoint};
pub use account::{Account, matrix_rate};
pub use case::Case;
pub use figures::{Figures, Samples};
pub use load::Loaded;
use serde_json::{Value, json};
pub use session::{Generation, Session};
use std::path::{Path, PathBuf};

/// `bench run`.
///
/// # Errors
/// One line: a model, a file or a case that cannot be used.
pub fn run(args: &RunArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref())?;
    let cases = Case::all(args);
    let (dir, temporary) = match (&args.source.model, &args.source.random_weights) {
        (_, Some(config)) => {
            report::progress("writing random weights");
            let temporary = checkpoint::write(config)?;
            (temporary.path().to_owned(), Some(temporary))
        }
        (Some(model), None) => (anyfleet_weights::resolve(model).map_err(|e| e.to_string())?, None),
        (None, None) => return Err("no model: give one with --model or --random-weights".into()),
    };
    let measured = measure(args, &dir, &cases, || drop(temporary))?;
    let figures = measured.figures(&cases);
    report::print(&format!("{}\n{}", measured.ceilings.table(), figures::table(&figures)));
    json.write(&measured.json(args, &figures))
}

/// Everything that a report is made of.
struct Measured {
    ceilings: Ceilings,
    models: Vec<Loaded>,
    samples: Vec<Samples>,
    memory: Resident,
}

fn measure(args: &RunArgs, dir: &Path, cases: &[Case], loaded: impl FnOnce()) -> Result<Measured> {
    let threads = args.options.thread_count();
    // Bad flags and files should not cost the time of measuring the machine.
    Loaded::check(dir, args, cases)?;
    report::progress("measuring the machine");
    let before = Ceilings::measure(threads, &args.options.device)?;
    report::progress("loading");
    let mut models: Vec<Loaded> = Vec::new();
    for case in cases {
        if models.iter().all(|m| m.quantize != case.quantize) {
            let own: Vec<Case> = cases.iter().copied().filter(|c| c.quantize == case.quantize).collect();
            models.push(Loaded::new(dir, args, case.quantize, &own)?);
        }
    }
    // Files that were written for this are not needed any more, should someone interrupt what follows.
    loaded();
    let mut samples = vec![Samples::default(); cases.len()];
    for round in 0..=args.repeat {
        report::progress(&match round {
            0 => "warming up".to_owned(),
            _ => format!("round {round} of {}", args.repeat),
        });
        for (case, samples) in cases.iter().zip(&mut samples) {
            let model = models.iter_mut().find(|m| m.quantize == case.quantize).expect("loaded above");
            match round {
                0 => Samples::default().add(model, case)?,
                _ => samples.add(model, case)?,
            }
        }
    }
    let memory = Resident::now();
    report::progress("measuring the machine again");
    let ceilings = before.best_of(Ceilings::measure(threads, &args.options.device)?);
    Ok(Measured { ceilings, models, samples, memory })
}

impl Measured {
    fn figures(&self, cases: &[Case]) -> Vec<Figures<'_>> {
        let Measured { ceilings, memory, .. } = self;
        let figures = |(case, samples): (&Case, _)| {
            let loaded =
                self.models.iter().find(|m| m.quantize == case.quantize).expect("loaded before it was measured");
            Figures { case: *case, samples, loaded, ceilings, memory: *memory }
        };
        cases.iter().zip(&self.samples).map(figures).collect()
    }

    fn json(&self, args: &RunArgs, figures: &[Figures<'_>]) -> Value {
        let random = args.source.random_weights.as_deref().map(file_name);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": random.or(args.source.model.as_deref().map(|model| file_name(Path::new(model)))),
            "random_weights": args.source.random_weights.is_some(),
            "repeat": args.repeat,
            "max_batch_tokens": args.max_batch_tokens,
            "device": self.ceilings.json(),
            "runs": figures.iter().map(Figures::json).collect::<Vec<_>>(),
        })
    }
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name().map_or_else(|| path.to_owned(), PathBuf::from)
}
