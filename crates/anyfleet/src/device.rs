//! Devices by name, and what this build and machine have.
use crate::Split;
use std::fmt;
use std::str::FromStr;

/// Where a model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The first NVIDIA GPU that can be used, else the CPU. Vulkan's adapters are taken by name only.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An adapter of Vulkan: its number, or a part of its name or driver; without either the first that is not
    /// software.
    Wgpu(Option<String>),
    /// An NVIDIA GPU: its number, or a part of its name; without either the first. `emulated`, in builds with the
    /// feature `emulate`, runs its kernels on the CPU, slowly: for tests.
    Cuda(Option<String>),
    /// Several, which run one model together.
    Split(Split),
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Auto => f.write_str("auto"),
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Wgpu(None) => f.write_str("wgpu"),
            DeviceSpec::Wgpu(Some(adapter)) => write!(f, "wgpu:{adapter}"),
            DeviceSpec::Cuda(None) => f.write_str("cuda"),
            DeviceSpec::Cuda(Some(device)) => write!(f, "cuda:{device}"),
            DeviceSpec::Split(split) => write!(f, "{split}"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if Split::is_meant(name) {
            return name.parse().map(DeviceSpec::Split);
        }
        match name.split_once(':').unwrap_or((name, "")) {
            ("auto", "") => Ok(DeviceSpec::Auto),
            ("cpu", "") => Ok(DeviceSpec::Cpu),
            ("wgpu", "") => Ok(DeviceSpec::Wgpu(None)),
            ("wgpu", adapter) => Ok(DeviceSpec::Wgpu(Some(adapter.to_owned()))),
            ("cuda", "") => Ok(DeviceSpec::Cuda(None)),
            ("cuda", device) => Ok(DeviceSpec::Cuda(Some(device.to_owned()))),
            _ => Err(format!(
                "device \"{name}\" does not exist; use auto, cpu, cuda, cuda:DEVICE, wgpu or wgpu:ADAPTER, or see \
                 --list-devices"
            )),
        }
    }
}

/// Type of weights on the device, and of the KV cache unless [`KvDType`] says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DTypeSpec {
    /// The type most of the checkpoint's weights have.
    #[default]
    Auto,
    /// IEEE binary32: the exact mode.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

impl fmt::Display for DTypeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DTypeSpec::Auto => "auto",
            DTypeSpec::F32 => "f32",
            DTypeSpec::Bf16 => "bf16",
            DTypeSpec::F16 => "f16",
        })
    }
}

impl FromStr for DTypeSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(DTypeSpec::Auto),
            "f32" => Ok(DTypeSpec::F32),
            "bf16" => Ok(DTypeSpec::Bf16),
            "f16" => Ok(DTypeSpec::F16),
            _ => Err(format!("dtype \"{name}\" is unknown; use auto, bf16, f16 or f32")),
        }
    }
}

/// Whether weight matrices are kept narrower than floats of 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantizeSpec {
    /// As floats of the chosen type. With [`DTypeSpec::Auto`], what a checkpoint has in eight bits stays so
    /// ([`QuantizeSpec::F8`]) where the device keeps that, and is bf16 elsewhere.
    #[default]
    None,
    /// A byte a weight with a scale per output feature, activations as bytes with a scale per row.
    Q8,
    /// Four bits a weight with a scale per 32 of them; embedding, head, the attention's output projection and
    /// matrices of at most 64 input features as [`QuantizeSpec::Q8`].
    Q4,
    /// A float of eight bits (E4M3) a weight with a scale per output feature and 128 input features; embedding and head, and
    /// what a checkpoint of f8 has as floats, in bf16. Activations are what they are for bf16.
    F8,
}

impl fmt::Display for QuantizeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantizeSpec::None => "none",
            QuantizeSpec::Q8 => "q8",
            QuantizeSpec::Q4 => "q4",
            QuantizeSpec::F8 => "f8",
        })
    }
}

impl FromStr for QuantizeSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(QuantizeSpec::None),
            "q8" => Ok(QuantizeSpec::Q8),
            "q4" => Ok(QuantizeSpec::Q4),
            "f8" => Ok(QuantizeSpec::F8),
            _ => Err(format!("quantization \"{name}\" is unknown; use none, q8, q4 or f8")),
        }
    }
}

/// Type of keys and values in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// That of the weights, before they are quantized.
    #[default]
    Auto,
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// A byte an element with a scale per token and head: about half the memory of bf16. Not for latents.
    I8,
    /// Floats of eight bits (E4M3) without scales: half the memory of bf16, three bits of mantissa, magnitudes up to 448.
    F8,
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvDType::Auto => "auto",
            KvDType::F32 => "f32",
            KvDType::Bf16 => "bf16",
            KvDType::F16 => "f16",
            KvDType::I8 => "int8",
            KvDType::F8 => "fp8",
        })
    }
}

impl FromStr for KvDType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(KvDType::Auto),
            "f32" => Ok(KvDType::F32),
            "bf16" => Ok(KvDType::Bf16),
            "f16" => Ok(KvDType::F16),
            "int8" => Ok(KvDType::I8),
            "fp8" => Ok(KvDType::F8),
            _ => Err(format!("KV dtype \"{name}\" is unknown; use auto, int8, fp8, bf16, f16 or f32")),
        }
    }
}

/// One device of this machine, or why a kind of device cannot be used.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// What to pass as the device, e.g. `cpu`.
    pub spec: DeviceSpec,
    /// Name for people, with the driver where there is one.
    pub name: String,
    /// What it offers beyond what every device does.
    pub features: Vec<&'static str>,
    /// Free memory in bytes, where it can be asked.
    pub memory_available: Option<u64>,
    /// Why it cannot be used; `None` when it can.
    pub unavailable: Option<String>,
}

impl DeviceInfo {
    fn absent(spec: DeviceSpec, reason: impl Into<String>) -> DeviceInfo {
        let name = spec.to_string();
        DeviceInfo { spec, name, features: Vec::new(), memory_available: None, unavailable: Some(reason.into()) }
    }
}

/// Every device this build knows, usable or not.
pub fn list_devices() -> Vec<DeviceInfo> {
    let mut devices = Vec::new();
    #[cfg(feature = "cpu")]
    devices.push(match anyfleet_cpu::CpuBackend::new(anyfleet_cpu::CpuOptions::default()) {
        Ok(cpu) => {
            let caps = anyfleet_tensor::Backend::caps(&cpu);
            DeviceInfo {
                spec: DeviceSpec::Cpu,
                name: caps.device.clone(),
                features: Vec::new(),
                memory_available: caps.memory.available,
                unavailable: None,
            }
        }
        Err(e) => DeviceInfo::absent(DeviceSpec::Cpu, e.to_string()),
    });
    #[cfg(not(feature = "cpu"))]
    devices.push(DeviceInfo::absent(DeviceSpec::Cpu, "this build has no CPU backend (cargo feature cpu)"));
    devices.extend(cuda_devices());
    devices.extend(wgpu_devices());
    devices
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<DeviceInfo> {
    let devices = match anyfleet_cuda::devices() {
        Ok(devices) => devices,
        Err(reason) => return vec![DeviceInfo::absent(DeviceSpec::Cuda(None), reason)],
    };
    let describe = |device: anyfleet_cuda::CudaDevice| DeviceInfo {
        spec: DeviceSpec::Cuda(Some(device.index.to_string())),
        name: format!("{} ({})", device.name, device.driver),
        features: Vec::new(),
        memory_available: Some(device.memory),
        unavailable: device.unusable(),
    };
    devices.into_iter().map(describe).collect()
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Vec<DeviceInfo> {
    vec![DeviceInfo::absent(DeviceSpec::Cuda(None), "this build has no CUDA backend (cargo feature cuda)")]
}

#[cfg(feature = "wgpu")]
fn wgpu_devices() -> Vec<DeviceInfo> {
    let adapters = anyfleet_wgpu::adapters();
    if adapters.is_empty() {
        let reason = "no Vulkan adapter was found; install a Vulkan driver to use a GPU";
        return vec![DeviceInfo::absent(DeviceSpec::Wgpu(None), reason)];
    }
    let describe = |adapter: anyfleet_wgpu::AdapterDescription| DeviceInfo {
        spec: DeviceSpec::Wgpu(Some(adapter.index.to_string())),
        name: format!("{} ({})", adapter.name, adapter.driver),
        features: adapter.software.then_some("computes on the CPU").into_iter().chain(adapter.features).collect(),
        memory_available: None,
        unavailable: None,
    };
    adapters.into_iter().map(describe).collect()
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_devices() -> Vec<DeviceInfo> {
    vec![DeviceInfo::absent(DeviceSpec::Wgpu(None), "this build has no wgpu backend (cargo feature wgpu)")]
}
