//! Turns the runtime's batches into operations on a backend.
//!
//! A [`ModelExecutor`] owns what a step needs in device memory: the decoder's weights, step inputs
//! at fixed addresses, an activation arena and the KV cache. All of it is planned by [`plan`]
//! before a weight is read; once the executor stands, a step allocates nothing on the device.
//!
//! What it does not know: requests, text, and which backend it runs on.
mod cache;
mod executor;
mod inputs;
mod output;
mod plan;

pub use cache::cache_groups;
pub use executor::ModelExecutor;
pub use plan::{ExecutorOptions, MemoryPlan, PlanError, plan};
