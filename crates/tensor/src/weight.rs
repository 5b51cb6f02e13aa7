//! Weights as they lie in the checkpoint, borrowed from the memory map.
use crate::{DType, Error, Result, WeightFormat};

/// Consecutive output rows of a matrix, contiguous in host memory (little endian, any alignment).
#[derive(Clone, Copy, Debug)]
pub struct HostPart<'a> {
    /// Element type in the file: f32, bf16 or f16.
    pub dtype: DType,
    /// Output rows this part holds.
    pub rows: usize,
    /// `rows * cols` elements, row-major.
    pub bytes: &'a [u8],
}

/// A `rows x cols` matrix (`out_features x in_features`) made of parts stacked along the rows, so
/// that q, k and v, or gate and up, merge without a copy; or a stack of such matrices, one for each of a layer's experts.
#[derive(Clone, Debug)]
pub struct HostWeight<'a> {
    /// Name for messages; merged names are joined by `+`.
    pub name: String,
    /// Input features.
    pub cols: usize,
    /// How many matrices of as many rows lie one after the other; 1 but for experts.
    pub stack: usize,
    /// Parts from the first output row to the last.
    pub parts: Vec<HostPart<'a>>,
    /// The format the device shall keep.
    pub store: WeightFormat,
    /// The first half of the rows of each are gates, the second half what they are multiplied with
    /// ([`LinearActMul`](crate::ops::LinearActMul)): a device may keep a row and its gate side by side.
    pub gated: bool,
}

impl HostWeight<'_> {
    /// Output rows of each matrix.
    pub fn rows(&self) -> usize {
        self.all_rows() / self.stack.max(1)
    }

    /// Output rows over all parts.
    pub fn all_rows(&self) -> usize {
        self.parts.iter().map(|p| p.rows).sum()
    }

    /// Checks that every part has float elements and exactly `rows * cols` of them, and that they share out evenly.
    ///
    /// # Errors
    /// [`Error::Weight`] naming the weight and the part.
    pub fn check(&self) -> Result<()> {
        let bad = |reason: String| Err(Error::Weight { name: self.name.clone(), reason });
        if self.cols == 0 || self.parts.is_empty() {
            return bad("it is empty; the checkpoint is damaged".into());
        }
        if self.stack == 0 || !self.all_rows().is_multiple_of(self.stack) {
            return bad(format!("{} rows are no stack of {} matrices", self.all_rows(), self.stack));
        }
        for (i, part) in self.parts.iter().enumerate() {
            if !part.dtype.is_float() {
                return bad(format!("part {i} has dtype {}; f32, bf16 and f16 are supported", part.dtype));
            }
            let want = part.rows.checked_mul(self.cols).and_then(|n| n.checked_mul(part.dtype.size()));
            if want != Some(part.bytes.len()) {
                return bad(format!(
                    "part {i} has {} bytes, but {} x {} {} were expected; the checkpoint is damaged",
                    part.bytes.len(),
                    part.rows,
                    self.cols,
                    part.dtype
                ));
            }
        }
        Ok(())
    }
}
