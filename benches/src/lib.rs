//! The measuring stick: what this machine can do at best, and how much of it whole models and single ops
//! reach.
//!
//! - [`device`]: ceilings, measured with kernels that do nothing else.
//! - [`run`]: a model through the real runtime; prefill, decode, latency, bytes, memory.
//! - [`perplexity`]: what a quantization costs in quality.
//! - [`divergence`]: answers that differ after a move between two devices.
//! - [`Prepared`]: conformance cases as op benches (`cargo bench -p bench --bench ops`).
//!
//! The binary `bench` is a command line over the first four. Nothing depends on this crate.
pub mod args;
pub mod checkpoint;
pub mod device;
pub mod divergence;
pub mod memory;
pub mod options;
pub mod perplexity;
mod prepared;
pub mod report;
pub mod run;
pub mod stats;

pub use prepared::Prepared;

/// A failure that the user caused or the system; one line.
pub type Failure = String;

/// Result of the crate.
pub type Result<T> = std::result::Result<T, Failure>;
