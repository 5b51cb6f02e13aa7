//! The runtime decides, in plain data, which tokens of which sequences run in the next step.
//!
//! ```text
//! schedule -> submit(batch) -> wait(ids) -> postprocess -> stream out
//! ```
//! It never sees a tensor, and a device never sees a request: between them go a [`Batch`] and a
//! [`StepOutput`].
mod adjust;
mod assemble;
mod batch;
mod cache;
mod executor;
pub mod null;
mod output;
mod pages;
mod params;
mod postprocess;
mod prefix;
mod request;
mod runtime;
mod scheduler;
mod sequence;
mod stats;

pub use batch::*;
pub use executor::*;
pub use params::*;
pub use request::*;
pub use runtime::*;
pub use stats::*;
