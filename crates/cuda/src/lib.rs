//! anyfleet's CUDA backend.
//!
//! CUDA's driver is loaded at run time: the crate builds and starts where there is none. Kernels are
//! `kernels/cuda/<op>.cu`; an op is one to three launches of them, and what a kernel computes for a row does not depend on
//! how many rows there are.
//!
//! The backend talks to a [`driver`]: CUDA's, or, for tests on machines without a GPU, one that runs the same kernels on
//! the host (feature `emulate`) and one that only writes down what it was asked for.
//!
//! What this crate does **not** know: models, requests, and the other backends.
mod buffer;
mod candidates;
mod code;
mod communicator;
mod device;
mod driver;
mod encoder;
mod nvrtc;
mod ops;
mod plan;
mod warpgroups;
mod weight;

pub use buffer::CudaBuffer;
pub use device::{CudaBackend, CudaOptions, CudaReadback};
#[cfg(feature = "emulate")]
pub use driver::emulated::library as emulated_kernels;
pub use driver::fake::{Recorded, RecordedLaunch};
pub use driver::probe::{CudaDevice, devices};
pub use encoder::CudaRecorder;
pub use plan::CudaPlan;
pub use weight::CudaWeight;
