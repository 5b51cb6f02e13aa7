//! Errors of the contract: what a caller cannot foresee. Each names the operation, the shapes or
//! sizes involved, and what to do.
use crate::DType;

/// Result of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a device or of an operation's arguments.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Operand shapes do not fit together.
    #[error("{op}: {what}: {details}; {remedy}")]
    Shape {
        /// The operation, by its one name.
        op: &'static str,
        /// Which rule was broken.
        what: &'static str,
        /// The shapes seen.
        details: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// An element type this operation or backend does not take.
    #[error("{op}: {operand} has dtype {dtype}, which {device} does not support here; {remedy}")]
    DType {
        /// The operation, by its one name.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// Its element type.
        dtype: DType,
        /// The backend, or "this op" where no backend takes it.
        device: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Device memory ran out.
    #[error("{device}: out of memory allocating {bytes} bytes for {what}; lower --kv-cache-memory or --max-model-len")]
    OutOfMemory {
        /// Device name.
        device: String,
        /// Bytes asked for.
        bytes: usize,
        /// What they were for.
        what: String,
    },
    /// A weight that cannot be loaded as it stands.
    #[error("weight {name}: {reason}")]
    Weight {
        /// Name in the checkpoint.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The device or its driver failed.
    #[error("{device}: {reason}")]
    Device {
        /// Device name, driver included where there is one.
        device: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A transfer whose host side has the wrong size.
    #[error("{op}: host slice of {host} bytes, tensor of {tensor} bytes; pass a slice of the tensor's size")]
    Transfer {
        /// `write` or `read`.
        op: &'static str,
        /// Bytes on the host side.
        host: usize,
        /// Bytes of the tensor.
        tensor: usize,
    },
}
