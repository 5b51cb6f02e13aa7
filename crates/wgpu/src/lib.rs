//! anyfleet's wgpu backend: AMD, Intel, NVIDIA and anything else with a Vulkan driver.
//!
//! Arithmetic is f32; weights, keys and values stay narrow in device memory and are widened in registers. Only
//! [`Variant::Packed`] multiplies quantized weights as the integers they are. An op is one or two dispatches of a kernel (`kernels/wgsl/<op>.wgsl`); what a kernel computes for a
//! row does not depend on how many rows there are.
//!
//! What this crate does **not** know: models, requests, and the other backends.
mod adapter;
mod buffer;
mod context;
mod device;
mod disk;
mod encoder;
mod matrices;
mod ops;
mod plan;
mod weight;

pub use adapter::{AdapterDescription, adapters};
pub use buffer::WgpuBuffer;
pub use context::WgpuCounts;
pub use device::{Variant, WgpuBackend, WgpuOptions, WgpuReadback};
pub use encoder::WgpuRecorder;
pub use plan::WgpuPlan;
pub use weight::WgpuWeight;
