//! Memory of a GPU.
use crate::stats::median;
use anyfleet::DeviceSpec;
use anyfleet_wgpu::{WgpuBackend, WgpuOptions};

/// Bytes of a copy: above every cache.
const BYTES: usize = 512 << 20;
/// Copies of a run, so that its start and end do not count.
const COPIES: usize = 8;
/// Runs of which the median counts.
const REPEATS: usize = 7;

/// What an adapter's memory can do at best.
#[derive(Clone, Debug, PartialEq)]
pub struct CopyRate {
    /// Adapter and driver.
    pub name: String,
    /// Bytes read and bytes written together, per second.
    pub bytes_per_s: f64,
}

/// Measured on the adapter that `device` names; nothing for other devices.
pub(super) fn measure(device: &DeviceSpec) -> crate::Result<Option<CopyRate>> {
    let DeviceSpec::Wgpu(adapter) = device else { return Ok(None) };
    let options = WgpuOptions { adapter: adapter.clone(), ..Default::default() };
    let backend = WgpuBackend::new(&options).map_err(|e| e.to_string())?;
    let largest = anyfleet_tensor::Backend::caps(&backend).max_buffer.map_or(BYTES, |n| BYTES.min(n as usize));
    // The first run makes the driver map the memory.
    let seconds = (0..=REPEATS).map(|_| backend.copy_seconds(largest, COPIES)).collect::<Result<Vec<_>, _>>();
    let seconds = median(&seconds.map_err(|e| e.to_string())?[1..]).unwrap_or(f64::INFINITY);
    let adapter = backend.adapter();
    let name = format!("{} ({})", adapter.name, adapter.driver);
    Ok(Some(CopyRate { name, bytes_per_s: (2 * largest * COPIES) as f64 / seconds }))
}
