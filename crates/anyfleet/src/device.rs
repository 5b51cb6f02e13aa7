//! Devices by name, and what this build and machine have.
use std::fmt;
use std::str::FromStr;

/// Where a model runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The best device of this machine that this build supports.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceSpec::Auto => "auto",
            DeviceSpec::Cpu => "cpu",
        })
    }
}

impl FromStr for DeviceSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(DeviceSpec::Auto),
            "cpu" => Ok(DeviceSpec::Cpu),
            _ => Err(format!("device \"{name}\" is not in this build; available: auto, cpu")),
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

/// Whether weight matrices are kept as integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QuantizeSpec {
    /// As floats of the chosen type.
    #[default]
    None,
    /// A byte a weight with a scale per output feature, activations as bytes with a scale per row.
    Q8,
    /// Four bits a weight with a scale per 32 of them; embedding, head, the attention's output projection and
    /// matrices of at most 64 input features as [`QuantizeSpec::Q8`].
    Q4,
}

impl fmt::Display for QuantizeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            QuantizeSpec::None => "none",
            QuantizeSpec::Q8 => "q8",
            QuantizeSpec::Q4 => "q4",
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
            _ => Err(format!("quantization \"{name}\" is unknown; use none, q8 or q4")),
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
    /// A byte an element with a scale per token and head: about half the memory of bf16.
    I8,
}

impl fmt::Display for KvDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KvDType::Auto => "auto",
            KvDType::F32 => "f32",
            KvDType::Bf16 => "bf16",
            KvDType::F16 => "f16",
            KvDType::I8 => "int8",
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
            _ => Err(format!("KV dtype \"{name}\" is unknown; use auto, int8, bf16, f16 or f32")),
        }
    }
}

/// One device of this machine, or why a kind of device cannot be used.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// What to pass as the device, e.g. `cpu`.
    pub spec: DeviceSpec,
    /// Name for people.
    pub name: String,
    /// Free memory in bytes, where it can be asked.
    pub memory_available: Option<u64>,
    /// Why it cannot be used; `None` when it can.
    pub unavailable: Option<String>,
}

/// Every device this build knows, usable or not.
pub fn list_devices() -> Vec<DeviceInfo> {
    let mut devices = Vec::new();
    #[cfg(feature = "cpu")]
    devices.push(match anyfleet_cpu::CpuBackend::new(anyfleet_cpu::CpuOptions::default()) {
        Ok(cpu) => {
            let caps = anyfleet_tensor::Backend::caps(&cpu);
            let memory_available = caps.memory.available;
            DeviceInfo { spec: DeviceSpec::Cpu, name: caps.device.clone(), memory_available, unavailable: None }
        }
        Err(e) => DeviceInfo {
            spec: DeviceSpec::Cpu,
            name: "cpu".into(),
            memory_available: None,
            unavailable: Some(e.to_string()),
        },
    });
    devices
}
