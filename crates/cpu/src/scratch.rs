//! Memory each worker thread keeps between operations, so that a step allocates nothing once the
//! largest shapes were seen.
use crate::buffer::{ALIGN, Allocation};
use std::cell::RefCell;

thread_local! {
    static SCRATCH: RefCell<Option<Allocation>> = const { RefCell::new(None) };
}

/// Calls `work` with one aligned f32 area per size, with unspecified contents. `work` must not call
/// this again and must not wait for other tasks.
///
/// # Panics
/// When memory is exhausted.
pub(crate) fn with_scratch<const N: usize, R>(sizes: [usize; N], work: impl FnOnce([&mut [f32]; N]) -> R) -> R {
    let padded = sizes.map(|n| n.next_multiple_of(ALIGN / size_of::<f32>()));
    let bytes = padded.iter().sum::<usize>() * size_of::<f32>();
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.as_ref().is_none_or(|memory| memory.len() < bytes) {
            *scratch = None;
            *scratch = Some(Allocation::new(bytes, "scratch of a CPU operation").unwrap_or_else(|e| panic!("{e}")));
        }
        let mut start: *mut f32 = scratch.as_ref().map_or(std::ptr::null_mut(), |m| m.as_ptr().cast());
        work(std::array::from_fn(|i| {
            // SAFETY: the areas follow each other inside the allocation, which this thread alone has
            // borrowed; it was zeroed when it was made, and any bits are an f32.
            unsafe {
                let area = std::slice::from_raw_parts_mut(start, sizes[i]);
                start = start.add(padded[i]);
                area
            }
        }))
    })
}
