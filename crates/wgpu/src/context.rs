//! The device, its queue, compiled kernels, and commands that are not submitted yet.
use crate::adapter::AdapterDescription;
use crate::disk::Compiled;
use crate::encoder::Range;
use crate::matrices::Matrices;
use crate::{Variant, WgpuOptions};
use anyfleet_tensor::{Error, Gemm, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often something happened since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WgpuCounts {
    /// Submissions to the device's queue.
    pub submits: u64,
    /// Buffers made.
    pub buffers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bind groups made.
    pub bind_groups: u64,
    /// Kernels compiled.
    pub pipelines: u64,
    /// Kernels run.
    pub dispatches: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) submits: AtomicU64,
    pub(crate) buffers: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) bind_groups: AtomicU64,
    pub(crate) pipelines: AtomicU64,
    pub(crate) dispatches: AtomicU64,
}

impl Counters {
    pub(crate) fn now(&self) -> WgpuCounts {
        WgpuCounts {
            submits: self.submits.load(Relaxed),
            buffers: self.buffers.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            bind_groups: self.bind_groups.load(Relaxed),
            pipelines: self.pipelines.load(Relaxed),
            dispatches: self.dispatches.load(Relaxed),
        }
    }
}

pub(crate) struct Context {
    pub(crate) adapter: AdapterDescription,
    pub(crate) variant: Variant,
    /// What products of many rows run on, where that is asked for.
    pub(crate) matrices: Option<Matrices>,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) limits: wgpu::Limits,
    pub(crate) counters: Counters,
    compiled: Option<Compiled>,
    /// The first failure that no call returned.
    failure: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    commands: Mutex<Option<wgpu::CommandEncoder>>,
    /// The last submission.
    submitted: Mutex<Option<wgpu::SubmissionIndex>>,
    /// What the plans since the last submission are given, and those of that submission.
    bound: Mutex<[Vec<Arc<[Range]>>; 2]>,
    /// What operations keep between two of their kernels; all use the same.
    scratch: Mutex<Option<Arc<wgpu::Buffer>>>,
    /// Buffers that transfers to the host go through, kept from step to step.
    staging: Mutex<Vec<wgpu::Buffer>>,
}

/// A compiled kernel and the layout of what it is given.
pub(crate) struct Pipeline {
    pub(crate) raw: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// What a driver says in many lines.
fn one_line(error: impl std::fmt::Display) -> String {
    let text = error.to_string();
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Context {
    pub(crate) fn new(
        adapter: &wgpu::Adapter,
        description: AdapterDescription,
        options: &WgpuOptions,
    ) -> Result<Context> {
        let limits = adapter.limits();
        let variant = match options.variant.subgroups() {
            true => wgpu::Features::SUBGROUP,
            false => wgpu::Features::empty(),
        };
        let matrices = match options.gemm {
            Gemm::Invariant => None,
            Gemm::Fast => {
                let none = "kernels that multiply bytes have none";
                let matrices = if options.variant.has_fast() { Matrices::of(adapter) } else { Err(none) };
                Some(matrices.map_err(|reason| Error::Device {
                    device: format!("{} ({})", description.name, description.driver),
                    reason: format!("there is no fast gemm: {reason}"),
                })?)
            }
        };
        let matrix = if matrices.is_some() { Matrices::FEATURES } else { wgpu::Features::empty() };
        // SAFETY: the only experimental feature asked for is matrix units. Their kernels load and store within arrays of
        // the workgroup, at places that do not depend on data.
        let experimental = matrices.map(|_| unsafe { wgpu::ExperimentalFeatures::enabled() });
        let cache = adapter.features() & wgpu::Features::PIPELINE_CACHE;
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("anyfleet"),
            required_features: variant
                | matrix
                | if options.compiled.is_some() { cache } else { wgpu::Features::empty() },
            required_limits: limits.clone(),
            experimental_features: experimental.unwrap_or_default(),
            ..Default::default()
        });
        let (device, queue) = pollster::block_on(request).map_err(|e| Error::Device {
            device: format!("{} ({})", description.name, description.driver),
            reason: format!("the driver gives no device: {}", one_line(e)),
        })?;
        let compiled = options.compiled.as_deref().and_then(|folder| Compiled::open(adapter, &device, folder));
        let failure: Arc<Mutex<Option<String>>> = Arc::default();
        let (uncaptured, lost) = (failure.clone(), failure.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            lock(&uncaptured).get_or_insert(one_line(error));
        }));
        device.set_device_lost_callback(move |reason, text| {
            lock(&lost).get_or_insert(format!("the device was lost ({reason:?}): {}", one_line(text)));
        });
        Ok(Context {
            adapter: description,
            variant: options.variant,
            matrices,
            device,
            queue,
            limits,
            counters: Counters::default(),
            compiled,
            failure,
            pipelines: Mutex::default(),
            commands: Mutex::default(),
            submitted: Mutex::default(),
            bound: Mutex::default(),
            scratch: Mutex::default(),
            staging: Mutex::default(),
        })
    }

    /// Adapter and driver, for messages.
    pub(crate) fn name(&self) -> String {
        format!("{} ({})", self.adapter.name, self.adapter.driver)
    }

    pub(crate) fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::Device { device: self.name(), reason: one_line(reason) }
    }

    /// The failure of an earlier call, if there was one.
    pub(crate) fn check(&self) -> Result<()> {
        match &*lock(&self.failure) {
            Some(reason) => Err(self.error(format!("{reason}; build the engine again"))),
            None => Ok(()),
        }
    }

    /// A buffer of at least `bytes` bytes.
    pub(crate) fn buffer(&self, bytes: usize, usage: wgpu::BufferUsages, what: &str) -> Result<wgpu::Buffer> {
        let out_of_memory = || Error::OutOfMemory { device: self.name(), bytes, what: what.to_owned() };
        let size = (bytes.max(4) as u64).next_multiple_of(4);
        if size > self.limits.max_buffer_size {
            return Err(out_of_memory());
        }
        self.counters.buffers.fetch_add(1, Relaxed);
        self.counters.bytes.fetch_add(size, Relaxed);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            Some(_) => Err(out_of_memory()),
            None => Ok(buffer),
        }
    }

    /// The kernel of this name, compiled when it is asked for first. `bindings`: number, and whether written to.
    pub(crate) fn pipeline(
        &self,
        key: &str,
        source: impl FnOnce() -> String,
        bindings: &[(u32, bool)],
    ) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(key) {
            return Ok(pipeline.clone());
        }
        self.counters.pipelines.fetch_add(1, Relaxed);
        let storage = |read_only| wgpu::BufferBindingType::Storage { read_only };
        let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform), entry(1, storage(true))];
        entries.extend(bindings.iter().map(|&(binding, written)| entry(binding, storage(!written))));
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: Some(key),
            source: wgpu::ShaderSource::Wgsl(source().into()),
        });
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(key), entries: &entries });
        let whole = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(key),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(key),
            layout: Some(&whole),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: self.compiled.as_ref().map(Compiled::cache),
        });
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(self.error(format!("kernel {key} does not compile: {error}")));
        }
        let pipeline = Arc::new(Pipeline { raw, layout });
        lock(&self.pipelines).insert(key.to_owned(), pipeline.clone());
        Ok(pipeline)
    }

    /// Adds commands to those that the next submission takes.
    pub(crate) fn encode(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut pending = lock(&self.commands);
        commands(pending.get_or_insert_with(|| {
            self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") })
        }));
    }

    /// Submits what is pending.
    pub(crate) fn submit(&self) -> Result<()> {
        if let Some(encoder) = lock(&self.commands).take() {
            self.counters.submits.fetch_add(1, Relaxed);
            *lock(&self.submitted) = Some(self.queue.submit([encoder.finish()]));
            if let Some(compiled) = &self.compiled {
                compiled.keep(self.counters.pipelines.load(Relaxed));
            }
            let [waiting, submitted] = &mut *lock(&self.bound);
            std::mem::swap(waiting, submitted);
            waiting.clear();
        }
        self.check()
    }

    /// What can be waited for instead of everything; `None` before the first.
    pub(crate) fn last_submission(&self) -> Option<wgpu::SubmissionIndex> {
        lock(&self.submitted).clone()
    }

    /// Notes what a plan is given.
    pub(crate) fn note(&self, ranges: &Arc<[Range]>, dispatches: usize) {
        self.counters.dispatches.fetch_add(dispatches as u64, Relaxed);
        lock(&self.bound)[0].push(ranges.clone());
    }

    /// Bytes that the plans of the last submission were given, each counted once.
    pub(crate) fn bound_bytes(&self) -> u64 {
        let mut by_buffer: HashMap<usize, Vec<(u64, u64)>> = HashMap::new();
        for range in lock(&self.bound)[1].iter().flat_map(|ranges| ranges.iter()) {
            let ends = (range.offset, range.offset + range.size);
            by_buffer.entry(Arc::as_ptr(&range.buffer) as usize).or_default().push(ends);
        }
        let mut bytes = 0;
        for ranges in by_buffer.values_mut() {
            ranges.sort_unstable();
            let mut covered = 0;
            for &(start, end) in &*ranges {
                bytes += end.saturating_sub(start.max(covered));
                covered = covered.max(end);
            }
        }
        bytes
    }

    /// At least `bytes` bytes that keep what is written until the next operation.
    pub(crate) fn scratch(&self, bytes: usize) -> Result<Range> {
        let bytes = bytes.next_multiple_of(16).max(16);
        let size = bytes as u64;
        let mut scratch = lock(&self.scratch);
        if let Some(buffer) = scratch.as_ref().filter(|buffer| buffer.size() >= size) {
            return Ok(Range { buffer: buffer.clone(), offset: 0, size });
        }
        let buffer = Arc::new(self.buffer(bytes, wgpu::BufferUsages::STORAGE, "scratch")?);
        *scratch = Some(buffer.clone());
        Ok(Range { buffer, offset: 0, size })
    }

    /// A buffer to read `bytes` bytes through.
    pub(crate) fn staging(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let mut free = lock(&self.staging);
        let fits = (0..free.len()).filter(|&i| free[i].size() >= bytes).min_by_key(|&i| free[i].size());
        if let Some(i) = fits {
            return Ok(free.swap_remove(i));
        }
        drop(free);
        self.buffer(bytes as usize, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, "a transfer")
    }

    pub(crate) fn give_back(&self, buffer: wgpu::Buffer) {
        let mut free = lock(&self.staging);
        // Odd sizes come from rows of logits and from tests.
        if free.len() >= 16 {
            free.remove(0);
        }
        free.push(buffer);
    }
}
