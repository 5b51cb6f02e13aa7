//! What a model asks of a checkpoint: matrices and vectors, possibly merged from several tensors.
use crate::{Error, ModelDir, Result};
use anyfleet_tensor::{DType, HostPart, HostWeight, WeightFormat};

/// A matrix made of tensors stacked along the output rows, e.g. q, k and v.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Tensor names with their rows (`out_features`), first rows first.
    pub parts: Vec<(String, usize)>,
    /// Columns (`in_features`) of each.
    pub cols: usize,
}

impl MatrixSpec {
    /// Rows over all parts.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Its tensors' names, joined by `+`.
    pub fn name(&self) -> String {
        self.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join("+")
    }

    /// The tensors with their shapes `[rows, cols]`.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, [usize; 2])> {
        self.parts.iter().map(|(name, rows)| (name.as_str(), [*rows, self.cols]))
    }
}

/// A vector made of tensors one after the other, e.g. the biases of q, k and v.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorSpec {
    /// Tensor names with their lengths.
    pub parts: Vec<(String, usize)>,
}

impl VectorSpec {
    /// Elements over all parts.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|(_, len)| len).sum()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl ModelDir {
    /// A matrix, borrowed from the checkpoint, to be kept as `store`.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a part is missing, or has another shape or an unsupported dtype.
    pub fn matrix(&self, spec: &MatrixSpec, store: WeightFormat) -> Result<HostWeight<'_>> {
        let mut parts = Vec::with_capacity(spec.parts.len());
        for (name, [rows, cols]) in spec.tensors() {
            let view = self.tensor_of_shape(name, &[rows, cols])?;
            parts.push(HostPart { dtype: view.dtype, rows, bytes: view.bytes });
        }
        let weight = HostWeight { name: spec.name(), cols: spec.cols, parts, store, gated: false };
        weight.check().map_err(|e| Error::file(&self.files().root(), e.to_string()))?;
        Ok(weight)
    }

    /// A vector, converted to f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] when a part is missing, or has another shape or an unsupported dtype.
    pub fn vector(&self, spec: &VectorSpec) -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(spec.len());
        for (name, len) in &spec.parts {
            let view = self.tensor_of_shape(name, &[*len])?;
            extend_f32(&mut out, view.dtype, view.bytes);
        }
        Ok(out)
    }
}

/// Appends little-endian floats of any alignment as f32.
fn extend_f32(out: &mut Vec<f32>, dtype: DType, bytes: &[u8]) {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        DType::BF16 => out.extend(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32())),
        DType::F16 => out.extend(pairs().map(|b| half::f16::from_le_bytes(b).to_f32())),
        DType::F32 | DType::U32 | DType::U8 | DType::I8 => {
            out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
    }
}
