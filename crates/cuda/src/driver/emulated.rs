//! Kernels on the host: the same sources as C++, with `kernels/cuda/emulate/simt.h` for the device.
//!
//! The modules are compiled with the C++ compiler of the machine (`CXX`, else `c++`) when the first device is opened,
//! and kept beside the build. Blocks run on all processors, one after the other on each; memory is the process's own.
use super::{Description, Driver, Group, Kernel, Launch, Matmul, Prepared, TileMap, Tiles, Transfer, Work};
use crate::CudaOptions;
use crate::warpgroups::Warpgroups;
use anyfleet_kernels::cuda;
use anyfleet_tensor::{DeviceMemory, Error, Gemm, Result};
use half::{bf16, f16};
use libloading::Library;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

/// Alignment of memory.
const ALIGN: usize = 256;

/// Runs one thread of a kernel.
type Thread = unsafe extern "C" fn(*const c_void);
/// `anyfleet_launch` of `run.cpp`.
type Run = unsafe extern "C" fn(
    *const c_char,
    Thread,
    *const c_void,
    *const u32,
    *const u32,
    u32,
    u32,
    u32,
    u64,
    *mut c_char,
    u64,
) -> c_int;

fn failed(reason: impl std::fmt::Display) -> Error {
    Error::Device { device: "cuda:emulated".into(), reason: reason.to_string() }
}

/// The compiled modules.
struct Kernels {
    library: Library,
    run: Run,
    known: Mutex<HashMap<Kernel, Resolved>>,
}

#[derive(Clone, Copy)]
struct Resolved {
    thread: Thread,
    params: usize,
    threads: u32,
}

impl Kernels {
    /// Those of this process.
    fn get() -> Result<&'static Kernels, String> {
        static KERNELS: OnceLock<Result<Kernels, String>> = OnceLock::new();
        KERNELS.get_or_init(Kernels::compile).as_ref().map_err(Clone::clone)
    }

    fn compile() -> Result<Kernels, String> {
        Kernels::open(&library()?)
    }

    fn open(library: &Path) -> Result<Kernels, String> {
        // SAFETY: the library was compiled right here from the program's own sources, and nothing runs when it is loaded.
        let library = unsafe { Library::new(library) }.map_err(|e| e.to_string())?;
        // SAFETY: `run.cpp` defines it so.
        let run = unsafe { library.get::<Run>(b"anyfleet_launch\0") }.map(|run| *run).map_err(|e| e.to_string())?;
        Ok(Kernels { library, run, known: Mutex::default() })
    }

    fn resolve(&self, kernel: Kernel) -> Result<Resolved> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&resolved) = known.get(&kernel) {
            return Ok(resolved);
        }
        let absent = |e: libloading::Error| failed(format!("no kernel {} in {}: {e}", kernel.name, kernel.module));
        let word = |what: &str| {
            let name = format!("anyfleet_{}_{what}\0", kernel.name);
            // SAFETY: the macro KERNEL defines it as a constant of four bytes.
            unsafe { self.library.get::<*const u32>(name.as_bytes()).map(|word| **word).map_err(absent) }
        };
        let name = format!("anyfleet_{}\0", kernel.name);
        // SAFETY: the macro KERNEL defines it so.
        let thread = unsafe { self.library.get::<Thread>(name.as_bytes()) }.map(|thread| *thread).map_err(absent)?;
        let resolved = Resolved { thread, params: word("params")? as usize, threads: word("threads")? };
        known.insert(kernel, resolved);
        Ok(resolved)
    }

    /// # Safety
    /// What the launch's structure points to must be valid for what the kernel does with it.
    unsafe fn launch(&self, launch: &Launch, resolved: Resolved) -> Result<()> {
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let workers = rayon::current_num_threads() as u64;
        let share = blocks.div_ceil(workers).max(1);
        let name = CString::new(launch.kernel.name).map_err(failed)?;
        let block = [launch.threads, 1, 1];
        // Parameters are read as the structure they are, with the alignment of its map of tiles, if it has one.
        let mut params = vec![TileMap([0; 16]); launch.params.len().div_ceil(size_of::<TileMap>())];
        bytemuck::cast_slice_mut(&mut params)[..launch.params.len()].copy_from_slice(&launch.params);
        let seed = seed();
        (0..blocks.div_ceil(share)).into_par_iter().try_for_each(|part| {
            let (first, mut text) = (part * share, [0u8; 512]);
            let count = share.min(blocks - first);
            // SAFETY: the kernel was resolved under this name, the structure has its size, and the rest is the caller's.
            let code = unsafe {
                (self.run)(
                    name.as_ptr(),
                    resolved.thread,
                    params.as_ptr().cast(),
                    launch.grid.as_ptr(),
                    block.as_ptr(),
                    launch.shared,
                    first as u32,
                    count as u32,
                    seed,
                    text.as_mut_ptr().cast(),
                    text.len() as u64,
                )
            };
            if code == 0 {
                return Ok(());
            }
            let end = text.iter().position(|&c| c == 0).unwrap_or(text.len());
            Err(failed(String::from_utf8_lossy(&text[..end])))
        })
    }
}

/// What orders the threads of a block: `ANYFLEET_SEED`, so that a failure can be repeated, else something new.
fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var("ANYFLEET_SEED").ok().and_then(|text| text.parse().ok());
        let clock =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64);
        given.unwrap_or_else(clock)
    })
}

/// What makes fused multiply-adds instructions instead of calls, where the processor has them.
fn native() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        return &["-mfma", "-mavx2", "-mf16c"];
    }
    &[]
}

/// How sources are compiled.
const FLAGS: [&str; 7] = ["-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-DANYFLEET_EMULATE", "-w", "-c"];

/// The library of all modules and what launches them, compiled where it was not yet. It lies in the build's own folder:
/// test programs of one build share it.
///
/// # Errors
/// One line that says what is missing, or what the compiler found.
pub fn library() -> Result<PathBuf, String> {
    let sources: Vec<(String, String)> = cuda::modules()
        .map(|module| (module.to_owned(), cuda::source(module)))
        .chain([("run".to_owned(), cuda::runner())])
        .collect();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut hasher = Sha256::new();
    let flags = [&[compiler.as_str()], &FLAGS[..], native()].concat();
    flags.into_iter().chain(sources.iter().map(|(_, text)| text.as_str())).for_each(|part| {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    });
    let key: String = hasher.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let home = Path::new(env!("OUT_DIR"));
    let library = home.join(format!("kernels-{key}.so"));
    if library.exists() {
        return Ok(library);
    }
    // A program that was taken elsewhere has no such folder.
    let folder = tempfile::tempdir_in(home).or_else(|_| tempfile::tempdir());
    let folder = folder.map_err(|e| format!("no folder to compile kernels in: {e}"))?;
    let made = compile(folder.path(), &sources, &compiler)?;
    // Several processes may do so at once: what is there is always whole.
    match std::fs::rename(&made, &library) {
        Ok(()) => Ok(library),
        Err(_) => {
            let _ = folder.keep();
            Ok(made)
        }
    }
}

fn compile(folder: &Path, sources: &[(String, String)], compiler: &str) -> Result<PathBuf, String> {
    let objects: Result<Vec<_>, String> = sources
        .par_iter()
        .map(|(name, text)| {
            let source = folder.join(format!("{name}.cpp"));
            let object = source.with_extension("o");
            std::fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
            let mut command = Command::new(compiler);
            command.args(FLAGS).args(native()).arg(&source).arg("-o").arg(&object);
            compiled(command, name).map(|()| object)
        })
        .collect();
    let library = folder.join("kernels.so");
    let mut command = Command::new(compiler);
    command.arg("-shared").args(objects?).arg("-o").arg(&library);
    compiled(command, "all kernels")?;
    Ok(library)
}

fn compiled(mut command: Command, what: &str) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().map_err(|e| format!("kernels need a C++ compiler, and {program} does not run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let first: Vec<&str> = text.lines().filter(|line| line.contains("error")).take(5).collect();
    Err(format!("{program} does not compile {what}: {}", first.join("; ")))
}

pub(crate) struct EmulatedDriver {
    kernels: &'static Kernels,
    description: Description,
    /// Held over a run: what its launches share, others' must not change meanwhile.
    order: Arc<Mutex<()>>,
    gemm: Gemm,
    warpgroups: Warpgroups,
}

impl EmulatedDriver {
    pub(crate) fn new(options: &CudaOptions) -> Result<EmulatedDriver> {
        let kernels = Kernels::get().map_err(failed)?;
        let description = Description {
            name: "emulated".into(),
            driver: "host".into(),
            // So that kernels for large grids are chosen for small ones, and two tiles are cut into parts.
            processors: 3,
            ..Description::default()
        };
        let warpgroups = if options.warpgroups == Some(true) { Warpgroups::Always } else { Warpgroups::Never };
        Ok(EmulatedDriver { kernels, description, order: Arc::default(), gemm: options.gemm, warpgroups })
    }
}

/// Devices in the memory of one process. What a device does at some time is done when it is asked for here, so ranks wait
/// for each other as their devices would.
struct HostGroup {
    places: Mutex<Places>,
    changed: Condvar,
}

#[derive(Default)]
struct Places {
    /// Where each rank's part is.
    parts: Vec<u64>,
    /// Ranks that have come to a gather, and that are through with one, over all of them.
    arrived: usize,
    done: usize,
    aborted: bool,
}

impl HostGroup {
    /// Counts this rank, and waits for the others to be counted.
    fn wait(&self, count: impl Fn(&mut Places) -> &mut usize) -> Result<Vec<u64>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let ranks = places.parts.len();
        *count(&mut places) += 1;
        let want = count(&mut places).next_multiple_of(ranks);
        self.changed.notify_all();
        while *count(&mut places) < want {
            if places.aborted {
                return Err(failed("its group was stopped"));
            }
            places = self.changed.wait(places).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(places.parts.clone())
    }
}

impl Group for HostGroup {
    unsafe fn all_gather(&self, rank: usize, _stream: u64, from: u64, to: u64, count: usize) -> Result<()> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).parts[rank] = from;
        for (rank, part) in self.wait(|places| &mut places.arrived)?.into_iter().enumerate() {
            // SAFETY: the caller's; nobody writes a part before all are through.
            unsafe { std::ptr::copy_nonoverlapping(part as *const f32, (to as *mut f32).add(rank * count), count) };
        }
        self.wait(|places| &mut places.done).map(drop)
    }

    fn abort(&self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).aborted = true;
        self.changed.notify_all();
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), ALIGN).expect("a size that was allocated")
}

/// A copy, made at once.
struct Copied(Vec<u8>);

impl Transfer for Copied {
    fn wait(self: Box<Self>, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

/// What a library of products may compute: each sum in the order of K.
///
/// # Safety
/// All of the product's memory must be valid, and of the output nobody else's.
unsafe fn multiply(product: &Matmul) {
    let &Matmul { out, x, weight, rows, features, width, f16, .. } = product;
    let [rows, features, width] = [rows, features, width].map(|n| n as usize);
    // SAFETY: the caller's.
    let numbers = |address: u64, count: usize| unsafe { std::slice::from_raw_parts(address as *const u16, count) };
    let widen = |&bits: &u16| if f16 == 1 { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() };
    let weight: Vec<f32> = numbers(weight, features * width).iter().map(widen).collect();
    // SAFETY: the caller's.
    let out = unsafe { std::slice::from_raw_parts_mut(out as *mut f32, rows * features) };
    let x = numbers(x, rows * width).par_chunks_exact(width);
    out.par_chunks_exact_mut(features).zip(x).for_each(|(sums, x)| {
        let x: Vec<f32> = x.iter().map(widen).collect();
        for (sum, weight) in sums.iter_mut().zip(weight.chunks_exact(width)) {
            *sum = x.iter().zip(weight).fold(0.0, |sum, (x, weight)| sum + x * weight);
        }
    });
}

enum HostWork {
    Launch(Launch, Resolved),
    Matmul(Matmul),
}

struct HostPlan {
    kernels: &'static Kernels,
    order: Arc<Mutex<()>>,
    work: Vec<HostWork>,
}

impl Prepared for HostPlan {
    fn run(&self) -> Result<()> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: addresses are of buffers that the plan holds, and operations were checked against their sizes.
        self.work.iter().try_for_each(|work| unsafe {
            match work {
                HostWork::Launch(launch, resolved) => self.kernels.launch(launch, *resolved),
                HostWork::Matmul(product) => {
                    multiply(product);
                    Ok(())
                }
            }
        })
    }
}

impl Driver for EmulatedDriver {
    fn description(&self) -> &Description {
        &self.description
    }
    fn memory(&self) -> DeviceMemory {
        DeviceMemory::default()
    }
    fn library(&self) -> Option<&str> {
        (self.gemm == Gemm::Fast).then_some("on the host")
    }
    fn warpgroups(&self) -> Warpgroups {
        self.warpgroups
    }
    fn tile_map(&self, tiles: &Tiles) -> Result<TileMap> {
        let pair = |low: usize, high: usize| low as u64 | (high as u64) << 32;
        let mut map = TileMap([0; 16]);
        // `TileMap` of `emulate/warpgroup.h`.
        let (rows, lines) = (pair(tiles.row_bytes, tiles.rows), pair(Tiles::LINE, tiles.lines));
        map.0[..4].copy_from_slice(&[tiles.address, tiles.row_bytes as u64, rows, lines]);
        Ok(map)
    }
    fn alloc(&self, bytes: usize, what: &str) -> Result<u64> {
        let out_of_memory = || Error::OutOfMemory { device: "cuda:emulated".into(), bytes, what: what.into() };
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| out_of_memory())?;
        // SAFETY: the size is not 0.
        let address = unsafe { std::alloc::alloc_zeroed(layout) };
        if address.is_null() { Err(out_of_memory()) } else { Ok(address as u64) }
    }
    fn free(&self, address: u64, bytes: usize) {
        // SAFETY: it was allocated with the same size, and nothing runs in the background.
        unsafe { std::alloc::dealloc(address as *mut u8, layout(bytes)) }
    }
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the backend checked that the bytes fit the tensor.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
        Ok(())
    }
    fn read(&self, address: u64, bytes: usize) -> Result<Box<dyn Transfer>> {
        // SAFETY: the bytes are those of a tensor, which lies in its buffer.
        Ok(Box::new(Copied(unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec())))
    }
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: both are buffers of at least this size, and not the same.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }
    fn prepare(&self, work: Vec<Work>, _replayed: bool) -> Result<Box<dyn Prepared>> {
        let resolve = |work| {
            let launch = match work {
                Work::Launch(launch) => launch,
                Work::Matmul(product) => return Ok(HostWork::Matmul(product)),
            };
            let resolved = self.kernels.resolve(launch.kernel)?;
            let (name, given) = (launch.kernel.name, launch.params.len());
            assert_eq!(
                given, resolved.params,
                "{name}: {given} bytes of parameters, the kernel takes {}",
                resolved.params
            );
            let most = resolved.threads;
            assert!(launch.threads <= most, "{name}: {} threads, the kernel takes {most}", launch.threads);
            Ok(HostWork::Launch(launch, resolved))
        };
        let work = work.into_iter().map(resolve).collect::<Result<_>>()?;
        Ok(Box::new(HostPlan { kernels: self.kernels, order: self.order.clone(), work }))
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn gathers(&self) -> std::result::Result<&str, String> {
        Ok("on the host")
    }
    fn group(&self, devices: &[usize]) -> std::result::Result<Arc<dyn Group>, String> {
        let places = Mutex::new(Places { parts: vec![0; devices.len()], ..Places::default() });
        Ok(Arc::new(HostGroup { places, changed: Condvar::new() }))
    }
    unsafe fn all_gather(&self, group: &dyn Group, rank: usize, from: u64, to: u64, count: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { group.all_gather(rank, 0, from, to, count) }
    }
}
