//! What the backend asks of whoever runs kernels.
#[cfg(feature = "emulate")]
pub(crate) mod emulated;
pub(crate) mod fake;
mod gpu;
mod pinned;
pub(crate) mod probe;

use anyfleet_tensor::{DeviceMemory, Result};

/// Names a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Description {
    /// The hardware's name.
    pub(crate) name: String,
    /// What drives it, with its version.
    pub(crate) driver: String,
    /// Number among the devices of the machine.
    pub(crate) index: usize,
    /// Compute capability, e.g. 90.
    pub(crate) capability: u32,
    /// Multiprocessors.
    pub(crate) processors: u32,
}

/// A kernel: the module (`kernels/cuda/<module>.cu`) and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kernel {
    pub(crate) module: &'static str,
    pub(crate) name: &'static str,
}

/// A kernel with its geometry and its one argument.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub(crate) shared: u32,
    /// The structure that the kernel takes by value.
    pub(crate) params: Vec<u8>,
}

/// A transfer to the host that may be under way.
pub(crate) trait Transfer: Send {
    fn wait(self: Box<Self>, out: &mut [u8]) -> Result<()>;
}

/// Launches that were resolved, to be run one after the other.
pub(crate) trait Prepared: Send {
    fn run(&self) -> Result<()>;
}

/// Memory, transfers and launches of one device, all in call order.
pub(crate) trait Driver: Send + Sync + 'static {
    fn description(&self) -> &Description;
    fn memory(&self) -> DeviceMemory;
    /// At least 256-byte aligned; an address for 0 bytes, too.
    fn alloc(&self, bytes: usize, what: &str) -> Result<u64>;
    fn free(&self, address: u64, bytes: usize);
    /// `bytes` may change when it returns.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;
    fn read(&self, address: u64, bytes: usize) -> Result<Box<dyn Transfer>>;
    /// Copies on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Resolves launches that will be run often (`replayed`), or once.
    fn prepare(&self, launches: Vec<Launch>, replayed: bool) -> Result<Box<dyn Prepared>>;
    /// Waits for everything that was asked for.
    fn synchronize(&self) -> Result<()>;
}
