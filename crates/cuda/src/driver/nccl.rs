//! NCCL, NVIDIA's library of transfers between devices, loaded where several devices of this process share layers.
use super::Group;
use anyfleet_tensor::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

type Status = c_int;
type Raw = *mut c_void;
type End = unsafe extern "C" fn(Raw) -> Status;

/// `ncclFloat32`, as nccl.h numbers it.
const FLOATS: c_int = 7;

/// The least version, 2.19.1: with those before it, a group whose ranks are threads may not end when it is aborted.
const VERSION: c_int = 21_901;

/// The library's functions that are used here; nccl.h declares them so.
struct Functions {
    name: String,
    text: unsafe extern "C" fn(Status) -> *const c_char,
    /// One end for each device of this process.
    open: unsafe extern "C" fn(*mut Raw, c_int, *const c_int) -> Status,
    gather: unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Raw, Raw) -> Status,
    /// From one to the other, calls of a thread are taken as one.
    begin: unsafe extern "C" fn() -> Status,
    end: unsafe extern "C" fn() -> Status,
    abort: End,
    destroy: End,
}

impl Functions {
    /// Those of this process.
    fn get() -> std::result::Result<&'static Functions, String> {
        static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
        FUNCTIONS.get_or_init(Functions::find).as_ref().map_err(Clone::clone)
    }

    /// The library that the operator named, else the system's.
    fn find() -> std::result::Result<Functions, String> {
        let named = std::env::var_os("ANYFLEET_NCCL");
        let installed = || ["libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"].map(OsString::from).to_vec();
        let (mut refused, mut absent) = (Vec::new(), Vec::new());
        for file in named.map_or_else(installed, |file| vec![file]) {
            // SAFETY: the operator's or the system's; nothing but its own initialisers runs.
            match unsafe { Library::new(&file) } {
                Ok(library) => match Functions::of(library) {
                    Ok(functions) => return Ok(functions),
                    Err(reason) => refused.push(format!("{}: {reason}", file.display())),
                },
                Err(reason) => absent.push(reason.to_string()),
            }
        }
        // What is wrong with one that is there says more than where else there is none.
        let reasons = if refused.is_empty() { absent } else { refused };
        Err(format!(
            "there is no libnccl.so.2 that can be used ({}): install NCCL (or `pip install nvidia-nccl-cu12`, and let \
             ANYFLEET_NCCL be the path of its libnccl.so.2)",
            reasons.join("; ")
        ))
    }

    fn of(library: Library) -> std::result::Result<Functions, String> {
        // Its functions are kept.
        let library: &'static Library = Box::leak(Box::new(library));
        // SAFETY: each has the type that nccl.h declares the function with.
        unsafe {
            let mut version = 0;
            let ask = symbol::<unsafe extern "C" fn(*mut c_int) -> Status>(library, "ncclGetVersion")?;
            if ask(&mut version) != 0 || version < VERSION {
                return Err(format!("it is NCCL {}, and groups need {} or newer", dotted(version), dotted(VERSION)));
            }
            Ok(Functions {
                name: format!("NCCL {}", dotted(version)),
                text: symbol(library, "ncclGetErrorString")?,
                open: symbol(library, "ncclCommInitAll")?,
                gather: symbol(library, "ncclAllGather")?,
                begin: symbol(library, "ncclGroupStart")?,
                end: symbol(library, "ncclGroupEnd")?,
                abort: symbol(library, "ncclCommAbort")?,
                destroy: symbol(library, "ncclCommDestroy")?,
            })
        }
    }

    /// What a function gave back, where it is a failure.
    fn check(&self, status: Status) -> std::result::Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a constant text, which ends in a NUL, for every number.
        let text = unsafe { CStr::from_ptr((self.text)(status)) }.to_string_lossy();
        Err(format!("{} fails: {text} (status {status}); NCCL_DEBUG=WARN says more", self.name))
    }
}

/// 22304 is 2.23.4; until 2.8, 2804 was 2.8.4.
fn dotted(version: c_int) -> String {
    let major = if version < 10_000 { 1_000 } else { 10_000 };
    format!("{}.{}.{}", version / major, version % major / 100, version % 100)
}

/// # Safety
/// `T` must be the type of the function.
unsafe fn symbol<T: Copy>(library: &'static Library, name: &str) -> std::result::Result<T, String> {
    // SAFETY: the caller's.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|e| e.to_string())
}

/// Name and version of the library.
pub(super) fn name() -> std::result::Result<&'static str, String> {
    Functions::get().map(|functions| functions.name.as_str())
}

/// A rank's end; nothing once it was aborted.
struct Comm(Option<Raw>);

// SAFETY: a handle that any thread may use, one at a time.
unsafe impl Send for Comm {}

/// Devices of this process that NCCL has made a group of.
pub(super) struct Comms {
    functions: &'static Functions,
    ends: Vec<Mutex<Comm>>,
}

impl Comms {
    /// # Errors
    /// One line that says what is missing.
    pub(super) fn open(devices: &[usize]) -> std::result::Result<Arc<dyn Group>, String> {
        let functions = Functions::get()?;
        let devices: Vec<c_int> = devices.iter().map(|&device| device as c_int).collect();
        let mut ends = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: it writes as many handles as there are devices.
        functions.check(unsafe { (functions.open)(ends.as_mut_ptr(), devices.len() as c_int, devices.as_ptr()) })?;
        let ends = ends.into_iter().map(|end| Mutex::new(Comm(Some(end)))).collect();
        Ok(Arc::new(Comms { functions, ends }))
    }

    fn end(&self, rank: usize) -> MutexGuard<'_, Comm> {
        self.ends[rank].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, how: End) {
        for rank in 0..self.ends.len() {
            if let Some(end) = self.end(rank).0.take() {
                // SAFETY: it was opened, and is taken once.
                unsafe { how(end) };
            }
        }
    }
}

impl Group for Comms {
    unsafe fn all_gather(&self, rank: usize, stream: u64, from: u64, to: u64, count: usize) -> Result<()> {
        let failed = |reason| Error::Device { device: format!("rank {rank}"), reason };
        // Held, so that whoever aborts frees nothing under it. The call waits for nobody: ranks are connected, and each
        // has asked for few gathers that are not done.
        let guard = self.end(rank);
        let Some(end) = guard.0 else { return Err(failed("its group was stopped".into())) };
        // SAFETY: the caller's; the end is open.
        let status = unsafe {
            (self.functions.gather)(from as *const c_void, to as *mut c_void, count, FLOATS, end, stream as Raw)
        };
        self.functions.check(status).map_err(failed)
    }

    /// NCCL connects in the first gathers, which one thread asks for as one: a rank that finds no way then ends the others'
    /// search, too.
    fn connect(&self, ask: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let check = |status| {
            let failed = |reason| Error::Device { device: "several devices".into(), reason };
            self.functions.check(status).map_err(failed)
        };
        // SAFETY: what is begun is ended by the same thread.
        check(unsafe { (self.functions.begin)() })?;
        let asked = ask();
        // SAFETY: as above.
        let ended = check(unsafe { (self.functions.end)() });
        asked.and(ended)
    }

    fn abort(&self) {
        self.close(self.functions.abort);
    }
}

impl Drop for Comms {
    fn drop(&mut self) {
        self.close(self.functions.destroy);
    }
}
