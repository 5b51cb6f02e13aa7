//! A driver that computes nothing and writes down what it was asked for.
use super::{Description, Driver, Group, Matmul, Prepared, TileMap, Tiles, Transfer, Work};
use crate::CudaOptions;
use crate::warpgroups::Warpgroups;
use anyfleet_tensor::{DeviceMemory, Error, Gemm, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// A launch as a device would have seen it. A product of the library is one of [`RecordedLaunch::PRODUCT`], of which only the
/// structure says anything: addresses of the output, the rows, the weights and the workspace, then numbers of rows, output
/// features and input features, and whether they are f16. Of one of [`RecordedLaunch::GATHER`] it is where a rank's part is and
/// where those of all go, then the elements of a part and the rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedLaunch {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared: u32,
    /// The structure it is given.
    pub params: Vec<u8>,
}

impl RecordedLaunch {
    /// What a product of the library is called.
    pub const PRODUCT: &str = "cublasLtMatmul";

    /// What brings the parts of all ranks to one is called.
    pub const GATHER: &str = "ncclAllGather";

    fn product(product: &Matmul) -> RecordedLaunch {
        let params = bytemuck::bytes_of(product).to_vec();
        RecordedLaunch { kernel: Self::PRODUCT, grid: [1; 3], threads: 1, shared: 0, params }
    }

    /// Word `i` of the structure, of four bytes.
    ///
    /// # Panics
    /// When there is no such word.
    pub fn word(&self, i: usize) -> u32 {
        u32::from_le_bytes(self.params[4 * i..][..4].try_into().expect("four bytes"))
    }

    /// Address `i` of the structure: addresses come first in all of them.
    ///
    /// # Panics
    /// When there is no such address.
    pub fn address(&self, i: usize) -> u64 {
        u64::from_le_bytes(self.params[8 * i..][..8].try_into().expect("eight bytes"))
    }
}

/// What was asked for so far.
#[derive(Clone, Default)]
pub struct Recorded(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    launches: Vec<RecordedLaunch>,
    bytes: u64,
    allocations: u64,
    writes: u64,
    next: u64,
}

impl Recorded {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the launches that were run.
    pub fn take(&self) -> Vec<RecordedLaunch> {
        std::mem::take(&mut self.state().launches)
    }

    /// Bytes of memory that are held.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Allocations so far.
    pub fn allocations(&self) -> u64 {
        self.state().allocations
    }

    /// Transfers to the device so far.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }
}

pub(crate) struct FakeDriver {
    pub(crate) recorded: Recorded,
    description: Description,
    gemm: Gemm,
    warpgroups: Warpgroups,
}

impl FakeDriver {
    pub(crate) fn new(options: &CudaOptions) -> FakeDriver {
        let (name, driver) = ("recording".into(), "none".into());
        let description = Description { name, driver, capability: 90, processors: 132, ..Description::default() };
        let warpgroups = if options.warpgroups == Some(true) { Warpgroups::Filling } else { Warpgroups::Never };
        FakeDriver { recorded: Recorded::default(), description, gemm: options.gemm, warpgroups }
    }
}

/// A group whose ranks bring each other nothing.
struct Alone;

impl Group for Alone {
    unsafe fn all_gather(&self, _rank: usize, _stream: u64, _from: u64, _to: u64, _count: usize) -> Result<()> {
        Ok(())
    }
    fn abort(&self) {}
}

struct Nothing(usize);

impl Transfer for Nothing {
    fn wait(self: Box<Self>, out: &mut [u8]) -> Result<()> {
        if out.len() != self.0 {
            return Err(Error::Transfer { op: "read", host: out.len(), tensor: self.0 });
        }
        out.fill(0);
        Ok(())
    }
}

struct Noted(Recorded, Vec<RecordedLaunch>);

impl Prepared for Noted {
    fn run(&self) -> Result<()> {
        self.0.state().launches.extend(self.1.iter().cloned());
        Ok(())
    }
}

impl Driver for FakeDriver {
    fn description(&self) -> &Description {
        &self.description
    }
    fn memory(&self) -> DeviceMemory {
        DeviceMemory { total: Some(141 << 30), available: Some(140 << 30) }
    }
    fn library(&self) -> Option<&str> {
        (self.gemm == Gemm::Fast).then_some("none")
    }
    fn warpgroups(&self) -> Warpgroups {
        self.warpgroups
    }
    /// The words of `tiles`, in the order of its fields.
    fn tile_map(&self, tiles: &Tiles) -> Result<TileMap> {
        let mut map = TileMap([0; 16]);
        map.0[..4].copy_from_slice(&[tiles.address, tiles.rows as u64, tiles.row_bytes as u64, tiles.lines as u64]);
        Ok(map)
    }
    fn alloc(&self, bytes: usize, _what: &str) -> Result<u64> {
        let mut state = self.recorded.state();
        state.allocations += 1;
        state.bytes += bytes as u64;
        let address = (state.next + 256).next_multiple_of(256);
        state.next = address + bytes as u64;
        Ok(address)
    }
    fn free(&self, _address: u64, bytes: usize) {
        self.recorded.state().bytes -= bytes as u64;
    }
    fn write(&self, _address: u64, _bytes: &[u8]) -> Result<()> {
        self.recorded.state().writes += 1;
        Ok(())
    }
    fn read(&self, _address: u64, bytes: usize) -> Result<Box<dyn Transfer>> {
        Ok(Box::new(Nothing(bytes)))
    }
    fn copy(&self, _from: u64, _to: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn prepare(&self, work: Vec<Work>, _replayed: bool) -> Result<Box<dyn Prepared>> {
        let launches = work.into_iter().map(|work| match work {
            Work::Launch(launch) => RecordedLaunch {
                kernel: launch.kernel.name,
                grid: launch.grid,
                threads: launch.threads,
                shared: launch.shared,
                params: launch.params,
            },
            Work::Matmul(product) => RecordedLaunch::product(&product),
        });
        Ok(Box::new(Noted(self.recorded.clone(), launches.collect())))
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn gathers(&self) -> Result<&str, String> {
        Ok("none")
    }
    fn group(&self, _devices: &[usize]) -> Result<Arc<dyn Group>, String> {
        Ok(Arc::new(Alone))
    }
    unsafe fn all_gather(&self, _group: &dyn Group, rank: usize, from: u64, to: u64, count: usize) -> Result<()> {
        let words = [from, to, count as u64 | (rank as u64) << 32];
        let params = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let launch = RecordedLaunch { kernel: RecordedLaunch::GATHER, grid: [1; 3], threads: 1, shared: 0, params };
        self.recorded.state().launches.push(launch);
        Ok(())
    }
}
