//! How a model is loaded: the flags that every command with a model has, and their way to the facade.
use anyfleet::{DTypeSpec, DeviceSpec, EngineBuilder, Gemm, KvDType};

pub use anyfleet::QuantizeSpec as Quantize;

/// Whether products take int8 operands, so that int8 rates bound them.
pub fn is_integer(quantize: Quantize) -> bool {
    matches!(quantize, Quantize::Q8 | Quantize::Q4)
}

/// Where a model runs and in which types.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ModelOptions {
    /// Where the model runs
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Type of weights: auto (the checkpoint's), bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub dtype: DTypeSpec,
    /// Type of keys and values: auto (that of the weights), int8, fp8, bf16, f16 or f32
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub kv_dtype: KvDType,
    /// Products of many rows: invariant, or fast on a device with matrix units
    #[arg(long, value_name = "KIND", default_value = "invariant")]
    pub gemm: Gemm,
    /// Threads of the CPU backend [default: all cores]
    #[arg(long, value_name = "N", value_parser = crate::args::threads)]
    pub threads: Option<usize>,
}

impl ModelOptions {
    /// The builder with these choices.
    pub fn apply(&self, builder: EngineBuilder, quantize: Quantize) -> EngineBuilder {
        let builder = builder.device(self.device.clone()).dtype(self.dtype).gemm(self.gemm);
        let builder = match self.threads {
            Some(threads) => builder.threads(threads),
            None => builder,
        };
        builder.quantize(quantize).kv_dtype(self.kv_dtype)
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
