//! How a model is loaded: the flags that every command with a model has, and their way to the facade.
use crate::Result;
use anyfleet::{DTypeSpec, DeviceSpec, EngineBuilder};
use std::str::FromStr;

pub use anyfleet::QuantizeSpec as Quantize;

/// Whether products take int8 operands, so that int8 rates bound them.
pub fn is_integer(quantize: Quantize) -> bool {
    quantize != Quantize::None
}

/// Type of keys and values in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvDType {
    /// That of the weights.
    #[default]
    Auto,
}

impl KvDType {
    /// The builder with this cache: the one place where it reaches the facade.
    fn apply(self, builder: EngineBuilder) -> EngineBuilder {
        match self {
            KvDType::Auto => builder,
        }
    }
}

impl FromStr for KvDType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(KvDType::Auto),
            _ => Err("use auto, the only one this version has".into()),
        }
    }
}

/// Where a model runs and in which types.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ModelOptions {
    /// Where the model runs
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Type of weights and KV cache: auto (the checkpoint's), bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub dtype: DTypeSpec,
    /// Type of keys and values: auto (that of the weights)
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_dtype: KvDType,
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", value_parser = crate::args::threads)]
    pub threads: Option<usize>,
}

impl ModelOptions {
    /// The builder with these choices.
    pub fn apply(&self, builder: EngineBuilder, quantize: Quantize) -> EngineBuilder {
        let builder = builder.device(self.device.clone()).dtype(self.dtype);
        let builder = match self.threads {
            Some(threads) => builder.threads(threads),
            None => builder,
        };
        self.kv_dtype.apply(builder.quantize(quantize))
    }

    /// Threads the CPU backend will take.
    pub fn thread_count(&self) -> usize {
        threads_or_all(self.threads)
    }
}

/// As many threads as asked for, or as the process may use processors.
pub fn threads_or_all(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}
