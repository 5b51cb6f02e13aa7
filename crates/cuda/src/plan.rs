//! Recorded launches.
use crate::driver::Prepared;
use crate::{CudaBuffer, CudaWeight};

/// Launches that were resolved, with what they point to.
pub struct CudaPlan {
    pub(crate) prepared: Box<dyn Prepared>,
    pub(crate) _held: Vec<CudaBuffer>,
    pub(crate) _weights: Vec<CudaWeight>,
}
