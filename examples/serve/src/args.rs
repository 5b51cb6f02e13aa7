//! The command line.
use crate::progress::LoadBar;
use crate::size::parse_size;
use crate::{Failure, banner};
use anyfleet::{DTypeSpec, DeviceSpec, Engine, EngineBuilder, Gemm, KvDType, PackCache, QuantizeSpec, SelfCheck};
use anyfleet_openai::ServerState;
use clap::Parser;
use std::time::Duration;

const EXAMPLES: &str = "Examples:
  serve --model ./Qwen3-0.6B
  serve --model Qwen/Qwen3-0.6B --host 0.0.0.0 --api-key $(openssl rand -hex 16)
  serve --model ./Llama-3.2-1B --dtype bf16 --max-model-len 8192 --kv-cache-memory 2GiB

The API is OpenAI's: point a client's base URL at http://HOST:PORT/v1. GET /health says when
requests are answered, GET /metrics has Prometheus metrics. SIGTERM finishes running streams.";

/// Serves a model over an OpenAI-compatible HTTP API.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Args {
    /// Hugging Face model directory, or a hub name such as Qwen/Qwen3-0.6B
    #[cfg_attr(feature = "pocket", doc = " [default: the model pocket, which is part of this program]")]
    #[arg(long, value_name = "DIR|ORG/NAME", help_heading = "Model")]
    pub model: Option<String>,
    /// Name of the model in the API; several, separated by commas, are aliases [default: its directory's or hub name]
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = "Model")]
    pub served_model_name: Vec<String>,
    /// Type of weights; auto is the checkpoint's own
    #[arg(long, value_name = "auto|bf16|f16|f32", default_value = "auto", help_heading = "Model")]
    pub dtype: String,
    /// Keep weights as integers of 8 or 4 bits, or floats of 8 (f8); none keeps f8 of checkpoints. The KV cache keeps its type
    #[arg(long, value_name = "none|q8|q4|f8", default_value = "none", help_heading = "Model")]
    pub quantize: String,
    /// Keys and values in the cache: auto (as --dtype), int8 or fp8 (half of bf16's memory), bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "auto", help_heading = "Model")]
    pub kv_dtype: String,
    /// Tokens per sequence, prompt and output [default: the model's limit, or what the KV cache holds]
    #[arg(long, value_name = "TOKENS", value_parser = positive, help_heading = "Model")]
    pub max_model_len: Option<usize>,

    /// Where the model runs: auto, or a name from --list-devices; a,b divides layers among devices, a+b shares each layer
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Device")]
    pub device: String,
    /// Products of many rows: invariant, or fast on a GPU's matrix units (on NVIDIA's by cuBLASLt), where answers may depend on
    /// what else runs
    #[arg(long, value_name = "invariant|fast", default_value = "invariant", help_heading = "Device")]
    pub gemm: String,
    /// List the devices of this machine and exit
    #[arg(long, help_heading = "Device")]
    pub list_devices: bool,
    /// Hold the device to the reference: every operation and a small model; prints a table and a certificate, and exits
    #[arg(long, help_heading = "Device")]
    pub check: bool,
    /// Folder where verdicts on GPU drivers are kept, which are checked before their first use; off checks nothing
    #[arg(long, value_name = "DIR|default|off", default_value = "default", help_heading = "Device")]
    pub self_check: SelfCheck,
    /// Memory to plan with on a device that does not say how much it has, e.g. 24GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Device")]
    pub device_memory: Option<u64>,
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Device")]
    pub threads: Option<usize>,
    /// Memory for keys and values, e.g. 64MiB or 2GiB [default: what --max-num-seqs needs, up to 4GiB, if it fits]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Device")]
    pub kv_cache_memory: Option<u64>,
    /// Folder where packed weights are kept for the next start; off keeps none
    #[arg(long, value_name = "DIR|default|off", default_value = "default", help_heading = "Device")]
    pub pack_cache: PackCache,

    /// Address to listen on; 0.0.0.0 is all of them
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", help_heading = "Server")]
    pub host: String,
    /// Port to listen on; 0 takes a free one, which the banner names
    #[arg(long, value_name = "PORT", default_value_t = 8000, help_heading = "Server")]
    pub port: u16,
    /// Key that clients must send as a bearer token
    #[arg(long, value_name = "KEY", env = "ANYFLEET_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub api_key: Option<String>,

    /// Key of the fleet: whoever sends it as the header anyfleet-fleet-key can follow, suspend and resume answers and
    /// drain the server; without one nobody can
    #[arg(long, value_name = "KEY", env = "ANYFLEET_FLEET_KEY", hide_env_values = true, help_heading = "Server")]
    pub fleet_key: Option<String>,
    /// Time that running streams get to finish after SIGTERM or SIGINT; a second signal exits at once
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Server")]
    pub shutdown_timeout: u64,

    /// Sequences that run at once [default: 64]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Scheduling")]
    pub max_num_seqs: Option<usize>,
    /// Tokens per step, of prompts and running sequences together [default: 512]
    #[arg(long, value_name = "TOKENS", value_parser = positive, help_heading = "Scheduling")]
    pub max_batch_tokens: Option<usize>,
    /// Requests that may wait; one more gets a 429 [default: 1024]
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Scheduling")]
    pub max_queue: Option<usize>,
    /// Tokens per page of the KV cache [default: the device's preference]
    #[arg(long, value_name = "TOKENS", value_parser = positive, help_heading = "Scheduling")]
    pub page_size: Option<usize>,
    /// Do not share the KV pages of prompts that begin alike
    #[arg(long, help_heading = "Scheduling")]
    pub no_prefix_cache: bool,
}

/// The command line, or why it makes no sense; `--help` and `--version` print and exit.
pub(crate) fn parse() -> Result<Args, Failure> {
    Args::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // What is wrong, then perhaps tips; the usage that follows is in --help.
        let text = error.to_string();
        let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
        let message = lines.join("; ");
        format!("{} (see --help)", message.strip_prefix("error: ").unwrap_or(&message))
    })
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

impl Args {
    /// What loads the model as asked: prints its memory plan, shows progress, returns the engine.
    pub fn loader(&self) -> Result<impl FnOnce() -> anyfleet::Result<Engine> + Send + 'static, Failure> {
        let builder = self.model.as_ref().map_or_else(bundled, |model| Ok(Engine::builder(model)))?;
        if self.served_model_name.iter().any(String::is_empty) {
            return Err("--served-model-name is empty; give a name or leave it out".into());
        }
        if self.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            return Err("the API key is empty; give one or leave --api-key and ANYFLEET_API_KEY out".into());
        }
        if self.fleet_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            return Err("the fleet's key is empty; give one or leave --fleet-key and ANYFLEET_FLEET_KEY out".into());
        }
        let bar = std::sync::Arc::new(LoadBar::default());
        let progress = bar.clone();
        let mut builder = builder
            .device(self.device.parse::<DeviceSpec>()?)
            .dtype(self.dtype.parse::<DTypeSpec>()?)
            .quantize(self.quantize.parse::<QuantizeSpec>()?)
            .kv_dtype(self.kv_dtype.parse::<KvDType>()?)
            .gemm(self.gemm.parse::<Gemm>()?)
            .pack_cache(self.pack_cache.clone())
            .self_check(self.self_check.clone())
            .prefix_cache(!self.no_prefix_cache)
            .on_progress(move |p| progress.update(p));
        builder = option(builder, self.max_model_len, |b, n| b.max_model_len(n));
        builder = option(builder, self.kv_cache_memory, |b, n| b.kv_cache_bytes(n));
        builder = option(builder, self.device_memory, |b, n| b.device_memory(n));
        builder = option(builder, self.threads, |b, n| b.threads(n));
        builder = option(builder, self.max_num_seqs, |b, n| b.max_num_seqs(n));
        builder = option(builder, self.max_batch_tokens, |b, n| b.max_batch_tokens(n));
        builder = option(builder, self.max_queue, |b, n| b.max_queue(n));
        builder = option(builder, self.page_size, |b, n| b.page_size(n));
        Ok(move || {
            let plan = builder.plan();
            let engine = plan.and_then(|plan| {
                // A closed standard output is no reason not to serve.
                let _ = banner::print(&banner::plan(&plan));
                builder.build()
            });
            bar.finish();
            engine
        })
    }

    /// The server's state, before there is an engine.
    pub fn state(&self) -> ServerState {
        let state =
            self.served_model_name.iter().fold(ServerState::builder(), |state, name| state.served_model_name(name));
        let state = option(state, self.api_key.as_deref(), |state, key| state.api_key(key.trim()));
        option(state, self.fleet_key.as_deref(), |state, key| state.fleet_key(key.trim())).build()
    }

    pub fn shutdown_timeout(&self) -> Duration {
        // As far as a clock can count.
        Duration::from_secs(self.shutdown_timeout.min(u64::from(u32::MAX)))
    }

    /// Threads for connections.
    pub fn io_threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from).min(4)
    }
}

/// What is served where no model is named.
#[cfg(feature = "pocket")]
fn bundled() -> Result<EngineBuilder, Failure> {
    Ok(Engine::bundled())
}

#[cfg(not(feature = "pocket"))]
fn bundled() -> Result<EngineBuilder, Failure> {
    Err("no model: give one with --model DIR or --model ORG/NAME; this program was built without a bundled one \
         (cargo feature pocket, see --help)"
        .into())
}

fn option<B, T>(builder: B, value: Option<T>, set: impl FnOnce(B, T) -> B) -> B {
    match value {
        Some(value) => set(builder, value),
        None => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::Args;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
