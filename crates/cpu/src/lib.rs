//! The CPU backend of anyfleet: AMX, AVX-512, AVX2, NEON or plain Rust, chosen when it is opened.
//!
//! ```
//! use anyfleet_cpu::{CpuBackend, CpuOptions};
//! use anyfleet_tensor::{Backend, DType, Live, Tensor, ops::Norm};
//! # fn main() -> anyfleet_tensor::Result<()> {
//! let device = CpuBackend::new(CpuOptions::default())?;
//! let x = Tensor::new(&device, DType::F32, &[1, 4])?;
//! let weight = Tensor::new(&device, DType::F32, &[4])?;
//! device.write(&x, bytemuck::cast_slice(&[3.0f32, 3.0, 3.0, 3.0]))?;
//! device.write(&weight, bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0]))?;
//! device.run(|enc| enc.norm(Norm { out: &x, x: &x, weight: &weight, eps: 0.0, residual: None, live: Live::All }))?;
//! # Ok(())
//! # }
//! ```
//!
//! Invariants:
//! - A row's bits depend on that row's inputs alone: not on the other rows, the number of threads, the
//!   page size, or the kernel set.
//! - A plan runs on the caller's thread and a team of workers that sleep when there is nothing to do; operations allocate nothing
//!   once every thread's scratch, and the packed activations, have reached their size.
//! - Padding is never computed: operations read the live counts when they run.
//!
//! What this crate does **not** know: models, requests, files, other backends.
mod buffer;
mod device;
mod encoder;
mod matmul;
mod memory;
mod ops;
mod panels;
mod plan;
mod scratch;
mod simd;
mod team;
mod view;
mod weight;

pub use buffer::CpuBuffer;
pub use device::{CpuBackend, CpuOptions, CpuReadback};
pub use encoder::CpuRecorder;
pub use plan::CpuPlan;
pub use simd::Isa;
pub use weight::CpuWeight;
