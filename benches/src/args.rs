//! The command line.
use crate::options::{ModelOptions, Quantize};
use anyfleet::{DTypeSpec, DeviceSpec};
use clap::error::ErrorKind;
use clap::{Args as ClapArgs, Parser, Subcommand};
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  bench device
  bench run --model ./Qwen3-0.6B --prompt 512,4096 --batch 1,16
  bench run --random-weights benches/configs/qwen3-0.6b.json --prompt 128 --gen 64 --batch 16 --json out.json
  bench perplexity --pocket --text stories.txt
  bench divergence --pocket --from cpu --to wgpu:0";

/// Measures this machine, models on it, and what a quantization costs.
#[derive(Debug, Parser)]
#[command(name = "bench", version, about, after_help = EXAMPLES, max_term_width = 100)]
pub struct Args {
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Ceilings of this machine: read bandwidth, arithmetic, fork-join
    Device(DeviceArgs),
    /// A model through the runtime: prefill, decode, latency, bytes, memory
    Run(RunArgs),
    /// Perplexity of a text, quantizations side by side
    Perplexity(PerplexityArgs),
    /// Answers that differ after a move between two devices
    Divergence(DivergenceArgs),
}

/// Flags of `bench device`.
#[derive(Debug, ClapArgs)]
pub struct DeviceArgs {
    /// A GPU to measure too, e.g. wgpu:0
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceSpec,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Flags of `bench run`. Flags that take several values, separated by commas, are combined.
#[derive(Debug, ClapArgs)]
pub struct RunArgs {
    /// Which model.
    #[command(flatten)]
    pub source: SourceArgs,
    /// How it is loaded.
    #[command(flatten)]
    pub options: ModelOptions,
    /// How weights are quantized, several with commas: none, q8, q4, f8
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none")]
    pub quantize: Vec<Quantize>,
    /// Prompt tokens of the prefill; several with commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "512", value_parser = positive)]
    pub prompt: Vec<usize>,
    /// Decode steps; 0 measures the prefill only; several with commas
    #[arg(long = "gen", value_name = "LIST", value_delimiter = ',', default_value = "64")]
    pub steps: Vec<usize>,
    /// Sequences that decode together; several with commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1", value_parser = positive)]
    pub batch: Vec<usize>,
    /// Tokens in the cache of each sequence when decoding begins; 0 is the prompt; several with commas
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "0")]
    pub depth: Vec<usize>,
    /// Token rows per step
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = positive)]
    pub max_batch_tokens: usize,
    /// Rounds over all cases, of which medians are taken; one more before them is not counted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = positive)]
    pub repeat: usize,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which model is measured.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// Hugging Face model directory, or a hub name that is in the hub's cache
    #[arg(long, value_name = "DIR|ORG/NAME")]
    pub model: Option<String>,
    /// A config.json; the model gets random weights, written to a temporary directory
    #[arg(long, value_name = "FILE")]
    pub random_weights: Option<PathBuf>,
}

/// Flags of `bench perplexity`.
#[derive(Debug, ClapArgs)]
pub struct PerplexityArgs {
    /// Which model.
    #[command(flatten)]
    pub source: TextSourceArgs,
    /// How it is loaded.
    #[command(flatten)]
    pub options: ModelOptions,
    /// How weights are quantized, compared with the first; several with commas: none, q8, q4, f8
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "none")]
    pub quantize: Vec<Quantize>,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens scored together: the context grows from one to this; at most the model's
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = window)]
    pub window: usize,
    /// Score the first tokens of the text only
    #[arg(long, value_name = "N", value_parser = window)]
    pub limit_tokens: Option<usize>,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Flags of `bench divergence`.
#[derive(Debug, ClapArgs)]
pub struct DivergenceArgs {
    /// Which model.
    #[command(flatten)]
    pub source: AnySourceArgs,
    /// One device
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub from: DeviceSpec,
    /// The other
    #[arg(long, value_name = "DEVICE", default_value = "wgpu:0")]
    pub to: DeviceSpec,
    /// Type of weights: auto (the checkpoint's), bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub dtype: DTypeSpec,
    /// Requests
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = positive)]
    pub requests: usize,
    /// Tokens of each answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub tokens: usize,
    /// What the requests are drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the report to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which model answers.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct AnySourceArgs {
    /// Hugging Face model directory, or a hub name
    #[arg(long, value_name = "DIR|ORG/NAME")]
    pub model: Option<String>,
    /// The model that is part of the program
    #[arg(long)]
    pub pocket: bool,
    /// A config.json; the model gets random weights, written to a temporary directory
    #[arg(long, value_name = "FILE")]
    pub random_weights: Option<PathBuf>,
}

/// Which model scores.
#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub struct TextSourceArgs {
    /// Hugging Face model directory, or a hub name that is in the hub's cache
    #[arg(long, value_name = "DIR|ORG/NAME")]
    pub model: Option<String>,
    /// The model that is part of the program
    #[arg(long)]
    pub pocket: bool,
}

/// The command line, or one line that says why it makes no sense; `--help` and `--version` print and exit.
///
/// # Errors
/// See above.
pub fn parse() -> crate::Result<Args> {
    Args::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // What is wrong, then perhaps tips; the usage that follows is in --help.
        let text = error.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        match error.kind() {
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                "no command: use device, run, perplexity or divergence (see --help)".into()
            }
            _ => format!("{} (see --help)", lines.join("; ").trim_start_matches("error: ")),
        }
    })
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

fn window(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 1).ok_or_else(|| "expected a whole number above 1".into())
}

/// Threads that can be started without minutes of waiting.
pub(crate) fn threads(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1024).contains(n)).ok_or_else(|| "expected a whole number in 1..=1024".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn lists_and_defaults() {
        let parsed = Args::try_parse_from(["bench", "run", "--model", "x", "--prompt", "8,16", "--depth", "0,32"]);
        let Ok(Args { command: Command::Run(run) }) = parsed else { panic!("{parsed:?}") };
        assert_eq!((run.prompt, run.depth, run.steps, run.batch), (vec![8, 16], vec![0, 32], vec![64], vec![1]));
        assert_eq!((run.quantize, run.repeat), (vec![Quantize::None], 5));
        for wrong in [
            &["run"][..],
            &["run", "--model", "x", "--random-weights", "y"],
            &["run", "--model", "x", "--prompt", "0"],
            &["run", "--model", "x", "--quantize", "q3"],
            &["run", "--model", "x", "--kv-dtype", "q8"],
            &["device", "--threads", "0"],
            &["perplexity", "--pocket"],
        ] {
            assert!(Args::try_parse_from([&["bench"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}
