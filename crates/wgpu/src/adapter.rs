//! Adapters by number and name.
use anyfleet_tensor::{Error, Result};

/// What a machine offers through Vulkan.
#[derive(Clone, Debug)]
pub struct AdapterDescription {
    /// Number, for `wgpu:N`.
    pub index: usize,
    /// The adapter's own name.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// Computes on the CPU: taken only when asked for by name.
    pub software: bool,
    /// Features this backend can use.
    pub features: Vec<&'static str>,
}

impl AdapterDescription {
    fn new(index: usize, adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let features = adapter.features();
        let known = [
            (wgpu::Features::SHADER_F16, "f16"),
            (wgpu::Features::SUBGROUP, "subgroups"),
            (wgpu::Features::SHADER_INT64, "int64"),
            (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
            (wgpu::Features::PIPELINE_CACHE, "pipeline cache"),
            (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrix"),
        ];
        AdapterDescription {
            index,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            features: known.iter().filter(|(feature, _)| features.contains(*feature)).map(|(_, name)| *name).collect(),
            name: info.name,
        }
    }

    /// Whether a user's word means this adapter: its number, or a part of its name or driver.
    fn is_meant_by(&self, word: &str) -> bool {
        let word = word.to_lowercase();
        match word.parse::<usize>() {
            Ok(index) => index == self.index,
            Err(_) => self.name.to_lowercase().contains(&word) || self.driver.to_lowercase().contains(&word),
        }
    }
}

/// Vulkan for computing: without the extensions for windows, for which a layer of Mesa asks a display server and
/// complains on standard error where there is none.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
pub(crate) fn instance() -> wgpu::Instance {
    use wgpu::hal::{InstanceDescriptor, api::Vulkan, vulkan};
    let defaults = descriptor();
    let descriptor = InstanceDescriptor {
        name: "anyfleet",
        flags: defaults.flags,
        memory_budget_thresholds: defaults.memory_budget_thresholds,
        backend_options: defaults.backend_options,
        telemetry: None,
        display: None,
    };
    let without_windows = |args: vulkan::CreateInstanceCallbackArgs<'_, '_, '_>| {
        args.extensions.retain(|name| !name.to_bytes().ends_with(b"_surface"));
    };
    // SAFETY: what is left out is for surfaces alone, which nobody makes; nothing is added.
    match unsafe { vulkan::Instance::init_with_callback(&descriptor, Some(Box::new(without_windows))) } {
        // SAFETY: it was made just now, and belongs to nobody else.
        Ok(instance) => unsafe { wgpu::Instance::from_hal::<Vulkan>(instance) },
        // It will say that it has no adapters.
        Err(_) => wgpu::Instance::new(self::descriptor()),
    }
}

#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
pub(crate) fn instance() -> wgpu::Instance {
    wgpu::Instance::new(descriptor())
}

/// Whether `dot4I8Packed` is one instruction of the shaders that wgpu makes for this adapter. wgpu has no feature for it:
/// wgpu-hal uses the instruction where Vulkan 1.3 or the extension promises it. Whether the hardware has it too, Vulkan
/// says in a property that wgpu does not read. A driver without it takes the four products apart, which is about what
/// kernels for floats do to get at the bytes, so that this variant should lose little where it gains nothing.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
pub(crate) fn multiplies_bytes(adapter: &wgpu::Adapter) -> bool {
    const VULKAN_1_3: u32 = 1 << 22 | 3 << 12;
    // SAFETY: it is looked at, and neither kept nor destroyed.
    let Some(adapter) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else { return false };
    let offered = adapter.physical_device_capabilities();
    offered.properties().api_version >= VULKAN_1_3 || offered.supports_extension(c"VK_KHR_shader_integer_dot_product")
}

#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
pub(crate) fn multiplies_bytes(_: &wgpu::Adapter) -> bool {
    false
}

fn descriptor() -> wgpu::InstanceDescriptor {
    wgpu::InstanceDescriptor {
        backends: wgpu::Backends::VULKAN,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    }
}

fn found(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN))
}

/// All adapters, in the order of their numbers.
pub fn adapters() -> Vec<AdapterDescription> {
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| AdapterDescription::new(index, adapter);
    found(&instance()).iter().enumerate().map(describe).collect()
}

/// The adapter that `word` means: a number, part of a name; without one the first that is not software.
pub(crate) fn choose(instance: &wgpu::Instance, word: Option<&str>) -> Result<(wgpu::Adapter, AdapterDescription)> {
    let all: Vec<_> = found(instance)
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| {
            let description = AdapterDescription::new(index, &adapter);
            (adapter, description)
        })
        .collect();
    let names = all.iter().map(|(_, d)| format!("wgpu:{} {} ({})", d.index, d.name, d.driver)).collect::<Vec<_>>();
    let reason = match (word, names.is_empty()) {
        (_, true) => "no Vulkan adapter; install a Vulkan driver, or use another device".to_owned(),
        (Some(word), _) => format!("no adapter is meant by \"{word}\"; there are {}", names.join(", ")),
        (None, _) => format!(
            "the only adapters compute on the CPU, which the cpu backend does faster; name one to use it all the same: {}",
            names.join(", ")
        ),
    };
    let wanted = |d: &AdapterDescription| word.map_or(!d.software, |word| d.is_meant_by(word));
    all.into_iter().find(|(_, d)| wanted(d)).ok_or(Error::Device { device: "wgpu".into(), reason })
}
