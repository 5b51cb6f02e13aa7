//! The runtime decides, in plain data, which tokens of which sequences run in the next step.
//!
//! ```text
//! schedule -> submit(batch) -> wait(ids) -> postprocess -> stream out
//! ```
//! It never sees a tensor, and a device never sees a request: between them go a [`Batch`] and a
//! [`StepOutput`].
mod batch;
mod executor;
mod params;
mod request;
mod runtime;

pub use batch::*;
pub use executor::*;
pub use params::*;
pub use request::*;
pub use runtime::*;
