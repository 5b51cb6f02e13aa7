//! The backend.
use crate::adapter;
use crate::context::{Context, WgpuCounts};
use crate::encoder::WgpuRecorder;
use crate::matrices::Matrices;
use crate::ops::linear;
use crate::weight::{self, WgpuWeight};
use crate::{AdapterDescription, WgpuBuffer, WgpuPlan, ops};
use anyfleet_tensor::{
    Backend, Caps, DType, DeviceMemory, Encoder, Error, Gemm, HostWeight, Identity, Operand, Readback, Result,
    StepSizes, Tensor, WeightFormat,
};
use std::path::PathBuf;
use std::sync::Arc;

/// What the operator chose.
#[derive(Clone, Debug, Default)]
pub struct WgpuOptions {
    /// Number of an adapter or a part of its name; without one the first that is not software.
    pub adapter: Option<String>,
    /// Bytes of device memory to plan with: Vulkan through wgpu does not say how much there is.
    pub memory: Option<u64>,
    /// Which kernels.
    pub variant: Variant,
    /// Whether products of many rows run on matrix units, which must be there then.
    pub gemm: Gemm,
    /// Folder where compiled kernels are kept for the next start; nowhere without one.
    pub compiled: Option<PathBuf>,
}

/// Kernels for what adapters may offer beside what all have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Variant {
    /// What every adapter computes.
    #[default]
    Portable,
    /// Sums and maxima over the lanes of a subgroup.
    Subgroups,
    /// Beside these, products of four bytes at a time: q8 and q4 weights times activations that are bytes, as on the CPU.
    Packed,
}

impl Variant {
    /// Whether kernels use subgroups.
    pub(crate) fn subgroups(self) -> bool {
        matches!(self, Variant::Subgroups | Variant::Packed)
    }

    /// Whether there is a [`Gemm::Fast`] of it: matrix units take f16 whatever the rows, bytes would be a third kind.
    pub fn has_fast(self) -> bool {
        !self.packed()
    }

    /// Whether activations become bytes where they meet integer weights.
    pub(crate) fn packed(self) -> bool {
        self == Variant::Packed
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Variant::Portable => "portable",
            Variant::Subgroups => "subgroups",
            Variant::Packed => "packed",
        })
    }
}

impl std::str::FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Variant, String> {
        [Variant::Portable, Variant::Subgroups, Variant::Packed]
            .into_iter()
            .find(|variant| variant.to_string() == name)
            .ok_or_else(|| format!("variant {name} does not exist; use portable, subgroups or packed"))
    }
}

/// Bytes of workgroup memory that `linear_packed.wgsl` takes, and a little more; 16 KiB are all that WebGPU promises.
const PACKED_ROOM: u32 = 20 << 10;

/// One adapter.
pub struct WgpuBackend {
    context: Arc<Context>,
    caps: Caps,
}

impl WgpuBackend {
    /// Opens an adapter.
    ///
    /// # Errors
    /// One line that says why there is none, or why it cannot be used.
    pub fn new(options: &WgpuOptions) -> Result<WgpuBackend> {
        let instance = adapter::instance();
        let (adapter, description) = adapter::choose(&instance, options.adapter.as_deref())?;
        let context = Arc::new(Context::new(&adapter, description, options)?);
        let floats = [DType::BF16, DType::F16, DType::F32];
        let quantized = [WeightFormat::Q8, WeightFormat::Q4];
        let weights = floats.map(WeightFormat::Float).into_iter();
        let weights: Vec<_> = weights.chain(quantized).chain([WeightFormat::F8]).collect();
        let limits = &context.limits;
        let fast = context.matrices.is_some();
        let kernels = if fast { format!("{} fast", options.variant) } else { options.variant.to_string() };
        let caps = Caps {
            device: format!("wgpu:{} {} ({})", context.adapter.index, context.adapter.name, context.adapter.driver),
            identity: Identity {
                adapter: context.adapter.name.clone(),
                driver: context.adapter.driver.clone(),
                kernels: anyfleet_kernels::wgsl::hash(),
            },
            numerics: format!("wgpu-f32-1 {kernels} {} {}", context.adapter.name, context.adapter.driver),
            activations: vec![DType::F32],
            operands: match (fast, options.variant.packed()) {
                (true, _) => weights.iter().map(|&format| (format, Operand::Halves)).collect(),
                (false, true) => quantized.map(|format| (format, Operand::Bytes)).to_vec(),
                (false, false) => Vec::new(),
            },
            operand_rows: if fast { linear::TILE.0 } else { 0 },
            grouped_operands: Vec::new(),
            invariant: !fast,
            weights,
            attention_operands: Vec::new(),
            kv: vec![DType::BF16, DType::F16, DType::F32, DType::I8, DType::F8],
            latent: [floats.as_slice(), &[DType::F8]].concat(),
            page_size: 16,
            memory: DeviceMemory { total: options.memory, available: options.memory },
            max_buffer: Some(limits.max_buffer_size.min(limits.max_storage_buffer_binding_size)),
            queued: true,
        };
        Ok(WgpuBackend { context, caps })
    }

    /// The variants that an adapter offers, fastest first and the safe one last.
    ///
    /// # Errors
    /// As [`WgpuBackend::new`].
    pub fn variants(options: &WgpuOptions) -> Result<Vec<Variant>> {
        let (adapter, _) = adapter::choose(&adapter::instance(), options.adapter.as_deref())?;
        let subgroups = adapter.features().contains(wgpu::Features::SUBGROUP).then_some(Variant::Subgroups);
        let room = adapter.limits().max_compute_workgroup_storage_size >= PACKED_ROOM;
        let packed = subgroups.filter(|_| room && adapter::multiplies_bytes(&adapter)).and(Some(Variant::Packed));
        Ok(packed.into_iter().chain(subgroups).chain([Variant::Portable]).collect())
    }

    /// What [`Gemm::Fast`] lacks on an adapter; nothing where it can be used.
    ///
    /// # Errors
    /// As [`WgpuBackend::new`].
    pub fn missing_for_fast(options: &WgpuOptions) -> Result<Option<&'static str>> {
        let (adapter, _) = adapter::choose(&adapter::instance(), options.adapter.as_deref())?;
        Ok(Matrices::of(&adapter).err())
    }

    /// The adapter it uses.
    pub fn adapter(&self) -> &AdapterDescription {
        &self.context.adapter
    }

    /// What happened so far.
    pub fn counts(&self) -> WgpuCounts {
        self.context.counters.now()
    }

    /// Bytes of device memory that the kernels of the last submission were given, each counted once.
    pub fn bound_bytes(&self) -> u64 {
        self.context.bound_bytes()
    }

    /// Seconds that `times` copies of `bytes` bytes take on the device, one after the other: what its memory can do at
    /// best.
    ///
    /// # Errors
    /// Out of memory for two buffers of that size, or a failure of the device.
    pub fn copy_seconds(&self, bytes: usize, times: usize) -> Result<f64> {
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let [from, to] = [self.context.buffer(bytes, usage, "a copy")?, self.context.buffer(bytes, usage, "a copy")?];
        self.context.submit()?;
        let wait = || self.context.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| self.context.error(e));
        wait()?;
        let start = std::time::Instant::now();
        for _ in 0..times {
            self.context.encode(|encoder| encoder.copy_buffer_to_buffer(&from, 0, &to, 0, from.size()));
        }
        self.context.submit()?;
        wait()?;
        self.context.check()?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Gives the device back to the driver at once. Whatever is done with it afterwards fails, as after a fault of the
    /// hardware; another backend can be opened.
    pub fn destroy(&self) {
        self.context.device.destroy();
    }

    fn recorded(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<WgpuPlan> {
        let mut recorder = WgpuRecorder::new(self.context.clone());
        let mut encoder = Encoder::new(self, &mut recorder);
        record(&mut encoder);
        encoder.finish()?;
        recorder.finish()
    }

    /// Writes bytes that begin or end inside a word: the word's other bytes stay.
    fn write_odd(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        let (start, end) = (dst.offset(), dst.offset() + bytes.len());
        let (first, last) = (start / 4 * 4, end.next_multiple_of(4));
        let whole = Tensor::from_buffer_at(dst.buffer().clone(), first, DType::U8, &[last - first]);
        let mut words = vec![0; last - first];
        self.read(&whole)?.wait(&mut words)?;
        words[start - first..end - first].copy_from_slice(bytes);
        self.context.queue.write_buffer(&dst.buffer().raw, first as u64, &words);
        Ok(())
    }
}

/// A copy on its way to the host.
pub struct WgpuReadback {
    context: Arc<Context>,
    /// The buffer it goes to, where in it, and how many bytes; nothing for an empty tensor.
    staging: Option<wgpu::Buffer>,
    /// What it was submitted with; later ones need not be waited for.
    submission: Option<wgpu::SubmissionIndex>,
    skip: usize,
    len: usize,
}

impl Readback for WgpuReadback {
    fn wait(mut self, out: &mut [u8]) -> Result<()> {
        if out.len() != self.len {
            return Err(Error::Transfer { op: "read", host: out.len(), tensor: self.len });
        }
        let Some(staging) = self.staging.take() else { return Ok(()) };
        staging.map_async(wgpu::MapMode::Read, .., |_| {});
        let wait = wgpu::PollType::Wait { submission_index: self.submission.take(), timeout: None };
        let waited = self.context.device.poll(wait);
        if waited.is_err() {
            // A lost device took no submission, and says what happened while it is waited for as a whole.
            let _ = self.context.device.poll(wgpu::PollType::wait_indefinitely());
        }
        self.context.check()?;
        waited.map_err(|e| self.context.error(e))?;
        let view = staging.get_mapped_range(..).map_err(|e| self.context.error(e))?;
        out.copy_from_slice(&view[self.skip..self.skip + self.len]);
        drop(view);
        staging.unmap();
        self.context.give_back(staging);
        Ok(())
    }
}

impl Backend for WgpuBackend {
    type Buffer = WgpuBuffer;
    type Weight = WgpuWeight;
    type Recorder = WgpuRecorder;
    type Plan = WgpuPlan;
    type Readback = WgpuReadback;

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<WgpuBuffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        // Kernels and copies take words.
        Ok(WgpuBuffer::new(self.context.buffer(bytes.next_multiple_of(4), usage, "a tensor")?, bytes))
    }

    fn load(&self, weight: HostWeight<'_>) -> Result<WgpuWeight> {
        WgpuWeight::load(&self.context, &weight)
    }

    fn weight_shape(weight: &WgpuWeight) -> (usize, usize) {
        (weight.rows(), weight.cols())
    }

    fn weight_stack(weight: &WgpuWeight) -> usize {
        weight.stack()
    }

    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize {
        weight::bytes(&self.context, rows, cols, store)
    }

    fn scratch_bytes(&self, sizes: &StepSizes) -> usize {
        let halves = self.context.matrices.map_or(0, |_| ops::linear_matrix::scratch_bytes(sizes));
        let (attention, sample) = (ops::attention::scratch_bytes(sizes), ops::sample::scratch_bytes(sizes));
        let bytes = [attention, sample, ops::route::scratch_bytes(sizes), halves];
        bytes.into_iter().max().unwrap_or(0).next_multiple_of(16)
    }

    fn reserve(&self, sizes: &StepSizes) -> Result<()> {
        self.context.scratch(self.scratch_bytes(sizes)).map(drop)
    }

    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        if bytes.len() > dst.bytes() {
            return Err(Error::Transfer { op: "write", host: bytes.len(), tensor: dst.bytes() });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        // Writes come before everything that is submitted after them.
        self.context.submit()?;
        if !dst.offset().is_multiple_of(4) || !bytes.len().is_multiple_of(4) {
            return self.write_odd(dst, bytes);
        }
        self.context.queue.write_buffer(&dst.buffer().raw, dst.offset() as u64, bytes);
        Ok(())
    }

    fn read(&self, src: &Tensor<Self>) -> Result<WgpuReadback> {
        let (skip, len) = (src.offset() % 4, src.bytes());
        let mut readback = WgpuReadback { context: self.context.clone(), staging: None, submission: None, skip, len };
        if len == 0 {
            return Ok(readback);
        }
        let bytes = (skip + len).next_multiple_of(4) as u64;
        let staging = self.context.staging(bytes)?;
        let (raw, first) = (&src.buffer().raw, (src.offset() - skip) as u64);
        self.context.encode(|encoder| encoder.copy_buffer_to_buffer(raw, first, &staging, 0, bytes));
        self.context.submit()?;
        (readback.staging, readback.submission) = (Some(staging), self.context.last_submission());
        Ok(readback)
    }

    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()> {
        let plan = self.recorded(record)?;
        self.replay(&plan)
    }

    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<WgpuPlan> {
        self.recorded(record)
    }

    fn replay(&self, plan: &WgpuPlan) -> Result<()> {
        self.context.check()?;
        plan.encode(&self.context);
        Ok(())
    }
}
