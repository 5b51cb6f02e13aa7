//! Turns the runtime's batches into operations on a backend.
//!
//! A [`ModelExecutor`] owns what a step needs in device memory: the decoder's weights, step inputs
//! at fixed addresses, an activation arena and the KV cache. All of it is planned by [`plan`]
//! before a weight is read; once the executor stands, a step allocates nothing on the device.
//!
//! A [`SplitExecutor`] does the same with parts of a model on several devices, of one backend or of different ones. Both
//! drive a [`Stage`], a part of a model on a device; a [`ModelExecutor`]'s is all of the model.
//!
//! What it does not know: requests, text, and which backend it runs on.
mod cache;
mod device;
mod exchange;
mod executor;
mod group;
mod head_inputs;
mod inputs;
mod output;
mod plan;
mod rank;
mod residual;
mod sizing;
mod split;
mod stage;

pub use cache::cache_groups;
pub use device::AnyDevice;
pub use executor::ModelExecutor;
pub use plan::{ExecutorOptions, MemoryPlan, PlanError, plan, plan_weights};
pub use split::{Part, SplitExecutor, plan_parts};
pub use stage::Stage;
