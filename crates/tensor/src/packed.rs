//! Packed weights kept beyond a program's run: bytes that come back from where they were kept.
use crate::WeightFormat;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Part of some bytes that are kept alive together, e.g. of a file mapped into memory.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The bytes of `owner` in `range`; `None` when it has fewer.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<SharedBytes> {
        (*owner).as_ref().get(range.clone())?;
        Some(SharedBytes { owner, range })
    }

    /// A part of these; `None` when `range` is not inside.
    pub fn slice(&self, range: Range<usize>) -> Option<SharedBytes> {
        self.get(range.clone())?;
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(SharedBytes { owner: self.owner.clone(), range })
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shared bytes", self.range.len())
    }
}

/// What [`Backend::adopt`](crate::Backend::adopt) is told about the bytes of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedWeight {
    /// Name for messages, as in [`HostWeight`](crate::HostWeight).
    pub name: String,
    /// How many matrices lie one after the other, as in [`HostWeight`](crate::HostWeight).
    pub stack: usize,
    /// Output features of each.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The format it was packed in.
    pub store: WeightFormat,
    /// As in [`HostWeight`](crate::HostWeight).
    pub gated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let bytes = SharedBytes::new(Arc::new(vec![1u8, 2, 3, 4]), 1..4).unwrap();
        assert_eq!(*bytes, [2, 3, 4]);
        assert_eq!(*bytes.slice(1..3).unwrap(), [3, 4]);
        assert!(bytes.slice(1..4).is_none());
        assert!(SharedBytes::new(Arc::new(vec![1u8]), 0..2).is_none());
    }
}
