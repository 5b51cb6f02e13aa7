//! Which devices there are. CUDA's library is looked at before anything of it is called: what calls it here ends the
//! process when a symbol is missing.
use super::Driver;
use super::cublaslt::Handle;
use super::gpu::{GpuDriver, Stream};
use crate::CudaOptions;
use anyfleet_tensor::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute::*;
use cudarc::driver::sys::CUresult::{CUDA_ERROR_NO_DEVICE, CUDA_ERROR_STUB_LIBRARY};
use libloading::Library;
use std::sync::{Arc, OnceLock};

/// A device that CUDA's driver lists.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Version of CUDA that the driver has, e.g. `CUDA 12.8`.
    pub driver: String,
    /// Compute capability, e.g. 90.
    pub capability: u32,
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Its memory is the system's.
    pub integrated: bool,
}

impl CudaDevice {
    /// Why the backend cannot use it, if it cannot.
    pub fn unusable(&self) -> Option<String> {
        (self.capability < LEAST).then(|| {
            let (capability, name) = (self.capability, &self.name);
            let have = format!("{}.{}", capability / 10, capability % 10);
            format!("{name} has compute capability {have}, and kernels need 8.0 (Ampere) or newer; try --device wgpu")
        })
    }
}

/// The least compute capability: bf16 in matrix units and asynchronous copies.
const LEAST: u32 = 80;
const NO_DEVICES: &str = "NVIDIA's driver lists no devices";
/// The least version of the driver's interface.
const VERSION: i32 = 12_000;
/// Everything that is called, by cudarc's functions, too.
const SYMBOLS: [&str; 40] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuStreamCreate",
    "cuStreamSynchronize",
    "cuStreamDestroy_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuGraphCreate",
    "cuGraphAddKernelNode_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuTensorMapEncodeTiled",
];

/// One line that says why CUDA cannot be used.
fn absent() -> Option<&'static str> {
    static ABSENT: OnceLock<Option<String>> = OnceLock::new();
    let look = || {
        // The order is cudarc's: what is looked at must be what it calls.
        let names = if cfg!(windows) { ["nvcuda.dll", "nvcuda.dll"] } else { ["libcuda.so", "libcuda.so.1"] };
        // SAFETY: loading the driver runs its own initialisation only.
        let Some(library) = names.iter().find_map(|name| unsafe { Library::new(name) }.ok()) else {
            return Some("NVIDIA's driver is not installed: there is no libcuda".to_owned());
        };
        // SAFETY: only their presence is looked at.
        let missing = SYMBOLS.iter().find(|name| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err());
        // What was found stays: cudarc opens the same library.
        std::mem::forget(library);
        if let Some(symbol) = missing {
            return Some(format!("NVIDIA's driver is too old: it has no {symbol}; install one for CUDA 12 or newer"));
        }
        match version() {
            Ok(found) if found < VERSION => {
                Some(format!("NVIDIA's driver is for CUDA {}; install one for CUDA 12 or newer", dotted(found)))
            }
            Ok(_) => result::init().err().map(|e| match e.0 {
                CUDA_ERROR_NO_DEVICE => NO_DEVICES.to_owned(),
                CUDA_ERROR_STUB_LIBRARY => stub(),
                _ => format!("NVIDIA's driver does not start: {}", text(&e)),
            }),
            Err(reason) => Some(reason),
        }
    };
    ABSENT.get_or_init(look).as_deref()
}

/// What CUDA calls an error, and what it says of it.
pub(super) fn text(error: &cudarc::driver::DriverError) -> String {
    let part = |text: std::result::Result<&std::ffi::CStr, _>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    };
    format!("{} ({})", part(error.error_string()), part(error.error_name()))
}

/// The version of CUDA that the driver has: 12080 is 12.8.
pub(super) fn version() -> Result<i32, String> {
    let mut version = 0;
    // SAFETY: the pointer is to a number that lives.
    let outcome = unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) };
    outcome.result().map(|()| version).map_err(|e| match e.0 {
        CUDA_ERROR_STUB_LIBRARY => stub(),
        _ => format!("NVIDIA's driver does not say its version: {}", text(&e)),
    })
}

/// What is said where the toolkit's library for the linker is found in the driver's place.
fn stub() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let files = maps.lines().filter_map(|line| line.find('/').map(|start| &line[start..]));
    let file = files.filter(|file| file.contains("/libcuda.so")).map(|file| format!(" ({file})")).next();
    format!(
        "a stub of CUDA's toolkit{} is found before NVIDIA's driver; take its folder off LD_LIBRARY_PATH",
        file.unwrap_or_default()
    )
}

/// Bytes of the system's memory that programs may have, caches that would make room included.
pub(super) fn system_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The devices of this machine.
///
/// # Errors
/// One line that says why there are none.
pub fn devices() -> Result<Vec<CudaDevice>, String> {
    if let Some(reason) = absent() {
        return Err(reason.to_owned());
    }
    let failed = |e: cudarc::driver::DriverError| format!("{NO_DEVICES}: {}", text(&e));
    let count = result::device::get_count().map_err(failed)?;
    if count == 0 {
        return Err(NO_DEVICES.into());
    }
    let driver = format!("CUDA {}", dotted(version()?));
    let describe = |index: i32| {
        let device = result::device::get(index)?;
        // SAFETY: the device is one of those that the driver counted.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(CudaDevice {
            index: index as usize,
            name: result::device::get_name(device)?,
            driver: driver.clone(),
            capability: (10 * major + minor) as u32,
            processors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device)? } as u64,
            integrated: attribute(CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0,
        })
    };
    (0..count).map(describe).collect::<Result<_, _>>().map_err(failed)
}

/// The device of this number, or whose name has this part; without either the first that can be used.
fn choose(devices: Vec<CudaDevice>, wanted: Option<&str>) -> Result<CudaDevice, String> {
    let list = devices.iter().map(|d| format!("{} {}", d.index, d.name)).collect::<Vec<_>>().join(", ");
    let found = match wanted {
        None => {
            let usable = devices.iter().position(|d| d.unusable().is_none()).unwrap_or(0);
            devices.into_iter().nth(usable)
        }
        Some(wanted) => match wanted.parse::<usize>() {
            Ok(index) => devices.into_iter().nth(index),
            Err(_) => {
                let wanted = wanted.to_lowercase();
                devices.into_iter().find(|d| d.name.to_lowercase().contains(&wanted))
            }
        },
    };
    let device = found.ok_or_else(|| format!("there is no such device; there are: {list}"))?;
    device.unusable().map_or(Ok(device), Err)
}

/// The device that the operator chose.
fn chosen(options: &CudaOptions) -> Result<CudaDevice> {
    let wanted = options.device.as_deref();
    let failed = |reason: String| {
        let device = wanted.map_or("cuda".into(), |device| format!("cuda:{}", device.escape_debug()));
        Error::Device { device, reason }
    };
    devices().and_then(|devices| choose(devices, wanted)).map_err(failed)
}

/// Opens a device.
pub(crate) fn open(options: &CudaOptions) -> Result<Arc<dyn Driver>> {
    let device = chosen(options)?;
    Ok(Arc::new(GpuDriver::new(&device, options)?))
}

/// Why a device has no library of products, if it has none.
pub(crate) fn missing_for_fast(options: &CudaOptions) -> Result<Option<String>> {
    let stream = Arc::new(Stream::open(&chosen(options)?)?);
    Ok(Handle::open(&stream).err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, name: &str, capability: u32) -> CudaDevice {
        let (name, driver, memory) = (name.into(), "CUDA 12.8".into(), 1 << 30);
        CudaDevice { index, name, driver, capability, processors: 1, memory, integrated: false }
    }

    /// What the fake driver has is all that is called (`tests/driver.rs`).
    #[test]
    fn symbols_are_what_is_called() {
        let fake = include_str!("../../tests/fake_driver/libcuda.cpp");
        let functions =
            fake.lines().filter_map(|line| line.strip_prefix("API(")?.split_once(',').map(|(name, _)| name));
        assert_eq!(functions.collect::<Vec<_>>(), SYMBOLS);
    }

    #[test]
    fn devices_are_chosen_by_number_or_name() {
        let all = || vec![device(0, "Tesla T4", 75), device(1, "NVIDIA A10", 86), device(2, "NVIDIA H200", 90)];
        let index = |wanted| choose(all(), wanted).map(|d| d.index);
        assert_eq!(index(None), Ok(1));
        assert_eq!(index(Some("2")), Ok(2));
        assert_eq!(index(Some("h200")), Ok(2));
        assert!(index(Some("0")).unwrap_err().contains("compute capability 7.5"));
        assert!(index(Some("7")).unwrap_err().contains("there are: 0 Tesla T4, 1 NVIDIA A10, 2 NVIDIA H200"));
        assert!(index(Some("radeon")).is_err());
        assert!(choose(vec![device(0, "Tesla T4", 75)], None).unwrap_err().contains("Ampere"));
    }
}
