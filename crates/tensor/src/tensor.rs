//! A typed, strided view of a device buffer.
use crate::{Backend, DType, Error, Result};

/// Highest rank a tensor may have.
const MAX_RANK: usize = 4;

/// A view of a backend buffer: offset, shape, element type and the stride of the outermost
/// dimension. Everything inside one outermost row is contiguous. Cloning shares the buffer.
pub struct Tensor<B: Backend> {
    buffer: B::Buffer,
    offset: usize,
    dims: [usize; MAX_RANK],
    rank: usize,
    row_stride: usize,
    dtype: DType,
}

impl<B: Backend> Clone for Tensor<B> {
    fn clone(&self) -> Self {
        Tensor { buffer: self.buffer.clone(), ..*self }
    }
}

impl<B: Backend> std::fmt::Debug for Tensor<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape())
    }
}

impl<B: Backend> Tensor<B> {
    /// Allocates a contiguous tensor of `shape` (1 to 4 dimensions) on `device`. The contents are
    /// unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the device has no room, [`Error::Shape`] when the byte size
    /// overflows.
    pub fn new(device: &B, dtype: DType, shape: &[usize]) -> Result<Self> {
        let bytes = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d)).ok_or_else(|| Error::Shape {
            op: "alloc",
            what: "size overflows",
            details: format!("{shape:?} {dtype}"),
            remedy: "use smaller dimensions",
        })?;
        Ok(Self::from_buffer(device.alloc(bytes)?, dtype, shape))
    }

    /// A contiguous tensor over the start of `buffer`.
    ///
    /// # Panics
    /// When `shape` has no or more than four dimensions: a bug of the caller.
    pub fn from_buffer(buffer: B::Buffer, dtype: DType, shape: &[usize]) -> Self {
        assert!((1..=MAX_RANK).contains(&shape.len()), "tensor rank {} is not in 1..=4", shape.len());
        let mut dims = [1; MAX_RANK];
        dims[..shape.len()].copy_from_slice(shape);
        let row_stride = shape[1..].iter().product();
        Tensor { buffer, offset: 0, dims, rank: shape.len(), row_stride, dtype }
    }

    /// A contiguous tensor that starts `offset` bytes into `buffer`; several small tensors may
    /// share one buffer so that one transfer moves them all.
    ///
    /// # Panics
    /// As [`Tensor::from_buffer`].
    pub fn from_buffer_at(buffer: B::Buffer, offset: usize, dtype: DType, shape: &[usize]) -> Self {
        Tensor { offset, ..Self::from_buffer(buffer, dtype, shape) }
    }

    /// The buffer behind the view.
    pub fn buffer(&self) -> &B::Buffer {
        &self.buffer
    }
    /// Byte offset of the first element in the buffer.
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }
    /// Size of dimension `i`.
    pub fn dim(&self, i: usize) -> usize {
        self.dims[i]
    }
    /// Outermost dimension.
    pub fn rows(&self) -> usize {
        self.dims[0]
    }
    /// Elements of one outermost row.
    pub fn cols(&self) -> usize {
        self.dims[1..self.rank].iter().product()
    }
    /// Distance between outermost rows, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Number of elements in the view.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }
    /// True when the view has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of the elements in the view, gaps between strided rows not counted.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
    /// True when rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.cols() || self.rows() <= 1
    }

    /// Rows `start..start + len`.
    ///
    /// # Panics
    /// When the range leaves the tensor: a bug of the caller.
    pub fn narrow(&self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows(), "narrow {start}..{} of {} rows", start + len, self.rows());
        let mut view = self.clone();
        view.offset += start * self.row_stride * self.dtype.size();
        view.dims[0] = len;
        view
    }

    /// Columns `start..start + len` of a two-dimensional tensor, as a strided view.
    ///
    /// # Panics
    /// When the tensor is not two-dimensional or the range leaves it: a bug of the caller.
    pub fn columns(&self, start: usize, len: usize) -> Self {
        assert!(
            self.rank == 2 && start + len <= self.dims[1],
            "columns {start}..{} of {:?}",
            start + len,
            self.shape()
        );
        let mut view = self.clone();
        view.offset += start * self.dtype.size();
        view.dims[1] = len;
        view
    }
}
