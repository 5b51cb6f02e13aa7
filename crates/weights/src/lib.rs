//! Hugging Face model directories: `config.json`, `generation_config.json` and safetensors.
//!
//! A checkpoint is a file that strangers made, so everything in it is checked before it is used,
//! and what is wrong is one line that names the file and the remedy. Weights are memory-mapped and
//! lent to a backend as they lie in the file ([`HostWeight`](anyfleet_tensor::HostWeight)). A model
//! that is part of the program ([`Bundle`]) goes through the same checks.
//!
//! What this crate does **not** know: model families (which tensors a model has), devices, and
//! tokenizers.
//!
//! ```no_run
//! use anyfleet_weights::{ModelDir, VectorSpec};
//! # fn main() -> anyfleet_weights::Result<()> {
//! let dir = ModelDir::open("models/tiny")?;
//! let norm = VectorSpec::new(vec![("model.norm.weight".into(), 64)]);
//! println!("{} values", dir.vector(&norm)?.len());
//! # Ok(())
//! # }
//! ```
mod config;
mod dir;
mod error;
mod file;
mod files;
mod generation;
mod header;
mod hub;
mod identity;
pub mod pack;
mod scales;
mod shard;
mod weight;

pub use config::{Config, Section};
pub use dir::{ModelDir, TensorView};
pub use error::{Error, Result, quote};
pub use files::{Bundle, ModelFiles};
pub use generation::GenerationConfig;
pub use hub::{Hub, Progress, resolve};
pub use weight::{MatrixSpec, VectorSpec};
