//! CUDA's driver: memory, transfers and launches on one stream of one device.
use super::cublaslt::{Handle, Product};
use super::nccl::{self, Comms};
use super::{Description, Driver, Group, Kernel, Launch, Prepared, TileMap, Tiles, Transfer, Work, probe};
use crate::warpgroups::{self, Warpgroups};
use crate::{CudaDevice, CudaOptions};
use anyfleet_tensor::{DeviceMemory, Error, Gemm, Result};
use cudarc::driver::{DriverError, result, sys};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pinned::{Pinned, Staging};

/// The primary context of a device, which the process keeps from the first use on: it takes a while to make, and libraries
/// keep something of their own for each, which they would lose with it. One whose device has failed goes with its last stream.
struct Context {
    raw: sys::CUcontext,
    streams: usize,
    failed: bool,
}
// SAFETY: a handle that any thread may use.
unsafe impl Send for Context {}

/// Those of this process.
///
/// CUDA's handles of devices are their numbers.
static CONTEXTS: Mutex<BTreeMap<sys::CUdevice, Context>> = Mutex::new(BTreeMap::new());

/// A device and its one stream.
pub(super) struct Stream {
    pub(super) name: String,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// The context is of no use any more.
    failed: AtomicBool,
    pub(super) raw: sys::CUstream,
    /// Held while launches that belong together are given to the stream.
    order: Mutex<()>,
}

// SAFETY: handles of CUDA may be used from any thread; each call makes the context current first.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks for itself.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn open(device: &CudaDevice) -> Result<Stream> {
        let kept = || lock(&CONTEXTS).contains_key(&(device.index as sys::CUdevice));
        let before = kept();
        match Stream::on_context(device) {
            // It has failed since its last stream, or while nobody looked.
            Err(_) if before && !kept() => Stream::on_context(device),
            outcome => outcome,
        }
    }

    fn on_context(device: &CudaDevice) -> Result<Stream> {
        let name = format!("cuda:{} {} ({})", device.index, device.name, device.driver);
        let failed = |e: DriverError| {
            let reason = format!(
                "the device cannot be opened: {}; see what else uses it (nvidia-smi), or use another --device",
                probe::text(&e)
            );
            Error::Device { device: name.clone(), reason }
        };
        let device = result::device::get(device.index as i32).map_err(failed)?;
        let context = {
            let mut contexts = lock(&CONTEXTS);
            if let Some(context) = contexts.get_mut(&device) {
                context.streams += 1;
                context.raw
            } else {
                // SAFETY: the device exists. What is counted here is counted back when the stream is dropped, or when it
                // could not be made.
                let raw = unsafe { result::primary_ctx::retain(device) }.map_err(failed)?;
                contexts.insert(device, Context { raw, streams: 1, failed: false });
                raw
            }
        };
        let (failed, order) = (AtomicBool::new(false), Mutex::default());
        let mut stream = Stream { name, device, context, failed, raw: ptr::null_mut(), order };
        stream.raw = stream.with(|| result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(stream)
    }

    /// Calls CUDA with the device's context current on this thread.
    pub(super) fn with<T>(&self, call: impl FnOnce() -> std::result::Result<T, DriverError>) -> Result<T> {
        // SAFETY: the context lives as long as the stream.
        unsafe { result::ctx::set_current(self.context) }.and_then(|()| call()).map_err(|e| self.error(&e))
    }

    pub(super) fn error(&self, e: &DriverError) -> Error {
        use sys::CUresult::*;
        let text = probe::text(e);
        let reason = match e.0 {
            CUDA_ERROR_OUT_OF_MEMORY => {
                format!("{text}; lower --kv-cache-memory or --max-model-len, or use another --device")
            }
            CUDA_ERROR_INVALID_IMAGE | CUDA_ERROR_NO_BINARY_FOR_GPU | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
                format!(
                    "its driver does not take this build's kernels: {text}; install a newer one, or use another --device"
                )
            }
            // What is left of the process's context fails from now on, whoever asks.
            CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ASSERT => {
                self.failed.store(true, Relaxed);
                format!("the device failed: {text}; start the program again, or use another --device")
            }
            _ => format!("the device failed: {text}; build the engine again, or use another --device"),
        };
        Error::Device { device: self.name.clone(), reason }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream any more, if it was made. What fails now has failed before.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            if !self.raw.is_null() {
                let _ = result::stream::destroy(self.raw);
            }
        }
        let mut contexts = lock(&CONTEXTS);
        let context = contexts.get_mut(&self.device).expect("a context has an entry as long as it has a stream");
        context.streams -= 1;
        context.failed |= self.failed.load(Relaxed);
        if context.failed && context.streams == 0 {
            contexts.remove(&self.device);
            // SAFETY: it was retained once, and nobody has it any more.
            let _ = unsafe { result::primary_ctx::release(self.device) };
        }
    }
}

/// See the file's text.
pub(crate) struct GpuDriver {
    description: Description,
    stream: Arc<Stream>,
    /// Its memory is the system's.
    integrated: bool,
    /// Where compiled kernels are kept.
    folder: Option<PathBuf>,
    staging: Mutex<Staging>,
    /// Host memory that reads went through, kept for the next.
    readbacks: Arc<Mutex<Vec<Pinned>>>,
    loaded: Mutex<Loaded>,
    /// What computes products where they need not be invariant.
    library: Option<Arc<Handle>>,
    warpgroups: Warpgroups,
}

#[derive(Default)]
struct Loaded {
    /// Code of modules that were compiled and could not be kept.
    code: HashMap<&'static str, Vec<u8>>,
    modules: HashMap<&'static str, Module>,
    functions: HashMap<Kernel, Function>,
}

struct Module(sys::CUmodule);
// SAFETY: a handle that any thread may use.
unsafe impl Send for Module {}

/// A kernel on the device.
#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    /// Shared memory that it may be launched with.
    shared: u32,
}
// SAFETY: a handle that any thread may use.
unsafe impl Send for Function {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GpuDriver {
    pub(super) fn new(device: &CudaDevice, options: &CudaOptions) -> Result<GpuDriver> {
        let description = Description {
            name: device.name.clone(),
            driver: device.driver.clone(),
            index: device.index,
            capability: device.capability,
            processors: device.processors,
            compiler: crate::code::compiler(device.capability),
        };
        let stream = Arc::new(Stream::open(device)?);
        let failed = |reason| Error::Device { device: stream.name.clone(), reason };
        let warpgroups = warpgroups::choose(options.warpgroups, &description).map_err(failed)?;
        let library = match options.gemm {
            Gemm::Invariant => None,
            Gemm::Fast => Some(Handle::open(&stream).map(Arc::new).map_err(|reason| Error::Device {
                device: stream.name.clone(),
                reason: format!("there is no fast gemm: {reason}"),
            })?),
        };
        let staging = Mutex::new(Staging::new(&stream)?);
        let folder = options.compiled.clone();
        let code = folder.as_deref().map(|folder| crate::code::prepare(device.capability, folder));
        let code = code.transpose().map_err(|reason| Error::Device { device: stream.name.clone(), reason })?;
        let loaded = Mutex::new(Loaded { code: code.unwrap_or_default(), ..Loaded::default() });
        let (readbacks, integrated) = (Arc::default(), device.integrated);
        Ok(GpuDriver { description, stream, integrated, folder, staging, readbacks, loaded, library, warpgroups })
    }

    /// A kernel that may be launched with so much shared memory.
    fn function(&self, kernel: Kernel, shared: u32) -> Result<Function> {
        let mut loaded = lock(&self.loaded);
        let mut function = match loaded.functions.get(&kernel) {
            Some(&function) => function,
            None => self.resolve(&mut loaded, kernel)?,
        };
        // It is never lowered: a plan may need what it was.
        if shared > function.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let (raw, bytes) = (function.raw, shared as i32);
            // SAFETY: the function is loaded.
            self.stream.with(|| unsafe { result::function::set_function_attribute(raw, attribute, bytes) })?;
            function.shared = shared;
        }
        loaded.functions.insert(kernel, function);
        Ok(function)
    }

    fn resolve(&self, loaded: &mut Loaded, kernel: Kernel) -> Result<Function> {
        let module = match loaded.modules.get(kernel.module) {
            Some(module) => module.0,
            None => {
                let capability = self.description.capability;
                let compiled = loaded.code.remove(kernel.module).map(Ok);
                let code =
                    compiled.unwrap_or_else(|| crate::code::load(kernel.module, capability, self.folder.as_deref()));
                let code = code.map_err(|reason| Error::Device { device: self.stream.name.clone(), reason })?;
                // SAFETY: the code is a cubin, or PTX with a zero at its end, as `code::load` gives it.
                let module = self.stream.with(|| unsafe { result::module::load_data(code.as_ptr().cast()) })?;
                loaded.modules.insert(kernel.module, Module(module));
                module
            }
        };
        let name = CString::new(format!("anyfleet_{}", kernel.name)).expect("a kernel's name");
        // SAFETY: the module was loaded and stays.
        let raw = self.stream.with(|| unsafe { result::module::get_function(module, name) })?;
        Ok(Function { raw, shared: 0 })
    }
}

impl Drop for GpuDriver {
    fn drop(&mut self) {
        // Whoever launched held its buffers, and they held the driver: all is launched, not all is done.
        let _ = self.synchronize();
        let modules = std::mem::take(&mut lock(&self.loaded).modules);
        for module in modules.into_values() {
            // SAFETY: nothing of the module runs or will.
            let _ = self.stream.with(|| unsafe { result::module::unload(module.0) });
        }
    }
}

impl Driver for GpuDriver {
    fn description(&self) -> &Description {
        &self.description
    }

    fn memory(&self) -> DeviceMemory {
        match self.stream.with(result::mem_get_info) {
            Ok((free, total)) => {
                // What the system keeps of files there is not free for CUDA, though it goes for who asks.
                let system = if self.integrated { probe::system_memory() } else { None };
                let available = system.map_or(free as u64, |system| system.min(total as u64));
                DeviceMemory { total: Some(total as u64), available: Some(available) }
            }
            Err(_) => DeviceMemory::default(),
        }
    }

    fn library(&self) -> Option<&str> {
        self.library.as_ref().map(|library| library.name())
    }

    fn warpgroups(&self) -> Warpgroups {
        self.warpgroups
    }

    fn tile_map(&self, tiles: &Tiles) -> Result<TileMap> {
        const NUMBER: usize = 2;
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let shape = [(tiles.row_bytes / NUMBER) as u64, tiles.rows as u64];
        let (strides, tile, steps) =
            ([tiles.row_bytes as u64], [(Tiles::LINE / NUMBER) as u32, tiles.lines as u32], [1; 2]);
        // SAFETY: the arrays have two elements, and of strides one, as two dimensions ask; nothing is read at the address.
        let encoded = self.stream.with(|| unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT16,
                2,
                tiles.address as *mut c_void,
                shape.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
        });
        encoded.map(|()| TileMap(map.opaque))
    }

    fn alloc(&self, bytes: usize, what: &str) -> Result<u64> {
        let out_of_memory = || Error::OutOfMemory { device: self.stream.name.clone(), bytes, what: what.to_owned() };
        let mut failure = None;
        // SAFETY: the size is not 0; contents are unspecified.
        let address = self.stream.with(|| match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                failure = Some(out_of_memory());
                Ok(0)
            }
            outcome => outcome,
        })?;
        failure.map_or(Ok(address), Err)
    }

    fn free(&self, address: u64, _bytes: usize) {
        // What is under way may still use it: freeing need not wait for that.
        let _ = self.synchronize();
        // SAFETY: it was allocated here, and nothing uses it any more. After a failure of the device there is nothing to
        // free.
        let _ = self.stream.with(|| unsafe { result::free_sync(address) });
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        lock(&self.staging).write(address, bytes)
    }

    fn read(&self, address: u64, bytes: usize) -> Result<Box<dyn Transfer>> {
        let kept = {
            let mut all = lock(&self.readbacks);
            let fitting = all.iter().enumerate().filter(|(_, pinned)| pinned.len() >= bytes);
            let smallest = fitting.min_by_key(|(_, pinned)| pinned.len()).map(|(i, _)| i);
            smallest.map(|i| all.swap_remove(i))
        };
        let pinned = match kept {
            Some(pinned) => pinned,
            None => Pinned::new(&self.stream, bytes.next_power_of_two().max(4096))?,
        };
        pinned.fetch(address, bytes)?;
        Ok(Box::new(Fetched { pinned, bytes, home: self.readbacks.clone() }))
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are buffers of at least this size, and not the same.
        self.stream.with(|| unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.raw) })
    }

    fn prepare(&self, work: Vec<Work>, replayed: bool) -> Result<Box<dyn Prepared>> {
        let mut resolved = Vec::with_capacity(work.len());
        for work in work {
            resolved.push(match work {
                Work::Launch(launch) => Resolved::Launch(self.function(launch.kernel, launch.shared)?, launch),
                Work::Matmul(product) => {
                    let library = self.library.as_ref().expect("a product is asked for where there is a library");
                    let product = Product::new(library, &product)?;
                    if product.new {
                        // So that the library loads its kernel now: a step that did might wait for other devices. What it
                        // writes is scratch memory between two operations.
                        let _together = lock(&self.stream.order);
                        product.run()?;
                    }
                    Resolved::Product(product)
                }
            });
        }
        let launches: Option<Vec<_>> = resolved.iter().map(Resolved::launch).collect();
        Ok(match launches {
            Some(launches) if replayed && launches.len() >= GRAPH => Box::new(Graph::new(&self.stream, &launches)?),
            _ => Box::new(Calls { stream: self.stream.clone(), work: resolved }),
        })
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives.
        self.stream.with(|| unsafe { result::stream::synchronize(self.stream.raw) })
    }

    fn gathers(&self) -> std::result::Result<&str, String> {
        nccl::name()
    }

    fn group(&self, devices: &[usize]) -> std::result::Result<Arc<dyn Group>, String> {
        Comms::open(devices)
    }

    unsafe fn all_gather(&self, group: &dyn Group, rank: usize, from: u64, to: u64, count: usize) -> Result<()> {
        let _together = lock(&self.stream.order);
        // SAFETY: the caller's, and the stream lives as long as what it is given.
        unsafe { group.all_gather(rank, self.stream.raw as u64, from, to, count) }
    }
}

/// Bytes on their way to the host.
struct Fetched {
    pinned: Pinned,
    bytes: usize,
    home: Arc<Mutex<Vec<Pinned>>>,
}

impl Transfer for Fetched {
    fn wait(self: Box<Self>, out: &mut [u8]) -> Result<()> {
        self.pinned.wait()?;
        out.copy_from_slice(&self.pinned.bytes()[..self.bytes]);
        lock(&self.home).push(self.pinned);
        Ok(())
    }
}

/// What can be given to the stream.
enum Resolved {
    Launch(Function, Launch),
    Product(Product),
}

impl Resolved {
    fn launch(&self) -> Option<(Function, &Launch)> {
        match self {
            Resolved::Launch(function, launch) => Some((*function, launch)),
            Resolved::Product(_) => None,
        }
    }
}

/// Work given to the stream piece by piece: what is run once, and what has products of the library, which chooses and
/// launches kernels of its own.
struct Calls {
    stream: Arc<Stream>,
    work: Vec<Resolved>,
}

impl Prepared for Calls {
    fn run(&self) -> Result<()> {
        let _together = lock(&self.stream.order);
        self.work.iter().try_for_each(|work| match work {
            Resolved::Launch(function, launch) => self.stream.with(|| {
                let [x, y, z] = launch.grid;
                let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
                // SAFETY: the kernel takes one structure, which these bytes are, and copies it now; what it points to
                // is held by the plan.
                unsafe {
                    let (grid, block) = ((x, y, z), (launch.threads, 1, 1));
                    result::launch_kernel(function.raw, grid, block, launch.shared, self.stream.raw, &mut params)
                }
            }),
            Resolved::Product(product) => product.run(),
        })
    }
}

/// The least launches that are made a graph: fewer cost about as much one by one, and a graph has memory of its own on the
/// device. Devices that share layers have two plans a layer and bucket, most of them of fewer.
const GRAPH: usize = 8;

/// Launches as a graph, each after the one before.
struct Graph {
    stream: Arc<Stream>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}
// SAFETY: handles that any thread may use, one at a time: a graph is launched through `&self` by its executor alone, and
// launches on one stream are in order.
unsafe impl Send for Graph {}

impl Graph {
    fn new(stream: &Arc<Stream>, launches: &[(Function, &Launch)]) -> Result<Graph> {
        let mut graph = Graph { stream: stream.clone(), graph: ptr::null_mut(), exec: ptr::null_mut() };
        stream.with(|| {
            // SAFETY: out parameters are fields that live; nodes copy their parameters when they are added.
            unsafe {
                sys::cuGraphCreate(&mut graph.graph, 0).result()?;
                let mut last: sys::CUgraphNode = ptr::null_mut();
                for (function, launch) in launches {
                    let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
                    let node = sys::CUDA_KERNEL_NODE_PARAMS {
                        func: function.raw,
                        gridDimX: launch.grid[0],
                        gridDimY: launch.grid[1],
                        gridDimZ: launch.grid[2],
                        blockDimX: launch.threads,
                        blockDimY: 1,
                        blockDimZ: 1,
                        sharedMemBytes: launch.shared,
                        kernelParams: params.as_mut_ptr(),
                        extra: ptr::null_mut(),
                        kern: ptr::null_mut(),
                        ctx: ptr::null_mut(),
                    };
                    let (before, mut added) = (last, ptr::null_mut());
                    let count = usize::from(!before.is_null());
                    sys::cuGraphAddKernelNode_v2(&mut added, graph.graph, &before, count, &node).result()?;
                    last = added;
                }
                sys::cuGraphInstantiateWithFlags(&mut graph.exec, graph.graph, 0).result()?;
                // Else its first launch makes room on the device, and may wait for other devices meanwhile.
                result::graph::upload(graph.exec, stream.raw)
            }
        })?;
        Ok(graph)
    }
}

impl Prepared for Graph {
    fn run(&self) -> Result<()> {
        let _together = lock(&self.stream.order);
        // SAFETY: the graph was instantiated; what its kernels point to is held by the plan.
        self.stream.with(|| unsafe { result::graph::launch(self.exec, self.stream.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.stream.with(|| {
            // SAFETY: each is destroyed once; one that runs is freed when it is done.
            unsafe {
                let destroyed = if self.exec.is_null() { Ok(()) } else { result::graph::exec_destroy(self.exec) };
                if self.graph.is_null() { destroyed } else { result::graph::destroy(self.graph).and(destroyed) }
            }
        });
    }
}
