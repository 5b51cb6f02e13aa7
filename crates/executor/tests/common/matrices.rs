//! What matrices take on the null backend.
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_weights::MatrixSpec;

/// Bytes of a matrix, or a stack of them, as a device keeps it that pads nothing; a router is f32.
pub fn matrix_bytes(matrix: &MatrixSpec, store: WeightFormat) -> u64 {
    let router = matrix.name().ends_with(".gate.weight");
    let store = if router { WeightFormat::Float(DType::F32) } else { store };
    store.bytes(matrix.rows(), matrix.cols) as u64
}
