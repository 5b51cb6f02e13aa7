//! Model families: `config.json` to [`DecoderSpec`], and the decoder that runs any spec.
#[cfg(feature = "check")]
mod check;
mod decoder;
mod deepseek;
mod family;
mod gemma2;
mod gemma3;
mod latent;
mod llama;
mod load;
mod mistral;
mod mixtral;
mod pack;
#[cfg(feature = "pocket")]
mod pocket;
mod quantization;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod shard;
mod spec;
mod weights;

#[cfg(feature = "check")]
pub use check::check_model;
pub use decoder::{Decoder, GroupTensors, HeadTensors, LayerCache, Scratch, StepTensors};
pub use family::{spec_from_config, supported_architectures};
pub use latent::LatentWeights;
pub use load::{LoadError, LoadOptions};
#[cfg(feature = "pocket")]
pub use pocket::pocket;
pub use rope::{rope_inv_freq, rope_table};
pub use shard::{Place, Shard, ShardError, divide_layers};
pub use spec::*;
pub use weights::{LayerWeights, Model, WeightMap, check_weights, open_model};
