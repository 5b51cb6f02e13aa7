//! A tensor's elements in memory, checked against the buffer once, when an operation is recorded.
use crate::CpuBackend;
use crate::buffer::CpuBuffer;
use anyfleet_tensor::{DType, Error, Result, Tensor};

/// Rows of elements inside a buffer that the view keeps alive. Every element of the view lies in
/// the buffer and is aligned for its type.
#[derive(Clone)]
pub(crate) struct View {
    buffer: CpuBuffer,
    offset: usize,
    rows: usize,
    cols: usize,
    row_stride: usize,
    dtype: DType,
}

impl View {
    /// # Errors
    /// [`Error::Shape`] when the tensor leaves its buffer or is not aligned for its elements.
    pub(crate) fn new(op: &'static str, tensor: &Tensor<CpuBackend>) -> Result<View> {
        let (rows, cols, size) = (tensor.rows(), tensor.cols(), tensor.dtype().size());
        let bad = |what| Error::Shape {
            op,
            what,
            details: format!("{tensor:?} at byte {} of {}", tensor.offset(), tensor.buffer().len()),
            remedy: "this is a mistake in the executor's buffers",
        };
        if rows > 0 && cols > 0 {
            let end = (rows - 1)
                .checked_mul(tensor.row_stride())
                .and_then(|n| n.checked_add(cols)?.checked_mul(size)?.checked_add(tensor.offset()))
                .ok_or_else(|| bad("tensor is too large"))?;
            if end > tensor.buffer().len() {
                return Err(bad("tensor leaves its buffer"));
            }
        }
        if !tensor.offset().is_multiple_of(size) {
            return Err(bad("tensor is not aligned"));
        }
        Ok(View {
            buffer: tensor.buffer().clone(),
            offset: tensor.offset(),
            rows,
            cols,
            row_stride: tensor.row_stride(),
            dtype: tensor.dtype(),
        })
    }

    #[inline]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }
    #[inline]
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }
    #[inline]
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// First element of row `row`, which has [`View::cols`] elements.
    ///
    /// # Panics
    /// When there is no such row, or `T` has another size than the elements: bugs of this crate.
    #[inline]
    pub(crate) fn row<T>(&self, row: usize) -> *mut T {
        assert!(row < self.rows && size_of::<T>() == self.dtype.size(), "row {row} of {} {}", self.rows, self.dtype);
        // SAFETY: `new` checked that the row lies in the buffer.
        unsafe { self.buffer.as_ptr().add(self.offset + row * self.row_stride * self.dtype.size()).cast() }
    }

    /// Bytes from one row to the next.
    pub(crate) fn row_bytes(&self) -> usize {
        self.row_stride * self.dtype.size()
    }

    /// Row `row` for reading.
    ///
    /// # Safety
    /// Nothing writes the row while the slice lives.
    #[inline]
    pub(crate) unsafe fn slice<T: bytemuck::Pod>(&self, row: usize) -> &[T] {
        let start = self.row::<T>(row);
        // SAFETY: the row lies in the buffer, is aligned, and is any bit pattern of a Pod type.
        unsafe { std::slice::from_raw_parts(start, self.cols) }
    }

    /// Row `row` for writing.
    ///
    /// # Safety
    /// Nothing else reads or writes the row while the slice lives.
    #[inline]
    #[expect(clippy::mut_from_ref, reason = "the buffer has interior mutability; see CpuBuffer")]
    pub(crate) unsafe fn slice_mut<T: bytemuck::Pod>(&self, row: usize) -> &mut [T] {
        let start = self.row::<T>(row);
        // SAFETY: as in `slice`, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start, self.cols) }
    }

    /// Element `i` of a tensor of u32, rows taken as one list.
    ///
    /// # Panics
    /// When it is past the end.
    #[inline]
    pub(crate) fn u32_at(&self, i: usize) -> u32 {
        let (row, col) = (i / self.cols.max(1), i % self.cols.max(1));
        assert!(col < self.cols && self.dtype == DType::U32);
        // SAFETY: `row` checks the row, the assertion the column; inputs are not written meanwhile.
        unsafe { *self.row::<u32>(row).add(col) }
    }

    /// Element `i` of an f32 tensor, counted in row-major order.
    ///
    /// # Panics
    /// When it is past the end.
    #[inline]
    pub(crate) fn f32_at(&self, i: usize) -> f32 {
        let (row, col) = (i / self.cols.max(1), i % self.cols.max(1));
        assert!(col < self.cols && self.dtype == DType::F32);
        // SAFETY: as in `u32_at`.
        unsafe { *self.row::<f32>(row).add(col) }
    }

    /// First element of a tensor that is one list.
    ///
    /// # Panics
    /// When it has gaps: shape rules make it one row or one column.
    #[inline]
    pub(crate) fn flat<T>(&self) -> *const T {
        assert!(self.rows <= 1 || self.row_stride == self.cols);
        if self.rows == 0 { std::ptr::dangling() } else { self.row::<T>(0) }
    }

    /// True when both have the same elements in the same order.
    pub(crate) fn same_place(&self, other: &View) -> bool {
        let place = |v: &View| (v.offset, v.rows, v.cols, v.row_stride, v.dtype);
        self.buffer.same(&other.buffer) && place(self) == place(other)
    }

    /// True when some element of `self` may be an element of `other`.
    pub(crate) fn overlaps(&self, other: &View) -> bool {
        if !self.buffer.same(&other.buffer) || self.rows * self.cols == 0 || other.rows * other.cols == 0 {
            return false;
        }
        let span = |v: &View| {
            let size = v.dtype.size();
            (v.offset, v.offset + ((v.rows - 1) * v.row_stride + v.cols) * size)
        };
        let ((a, a_end), (b, b_end)) = (span(self), span(other));
        if a_end <= b || b_end <= a {
            return false;
        }
        let stride = self.row_stride * self.dtype.size();
        if stride == 0 || stride != other.row_stride * other.dtype.size() {
            return true;
        }
        // Columns of one matrix: compare where in a row they lie.
        let (a, b) = (a % stride, b % stride);
        let (a_end, b_end) = (a + self.cols * self.dtype.size(), b + other.cols * other.dtype.size());
        a_end > stride || b_end > stride || (a < b_end && b < a_end)
    }

    /// Bytes of a contiguous view.
    pub(crate) fn bytes(&self) -> *mut u8 {
        // SAFETY: `new` checked the offset, or the view is empty and nothing is read there.
        unsafe { self.buffer.as_ptr().add(self.offset.min(self.buffer.len())) }
    }
}

/// Rows of a view in some order: as they are, or those that a list names.
#[derive(Clone)]
pub(crate) struct Chosen {
    pub(crate) view: View,
    pub(crate) rows: Option<View>,
}

impl Chosen {
    /// Columns.
    #[inline]
    pub(crate) fn cols(&self) -> usize {
        self.view.cols()
    }

    /// First element of the `i`th row.
    ///
    /// # Panics
    /// When there is no such row: a bug, of this crate or of what made the list.
    #[inline]
    pub(crate) fn row<T>(&self, i: usize) -> *mut T {
        self.view.row(self.rows.as_ref().map_or(i, |rows| rows.u32_at(i) as usize))
    }
}

/// Fails when an output shares elements with an input it must not share.
///
/// # Errors
/// [`Error::Shape`].
pub(crate) fn check_apart(op: &'static str, out: &View, input: &View) -> Result<()> {
    if !out.overlaps(input) {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "an output overlaps an input",
        details: format!("[{}, {}] and [{}, {}]", out.rows, out.cols, input.rows, input.cols),
        remedy: "this is a mistake in the executor's buffers",
    })
}
