//! The contract between anyfleet's model runtime and its hardware backends.
//!
//! A model is executed as about ten fused operations a layer, recorded on an [`Encoder`]. Each
//! operation is a struct ([`ops`]) whose shape rules are checked here, once, for every backend; a
//! backend ([`Backend`]) supplies memory, packed weights and a [`Recorder`] that receives checked
//! operations only.
//!
//! What this crate does **not** know: models, requests, files, and which backends exist.
//!
//! ```
//! use anyfleet_tensor::{Backend, DType, Tensor, null::NullBackend, ops::Norm, Live};
//! # fn main() -> anyfleet_tensor::Result<()> {
//! let device = NullBackend::default();
//! let x = Tensor::new(&device, DType::F32, &[4, 64])?;
//! let out = Tensor::new(&device, DType::F32, &[4, 64])?;
//! let weight = Tensor::new(&device, DType::F32, &[64])?;
//! device.run(|enc| enc.norm(Norm { out: &out, x: &x, weight: &weight, eps: 1e-6, residual: None, live: Live::All }))?;
//! assert_eq!(device.log(), ["norm [4, 64]"]);
//! # Ok(())
//! # }
//! ```
mod backend;
mod communicator;
mod dtype;
mod encoder;
mod error;
pub mod f8;
pub mod halves;
pub mod null;
pub mod ops;
mod packed;
pub mod quant;
pub mod sampling;
mod step;
mod tensor;
mod weight;

pub use backend::{Backend, Caps, DeviceMemory, Gemm, Identity, Operand, Readback, StepSizes};
pub use communicator::Communicator;
pub use dtype::{DType, Element, WeightFormat};
pub use encoder::{Encoder, Recorder};
pub use error::{Error, Result};
pub use packed::{PackedWeight, SharedBytes};
pub use step::{Adjust, Live, SampleMode, SampleParams, SeqMeta, StepHeader, TOP_LOGPROBS};
pub use tensor::Tensor;
pub use weight::{HostPart, HostRow, HostScales, HostWeight};
