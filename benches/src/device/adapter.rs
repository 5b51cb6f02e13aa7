//! Memory of a GPU.
use crate::stats::median;
use anyfleet::DeviceSpec;
use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::Backend;
use anyfleet_wgpu::{WgpuBackend, WgpuOptions};

/// Bytes of a copy: above every cache.
const BYTES: usize = 512 << 20;
/// Copies of a run, so that its start and end do not count.
const COPIES: usize = 8;
/// Runs of which the median counts.
const REPEATS: usize = 7;

/// What a GPU can do at best.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyRate {
    /// Adapter and driver.
    pub name: String,
    /// Bytes read and bytes written together, per second.
    pub bytes_per_s: f64,
    /// Operations a second of bf16 products in matrix units, where that can be measured.
    pub bf16_per_s: Option<f64>,
}

/// Measured on the GPU that `device` names; nothing for other devices.
pub(super) fn measure(device: &DeviceSpec) -> crate::Result<Option<CopyRate>> {
    match device {
        DeviceSpec::Wgpu(adapter) => {
            let options = WgpuOptions { adapter: adapter.clone(), ..Default::default() };
            let backend = WgpuBackend::new(&options).map_err(|e| e.to_string())?;
            let adapter = backend.adapter();
            let name = format!("{} ({})", adapter.name, adapter.driver);
            copy_rate(name, &backend, None, |bytes| backend.copy_seconds(bytes, COPIES)).map(Some)
        }
        DeviceSpec::Cuda(device) => {
            let options = CudaOptions { device: device.clone(), ..Default::default() };
            let backend = CudaBackend::new(&options).map_err(|e| e.to_string())?;
            let rate = backend.matrix_rate().map_err(|e| e.to_string())?;
            let name = backend.caps().device.clone();
            copy_rate(name, &backend, Some(rate), |bytes| backend.copy_seconds(bytes, COPIES)).map(Some)
        }
        _ => Ok(None),
    }
}

fn copy_rate<B: Backend>(
    name: String,
    backend: &B,
    bf16_per_s: Option<f64>,
    copy: impl Fn(usize) -> anyfleet_tensor::Result<f64>,
) -> crate::Result<CopyRate> {
    let largest = backend.caps().max_buffer.map_or(BYTES, |n| BYTES.min(n as usize));
    // The first run makes the driver map the memory.
    let seconds = (0..=REPEATS).map(|_| copy(largest)).collect::<Result<Vec<_>, _>>();
    let seconds = median(&seconds.map_err(|e| e.to_string())?[1..]).unwrap_or(f64::INFINITY);
    Ok(CopyRate { name, bytes_per_s: (2 * largest * COPIES) as f64 / seconds, bf16_per_s })
}
