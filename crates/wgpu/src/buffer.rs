//! Device memory.
use std::sync::Arc;

/// Reference-counted device bytes.
#[derive(Clone)]
pub struct WgpuBuffer {
    pub(crate) raw: Arc<wgpu::Buffer>,
    len: usize,
}

impl WgpuBuffer {
    pub(crate) fn new(raw: wgpu::Buffer, len: usize) -> WgpuBuffer {
        WgpuBuffer { raw: Arc::new(raw), len }
    }

    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when none were.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
