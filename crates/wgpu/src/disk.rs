//! Compiled kernels on disk, where the driver gives them out.
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Larger files are none of ours.
const LARGEST: u64 = 256 << 20;

/// A driver's compiled kernels and the file they are kept in.
pub(crate) struct Compiled {
    cache: wgpu::PipelineCache,
    file: PathBuf,
    /// Kernels that were compiled when the file was written last.
    kept: Mutex<u64>,
}

impl Compiled {
    /// Takes what the file of this adapter in `folder` has. Nothing where the driver gives nothing out.
    pub(crate) fn open(adapter: &wgpu::Adapter, device: &wgpu::Device, folder: &Path) -> Option<Compiled> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let name = wgpu::util::pipeline_cache_key(&adapter.get_info())?;
        let file = folder.join(format!("{name}.bin"));
        let small = std::fs::metadata(&file).is_ok_and(|file| file.len() <= LARGEST);
        let data = small.then(|| std::fs::read(&file).ok()).flatten();
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("kernels"), data: data.as_deref(), fallback: true };
        // SAFETY: the bytes are those of a call of `get_data`, as far as the user's cache folder can be trusted: wgpu
        // checks their header against the adapter and driver, and `fallback` drops those that do not match.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Compiled { cache, file, kept: Mutex::new(0) })
    }

    pub(crate) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the file, if kernels were compiled since. That it cannot be written costs the next start some time.
    pub(crate) fn keep(&self, compiled: u64) {
        let mut kept = crate::context::lock(&self.kept);
        if *kept == compiled {
            return;
        }
        *kept = compiled;
        let Some(data) = self.cache.get_data() else { return };
        let draft = self.file.with_extension(format!("{}.tmp", std::process::id()));
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let written = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&draft, data))
            .and_then(|()| std::fs::rename(&draft, &self.file));
        if let Err(e) = written {
            tracing::debug!("compiled kernels are not kept: {}: {e}", self.file.display());
        }
    }
}
