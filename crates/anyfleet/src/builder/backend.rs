//! From a device's name to a backend.
use super::EngineBuilder;
use crate::{DeviceSpec, Error, Result};
use anyfleet_tensor::{Backend, Gemm};
use std::sync::Arc;

/// Something to do on whichever backend was chosen.
pub(crate) trait OnBackend {
    /// Whether the backend will compute anything.
    const COMPUTES: bool = true;
    type Output;
    fn run<B: Backend>(self, device: Arc<B>) -> Result<Self::Output>;
}

impl EngineBuilder {
    /// The one place where the name of one device becomes a backend. `warnings`: what the operator should know of it.
    pub(crate) fn on_device<T: OnBackend>(&self, task: T, warnings: &mut Vec<String>) -> Result<T::Output> {
        match &self.device {
            #[cfg(feature = "cuda")]
            DeviceSpec::Auto => match self.cuda(None, T::COMPUTES, warnings) {
                Ok(device) => task.run(Arc::new(device)),
                Err(reason) => {
                    warnings.push(format!("device auto is the CPU here: {reason}"));
                    self.on_cpu(task, warnings)
                }
            },
            #[cfg(not(feature = "cuda"))]
            DeviceSpec::Auto => self.on_cpu(task, warnings),
            DeviceSpec::Cpu => self.on_cpu(task, warnings),
            #[cfg(feature = "cuda")]
            DeviceSpec::Cuda(device) => task.run(Arc::new(self.cuda(device.clone(), T::COMPUTES, warnings)?)),
            #[cfg(not(feature = "cuda"))]
            DeviceSpec::Cuda(_) => Err(absent("cuda")),
            #[cfg(feature = "wgpu")]
            DeviceSpec::Wgpu(adapter) => task.run(Arc::new(self.wgpu(adapter.clone(), T::COMPUTES, warnings)?)),
            #[cfg(not(feature = "wgpu"))]
            DeviceSpec::Wgpu(_) => Err(absent("wgpu")),
            DeviceSpec::Split(split) => {
                Err(Error::Device(format!("device {split} is several; this is done with one at a time")))
            }
        }
    }

    #[cfg(feature = "cpu")]
    fn on_cpu<T: OnBackend>(&self, task: T, warnings: &mut Vec<String>) -> Result<T::Output> {
        let options = anyfleet_cpu::CpuOptions { threads: self.threads, ..Default::default() };
        let device = anyfleet_cpu::CpuBackend::new(options).map_err(|e| Error::Device(e.to_string()))?;
        if self.gemm == Gemm::Fast {
            warnings.push(nothing_faster(&device.caps().device, "all its products are invariant"));
        }
        task.run(Arc::new(device))
    }

    #[cfg(not(feature = "cpu"))]
    fn on_cpu<T: OnBackend>(&self, _task: T, _warnings: &mut Vec<String>) -> Result<T::Output> {
        Err(absent("cpu"))
    }

    /// An NVIDIA GPU, checked before its first use.
    #[cfg(feature = "cuda")]
    fn cuda(
        &self,
        device: Option<String>,
        computes: bool,
        warnings: &mut Vec<String>,
    ) -> Result<anyfleet_cuda::CudaBackend> {
        use anyfleet_cuda::{CudaBackend, CudaOptions};
        #[cfg(feature = "emulate")]
        if device.as_deref() == Some("emulated") {
            let options = CudaOptions { gemm: self.gemm, ..Default::default() };
            return CudaBackend::emulated_with(&options).map_err(|e| Error::Device(e.to_string()));
        }
        // A folder for kernels has all of them compiled at once: not for a plan.
        let compiled = self.pack_cache.kernels().filter(|_| computes);
        let options = CudaOptions { device, compiled, gemm: Gemm::Invariant, warpgroups: None };
        let missing = match self.gemm {
            Gemm::Invariant => None,
            Gemm::Fast => CudaBackend::missing_for_fast(&options).map_err(|e| Error::Device(e.to_string()))?,
        };
        let mut kinds = vec![Gemm::Invariant];
        if self.gemm == Gemm::Fast && missing.is_none() {
            kinds.insert(0, Gemm::Fast);
        }
        let choice = if computes { &self.self_check } else { &crate::SelfCheck::Off };
        let open = |&gemm: &Gemm| CudaBackend::new(&CudaOptions { gemm, ..options.clone() });
        let device = crate::check::checked(choice, kinds, open, warnings)?;
        warnings.extend(missing.map(|reason| nothing_faster(&device.caps().device, &reason)));
        Ok(device)
    }

    /// An adapter with the fastest kernels that it computes right with.
    #[cfg(feature = "wgpu")]
    fn wgpu(
        &self,
        adapter: Option<String>,
        computes: bool,
        warnings: &mut Vec<String>,
    ) -> Result<anyfleet_wgpu::WgpuBackend> {
        use anyfleet_wgpu::{WgpuBackend, WgpuOptions};
        let failed = |e: anyfleet_tensor::Error| Error::Device(e.to_string());
        let (memory, compiled) = (self.device_memory, self.pack_cache.kernels());
        let options = WgpuOptions { adapter, memory, compiled, ..Default::default() };
        let variants = WgpuBackend::variants(&options).map_err(failed)?;
        let missing = match self.gemm {
            Gemm::Invariant => None,
            Gemm::Fast => WgpuBackend::missing_for_fast(&options).map_err(failed)?,
        };
        let mut kernels: Vec<Kernels> = variants.iter().map(|&variant| Kernels(variant, Gemm::Invariant)).collect();
        if self.gemm == Gemm::Fast && missing.is_none() {
            let fast = variants.iter().find(|variant| variant.has_fast()).copied().unwrap_or_default();
            kernels.insert(0, Kernels(fast, Gemm::Fast));
        }
        let choice = if computes { &self.self_check } else { &crate::SelfCheck::Off };
        let open =
            |&Kernels(variant, gemm): &Kernels| WgpuBackend::new(&WgpuOptions { variant, gemm, ..options.clone() });
        let device = crate::check::checked(choice, kernels, open, warnings)?;
        warnings.extend(missing.map(|reason| nothing_faster(&device.caps().device, reason)));
        Ok(device)
    }
}

/// Kernels of an adapter, for people.
#[cfg(feature = "wgpu")]
struct Kernels(anyfleet_wgpu::Variant, Gemm);

#[cfg(feature = "wgpu")]
impl std::fmt::Display for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            Gemm::Invariant => write!(f, "{}", self.0),
            Gemm::Fast => write!(f, "{} fast", self.0),
        }
    }
}

/// Why a device of another build cannot be used.
#[cfg(not(all(feature = "cpu", feature = "cuda", feature = "wgpu")))]
fn absent(backend: &str) -> Error {
    Error::Device(format!(
        "this build has no {backend} backend; enable the feature \"{backend}\" of the crate anyfleet, or use another device"
    ))
}

/// The warning where [`Gemm::Fast`] was asked for in vain.
fn nothing_faster(device: &str, reason: &str) -> String {
    format!("gemm fast changes nothing on {device}: {reason}")
}
