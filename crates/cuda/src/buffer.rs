//! Device memory.
use crate::driver::Driver;
use std::sync::Arc;

/// Bytes of a page of device memory.
const PAGE: usize = 2 << 20;
/// Buffers from this size on have pages of their own; smaller ones share them.
const OWN_PAGES: usize = 1 << 20;

/// Bytes that a buffer takes of the device's memory.
pub(crate) fn taken(bytes: usize) -> usize {
    if bytes >= OWN_PAGES { bytes.next_multiple_of(PAGE) } else { bytes }
}

/// Reference-counted device bytes.
#[derive(Clone)]
pub struct CudaBuffer(Arc<Allocation>);

struct Allocation {
    driver: Arc<dyn Driver>,
    address: u64,
    bytes: usize,
}

impl CudaBuffer {
    pub(crate) fn new(driver: &Arc<dyn Driver>, bytes: usize, what: &str) -> anyfleet_tensor::Result<CudaBuffer> {
        let address = driver.alloc(bytes, what)?;
        Ok(CudaBuffer(Arc::new(Allocation { driver: driver.clone(), address, bytes })))
    }

    /// Where it begins on the device.
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.0.bytes
    }

    /// True when none were.
    pub fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.driver.free(self.address, self.bytes);
    }
}
