//! Host memory as a device sees it: aligned, lazily zeroed, shared.
use anyfleet_tensor::{Error, Result, SharedBytes};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Every buffer and every weight panel starts on a cache line.
pub(crate) const ALIGN: usize = 64;

/// A huge page, where the system has them.
const HUGE: usize = 2 << 20;

/// From this size on, memory starts on a huge page and asks for them: streams of weights need a
/// translation per 4 KiB otherwise.
const LARGE: usize = 2 * HUGE;

/// Memory that starts on a cache line: zeroed and touched by nobody until it is used (a large one is fresh
/// pages of the operating system, so a big KV cache costs nothing at start), or borrowed.
pub(crate) struct Allocation {
    start: NonNull<u8>,
    len: usize,
    source: Source,
}

enum Source {
    /// Allocated here.
    Own { base: NonNull<u8>, layout: Layout },
    /// Kept alive for as long as it is used; never written to.
    Borrowed { _bytes: SharedBytes },
}

// SAFETY: the memory is owned or shared; who may read and write it when is stated at `CpuBuffer`.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `len` zeroed bytes for `what`.
    pub(crate) fn new(len: usize, what: &str) -> Result<Allocation> {
        let failed = || Error::OutOfMemory { device: "cpu".into(), bytes: len, what: what.into() };
        // Alignment is made here and not asked for: above 16 the standard allocator zeroes by
        // writing, which would touch every page.
        let align = if len >= LARGE { HUGE } else { ALIGN };
        let size = len.checked_add(align).ok_or_else(failed)?;
        let layout = Layout::from_size_align(size, 16).map_err(|_| failed())?;
        // SAFETY: the size is at least `align`.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        let skip = base.addr().get().wrapping_neg() % align;
        // SAFETY: `skip < align`, and `align` bytes more than `len` were allocated.
        let start = unsafe { base.add(skip) };
        if len >= LARGE {
            // Not the rest, of which a huge page would take more than was asked for.
            ask_for_huge_pages(start, len / HUGE * HUGE);
        }
        Ok(Allocation { start, len, source: Source::Own { base, layout } })
    }

    /// Bytes that are only read; `None` when they do not start on a cache line.
    pub(crate) fn borrow(bytes: SharedBytes) -> Option<Allocation> {
        let (start, len) = (NonNull::from(&*bytes).cast::<u8>(), bytes.len());
        start.addr().get().is_multiple_of(ALIGN).then_some(Allocation {
            start,
            len,
            source: Source::Borrowed { _bytes: bytes },
        })
    }

    /// The first byte, on a cache line. To be written to only where it was made by [`Allocation::new`].
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Usable bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Source::Own { base, layout } = self.source {
            // SAFETY: allocated in `new` with this layout.
            unsafe { dealloc(base.as_ptr(), layout) }
        }
    }
}

/// A wish: a system without huge pages, or one that keeps them for others, changes nothing.
#[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "other systems choose by themselves"))]
fn ask_for_huge_pages(start: NonNull<u8>, len: usize) {
    // SAFETY: the range lies in one allocation; the advice changes no contents.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE);
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
        for len in [0, 1, 63, 64, 1000, LARGE, 3 * HUGE + 5] {
            let a = Allocation::new(len, "test").unwrap();
            assert_eq!(a.as_ptr().addr() % ALIGN, 0);
            // SAFETY: `len` bytes belong to the allocation.
            let bytes = unsafe { std::slice::from_raw_parts(a.as_ptr(), len) };
            assert!(bytes.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn borrowed_bytes_are_used_where_they_lie() {
        let own = vec![7u8; 256];
        let skip = own.as_ptr().addr().wrapping_neg() % ALIGN;
        let bytes = SharedBytes::new(std::sync::Arc::new(own), skip..skip + 100).unwrap();
        let a = Allocation::borrow(bytes.clone()).unwrap();
        assert_eq!((a.as_ptr().cast_const(), a.len()), (bytes.as_ptr(), 100));
        assert!(Allocation::borrow(bytes.slice(1..65).unwrap()).is_none());
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for len in [usize::MAX, usize::MAX / 2, isize::MAX as usize - 64] {
            assert!(matches!(Allocation::new(len, "test"), Err(Error::OutOfMemory { .. })), "{len}");
        }
    }
}
