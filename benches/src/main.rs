//! `bench`: the command line of the measuring stick.
use bench::args::{Args, Command, DeviceArgs, parse};
use bench::device::Ceilings;
use bench::options::threads_or_all;
use bench::report::{self, JsonFile};
use bench::{Result, divergence, perplexity, run};
use serde_json::json;
use std::process::ExitCode;

fn main() -> ExitCode {
    match parse().and_then(|args| dispatch(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report::progress(&format!("error: {}", failure.replace(|c: char| c.is_control(), " ").trim()));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &Args) -> Result<()> {
    match &args.command {
        Command::Device(args) => device(args),
        Command::Run(args) => run::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Divergence(args) => divergence::run(args),
    }
}

fn device(args: &DeviceArgs) -> Result<()> {
    let json = JsonFile::create(args.json.as_deref())?;
    let ceilings = Ceilings::measure(threads_or_all(args.threads), &args.device)?;
    report::print(&ceilings.table());
    json.write(&json!({"version": env!("CARGO_PKG_VERSION"), "device": ceilings.json()}))
}
