//! Host memory as a device sees it: aligned, lazily zeroed, shared.
use anyfleet_tensor::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Every buffer and every weight panel starts on a cache line.
pub(crate) const ALIGN: usize = 64;

/// Zeroed memory that starts on a cache line and is touched by nobody until it is used: a large one
/// is fresh pages of the operating system, so a big KV cache costs nothing at start.
pub(crate) struct Allocation {
    base: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: the memory is owned; who may read and write it when is stated at `Buffer`.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `len` zeroed bytes for `what`.
    pub(crate) fn new(len: usize, what: &str) -> Result<Allocation> {
        let failed = || Error::OutOfMemory { device: "cpu".into(), bytes: len, what: what.into() };
        // Alignment is made here and not asked for: above 16 the standard allocator zeroes by
        // writing, which would touch every page.
        let size = len.checked_add(ALIGN).ok_or_else(failed)?;
        let layout = Layout::from_size_align(size, 16).map_err(|_| failed())?;
        // SAFETY: the size is at least `ALIGN`.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        Ok(Allocation { base, layout, len })
    }

    /// The first byte, on a cache line.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        let base = self.base.as_ptr();
        let skip = base.addr().wrapping_neg() % ALIGN;
        // SAFETY: `skip < ALIGN`, and `ALIGN` bytes more than `len` were allocated.
        unsafe { base.add(skip) }
    }

    /// Usable bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Reference-counted bytes with interior mutability.
///
/// Nothing outside this crate can reach the bytes but through
/// [`CpuBackend`](crate::CpuBackend)'s `write`, `read`, `run` and `replay`, and those hold one lock
/// while they do: two of them never overlap. Within a plan, operations run one after the other, and
/// the tasks of one operation write disjoint places that no other task reads.
#[derive(Clone)]
pub struct CpuBuffer(Arc<Allocation>);

impl CpuBuffer {
    pub(crate) fn new(bytes: usize) -> Result<CpuBuffer> {
        Ok(CpuBuffer(Arc::new(Allocation::new(bytes, "a tensor")?)))
    }
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// True when it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// True when both are the same memory.
    pub(crate) fn same(&self, other: &CpuBuffer) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_lazy() {
        for len in [0, 1, 63, 64, 1000] {
            let a = Allocation::new(len, "test").unwrap();
            assert_eq!(a.as_ptr().addr() % ALIGN, 0);
            // SAFETY: `len` bytes belong to the allocation.
            let bytes = unsafe { std::slice::from_raw_parts(a.as_ptr(), len) };
            assert!(bytes.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for len in [usize::MAX, usize::MAX / 2, isize::MAX as usize - 64] {
            assert!(matches!(Allocation::new(len, "test"), Err(Error::OutOfMemory { .. })), "{len}");
        }
    }
}
