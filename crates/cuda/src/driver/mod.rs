//! What the backend asks of whoever runs kernels.
mod cublaslt;
#[cfg(feature = "emulate")]
pub(crate) mod emulated;
pub(crate) mod fake;
mod gpu;
mod nccl;
mod pinned;
pub(crate) mod probe;

use crate::warpgroups::Warpgroups;
use anyfleet_tensor::{DeviceMemory, Result};
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

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
    /// Name and version of what compiles its kernels, where that is known.
    pub(crate) compiler: Option<String>,
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

/// A product that the device's library of matrix products computes: `out[r, f]` is the sum of `x[r, k] * weight[f, k]` over
/// k, in f32 and in an order that is the library's. Rows lie one behind the other, at addresses that are 256-byte aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Matmul {
    /// Where f32 goes, `[rows, features]`.
    pub(crate) out: u64,
    /// `[rows, width]`.
    pub(crate) x: u64,
    /// `[features, width]`.
    pub(crate) weight: u64,
    /// [`WORKSPACE`] bytes that the library may write to.
    pub(crate) workspace: u64,
    pub(crate) rows: u32,
    pub(crate) features: u32,
    pub(crate) width: u32,
    /// 1 where `x` and `weight` are f16, 0 where they are bf16.
    pub(crate) f16: u32,
}

/// A matrix of numbers of sixteen bits in a device's memory, whose tiles kernels copy to shared memory in lines of
/// [`Tiles::LINE`] bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    /// A multiple of 16.
    pub(crate) address: u64,
    pub(crate) rows: usize,
    /// Bytes of a row, a multiple of 16; rows lie one behind the other.
    pub(crate) row_bytes: usize,
    /// Rows of a tile, at most 256.
    pub(crate) lines: usize,
}

impl Tiles {
    /// Bytes of a tile's row.
    pub(crate) const LINE: usize = 128;
}

/// What a kernel is told of [`Tiles`], in a form that is the driver's: `TileMap` of `kernels/cuda/warpgroup_machine.cuh`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct TileMap(pub(crate) [u64; 16]);

/// What a product of the library may need beside its operands: NVIDIA's advice for Hopper and newer, the most of all.
pub(crate) const WORKSPACE: usize = 32 << 20;

/// One thing that a device does.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Launch(Launch),
    Matmul(Matmul),
}

/// A transfer to the host that may be under way.
pub(crate) trait Transfer: Send {
    fn wait(self: Box<Self>, out: &mut [u8]) -> Result<()>;
}

/// Work that was resolved, to be done one after the other.
pub(crate) trait Prepared: Send {
    fn run(&self) -> Result<()>;
}

/// Devices of one process that can bring each other what they have.
pub(crate) trait Group: Send + Sync {
    /// Copies `count` floats at `from` of every rank to `to` of this one, rank after rank; each rank asks for the same. What
    /// `stream` is, the driver knows.
    ///
    /// # Safety
    /// There must be `count` floats at `from`, and as many times the number of ranks at `to`, until the stream is through.
    unsafe fn all_gather(&self, rank: usize, stream: u64, from: u64, to: u64, count: usize) -> Result<()>;
    /// Finds the ways between the devices, where that is done by gathers: of those that `ask` asks for, of all ranks, none
    /// begins before all are asked for.
    ///
    /// # Errors
    /// There is no way, or `ask` failed.
    fn connect(&self, _ask: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        Ok(())
    }
    /// Ends what is under way, on whichever device it waits, and the group.
    fn abort(&self);
}

/// Memory, transfers and launches of one device, all in call order.
pub(crate) trait Driver: Send + Sync + 'static {
    fn description(&self) -> &Description;
    fn memory(&self) -> DeviceMemory;
    /// Name and version of the library that computes a [`Matmul`]; nothing where there is none, and none may be asked for.
    fn library(&self) -> Option<&str>;
    /// When products and attention of many rows are of warpgroups.
    fn warpgroups(&self) -> Warpgroups;
    fn tile_map(&self, tiles: &Tiles) -> Result<TileMap>;
    /// At least 256-byte aligned; an address for 0 bytes, too.
    fn alloc(&self, bytes: usize, what: &str) -> Result<u64>;
    fn free(&self, address: u64, bytes: usize);
    /// `bytes` may change when it returns.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;
    fn read(&self, address: u64, bytes: usize) -> Result<Box<dyn Transfer>>;
    /// Copies on the device.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Resolves work that will be done often (`replayed`), or once.
    fn prepare(&self, work: Vec<Work>, replayed: bool) -> Result<Box<dyn Prepared>>;
    /// Waits for everything that was asked for.
    fn synchronize(&self) -> Result<()>;
    /// Name and version of the library that groups are made with, or a line that says why there is none.
    fn gathers(&self) -> Result<&str, String>;
    /// A group of the devices of these numbers, in this order, which are of the same kind.
    fn group(&self, devices: &[usize]) -> Result<Arc<dyn Group>, String>;
    /// Asks a group for [`Group::all_gather`] as its rank `rank`, in call order with the rest.
    ///
    /// # Safety
    /// As there.
    unsafe fn all_gather(&self, group: &dyn Group, rank: usize, from: u64, to: u64, count: usize) -> Result<()>;
}
