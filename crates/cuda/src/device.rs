//! The backend.
use crate::driver::Driver;
use crate::driver::Transfer;
use crate::driver::fake::{FakeDriver, Recorded};
use crate::warpgroups::Warpgroups;
use crate::{CudaBuffer, CudaPlan, CudaRecorder, CudaWeight, communicator, ops, weight};
use anyfleet_tensor::{
    Backend, Caps, Communicator, DType, Encoder, Error, Gemm, HostWeight, Identity, Operand, Readback, Result,
    StepSizes, Tensor, WeightFormat,
};
use std::sync::{Arc, Mutex, PoisonError};

/// What the operator chose.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Number of the device or a part of its name; without one the first that can be used.
    pub device: Option<String>,
    /// Folder where compiled kernels are kept for the next start; nowhere without one.
    pub compiled: Option<std::path::PathBuf>,
    /// How products of many rows with bf16, f16 and f8 weights are computed: with [`Gemm::Fast`] by cuBLASLt, in whatever order
    /// of sums it chooses.
    pub gemm: Gemm,
    /// Whether products and attention of many rows are of warpgroups (Hopper), with the same bits. `None` takes what the
    /// environment variable `ANYFLEET_CUDA` names, `mma` or `wgmma`, and without it what a device has proven for these kernels.
    pub warpgroups: Option<bool>,
}

/// One device. Cloning shares it.
#[derive(Clone)]
pub struct CudaBackend(Arc<Shared>);

struct Shared {
    driver: Arc<dyn Driver>,
    caps: Caps,
    /// What operations keep between two of their kernels; all use the same.
    scratch: Mutex<Option<CudaBuffer>>,
}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// One line that says why there is none, or why it cannot be used.
    pub fn new(options: &CudaOptions) -> Result<CudaBackend> {
        crate::driver::probe::open(options).map(CudaBackend::over)
    }

    /// What [`Gemm::Fast`] lacks on a device: a line that names the library that was looked for. Nothing where it can be
    /// used.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn missing_for_fast(options: &CudaOptions) -> Result<Option<String>> {
        crate::driver::probe::missing_for_fast(options)
    }

    /// A device that computes nothing and writes down what it is asked for.
    pub fn recording() -> (CudaBackend, Recorded) {
        CudaBackend::recording_with(&CudaOptions::default())
    }

    /// The same with what `options` say of products and attention.
    pub fn recording_with(options: &CudaOptions) -> (CudaBackend, Recorded) {
        let driver = FakeDriver::new(options);
        let recorded = driver.recorded.clone();
        (CudaBackend::over(Arc::new(driver)), recorded)
    }

    /// A device whose kernels run on this machine's processor.
    ///
    /// # Errors
    /// One line that says what is missing: a C++ compiler.
    #[cfg(feature = "emulate")]
    pub fn emulated() -> Result<CudaBackend> {
        CudaBackend::emulated_with(&CudaOptions::default())
    }

    /// The same with what `options` say of products and attention: the library's products are plain sums.
    ///
    /// # Errors
    /// As [`CudaBackend::emulated`].
    #[cfg(feature = "emulate")]
    pub fn emulated_with(options: &CudaOptions) -> Result<CudaBackend> {
        Ok(CudaBackend::over(Arc::new(crate::driver::emulated::EmulatedDriver::new(options)?)))
    }

    fn over(driver: Arc<dyn Driver>) -> CudaBackend {
        let description = driver.description();
        let floats = [DType::BF16, DType::F16, DType::F32];
        let quantized = [WeightFormat::Q8, WeightFormat::Q4];
        let narrow = [
            (WeightFormat::Float(DType::BF16), Operand::Rounded(DType::BF16)),
            (WeightFormat::F8, Operand::Rounded(DType::BF16)),
            (WeightFormat::Float(DType::F16), Operand::Halves),
        ];
        let operands: Vec<_> = narrow.into_iter().chain(quantized.map(|format| (format, Operand::Bytes))).collect();
        // Sums in matrix units differ between generations of them, and those of the library between versions of it.
        let numerics = format!("cuda-2 sm_{}", description.capability);
        let library = driver.library().map(|library| format!("{numerics} fast {library}"));
        let caps = Caps {
            device: format!("cuda:{} {} ({})", description.index, description.name, description.driver),
            identity: Identity {
                adapter: description.name.clone(),
                driver: description.driver.clone(),
                // The same sources are other code from another compiler.
                kernels: match &description.compiler {
                    Some(compiler) => format!("{} {compiler}", anyfleet_kernels::cuda::hash()),
                    None => anyfleet_kernels::cuda::hash(),
                },
            },
            invariant: library.is_none(),
            numerics: library.unwrap_or(numerics),
            activations: vec![DType::F32],
            weights: floats.map(WeightFormat::Float).into_iter().chain(quantized).chain([WeightFormat::F8]).collect(),
            grouped_operands: operands.clone(),
            operands,
            operand_rows: 0,
            attention_operands: [DType::BF16, DType::I8, DType::F8].map(|kv| (kv, DType::BF16)).to_vec(),
            kv: vec![DType::BF16, DType::F16, DType::F32, DType::I8, DType::F8],
            latent: vec![DType::BF16, DType::F16, DType::F32, DType::F8],
            page_size: 16,
            memory: driver.memory(),
            max_buffer: None,
            queued: true,
        };
        CudaBackend(Arc::new(Shared { driver, caps, scratch: Mutex::default() }))
    }

    /// Seconds that `times` copies of `bytes` bytes take on the device, one after the other: what its memory can do at
    /// best.
    ///
    /// # Errors
    /// Out of memory for two buffers of that size, or a failure of the device.
    pub fn copy_seconds(&self, bytes: usize, times: usize) -> Result<f64> {
        let [from, to] = [self.alloc(bytes)?, self.alloc(bytes)?];
        self.seconds(|driver| (0..times).try_for_each(|_| driver.copy(from.address(), to.address(), bytes)))
    }

    /// Operations a second of bf16 products with f32 sums in matrix units: what they can do at best, with warpgroups where
    /// the device uses them.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn matrix_rate(&self) -> Result<f64> {
        /// `RateParams` of `rate.cu`.
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct Params {
            out: u64,
            rounds: u32,
            reserved: u32,
        }
        const THREADS: usize = 256;
        const ROUNDS: u32 = 1 << 14;
        // Two blocks a multiprocessor hide each other's waiting.
        let blocks = 2 * self.0.driver.description().processors as usize;
        let out = self.alloc(4 * THREADS * blocks)?;
        let rate = |kernel, shared, operations: usize| -> Result<f64> {
            let mut recorder = CudaRecorder::new(self.clone());
            let params = Params { out: out.address(), rounds: ROUNDS, reserved: 0 };
            recorder.launch(("rate", kernel), [blocks, 1, 1], THREADS, shared, &params)?;
            let prepared = self.0.driver.prepare(recorder.work, false)?;
            // The first run loads the kernel and brings the clock up.
            let seconds = [self.seconds(|_| prepared.run())?, self.seconds(|_| prepared.run())?];
            Ok((blocks * operations) as f64 * f64::from(ROUNDS) / seconds[0].min(seconds[1]))
        };
        // Of a block and round: eight products of 16x8x16 a warp; four of 64x128x16 a warpgroup.
        let by_warps = rate("rate_bf16", 0, THREADS / 32 * 8 * 2 * 16 * 8 * 16)?;
        if self.0.driver.warpgroups() == Warpgroups::Never {
            return Ok(by_warps);
        }
        let by_warpgroups = rate("rate_bf16_warpgroup", 128 * 128 + 1024, THREADS / 128 * 4 * 2 * 64 * 128 * 16)?;
        Ok(by_warps.max(by_warpgroups))
    }

    fn seconds(&self, work: impl FnOnce(&dyn Driver) -> Result<()>) -> Result<f64> {
        self.0.driver.synchronize()?;
        let start = std::time::Instant::now();
        work(&*self.0.driver)?;
        self.0.driver.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    pub(crate) fn scratch(&self, bytes: usize) -> Result<CudaBuffer> {
        let mut scratch = self.0.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        match &*scratch {
            Some(buffer) if buffer.len() >= bytes => Ok(buffer.clone()),
            // Plans hold the one before.
            _ => Ok(scratch.insert(CudaBuffer::new(&self.0.driver, bytes, "scratch memory")?).clone()),
        }
    }

    fn recorded(&self, record: impl FnOnce(&mut Encoder<'_, Self>), replayed: bool) -> Result<CudaPlan> {
        let mut recorder = CudaRecorder::new(self.clone());
        let mut encoder = Encoder::new(self, &mut recorder);
        record(&mut encoder);
        encoder.finish()?;
        let CudaRecorder { work, held, weights, .. } = recorder;
        Ok(CudaPlan { prepared: self.0.driver.prepare(work, replayed)?, _held: held, _weights: weights })
    }
}

/// A copy on its way to the host.
pub struct CudaReadback {
    transfer: Box<dyn Transfer>,
    len: usize,
    /// What is read: it must outlive the copy.
    _held: CudaBuffer,
}

impl Readback for CudaReadback {
    fn wait(self, out: &mut [u8]) -> Result<()> {
        if out.len() != self.len {
            return Err(Error::Transfer { op: "read", host: out.len(), tensor: self.len });
        }
        self.transfer.wait(out)
    }
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Weight = CudaWeight;
    type Recorder = CudaRecorder;
    type Plan = CudaPlan;
    type Readback = CudaReadback;

    fn caps(&self) -> &Caps {
        &self.0.caps
    }

    fn alloc(&self, bytes: usize) -> Result<CudaBuffer> {
        CudaBuffer::new(&self.0.driver, bytes, "a tensor")
    }

    fn load(&self, weight: HostWeight<'_>) -> Result<CudaWeight> {
        CudaWeight::load(self, &weight)
    }

    fn weight_shape(weight: &CudaWeight) -> (usize, usize) {
        (weight.rows(), weight.cols())
    }

    fn weight_stack(weight: &CudaWeight) -> usize {
        weight.stack()
    }

    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize {
        weight::bytes(rows, cols, store)
    }

    fn buffer_bytes(&self, bytes: usize) -> usize {
        crate::buffer::taken(bytes)
    }

    fn scratch_bytes(&self, sizes: &StepSizes) -> usize {
        let by_library = if self.0.driver.library().is_some() { ops::linear_library::scratch_bytes(sizes) } else { 0 };
        let bytes = [
            by_library,
            ops::linear::scratch_bytes(sizes, self.0.driver.description().processors as usize),
            ops::grouped_linear::scratch_bytes(sizes),
            ops::head_linear::scratch_bytes(sizes),
            ops::route::scratch_bytes(sizes),
            ops::attention::scratch_bytes(sizes),
            ops::sample::scratch_bytes(sizes),
        ];
        bytes.into_iter().max().unwrap_or(0)
    }

    fn reserve(&self, sizes: &StepSizes) -> Result<()> {
        self.scratch(self.scratch_bytes(sizes)).map(drop)
    }

    fn communicators(devices: &[&Self], most: usize) -> Result<Option<Vec<Box<dyn Communicator<Self>>>>> {
        let group = communicator::group(devices, most)?;
        Ok(group.map(|ends| ends.into_iter().map(|end| Box::new(end) as Box<dyn Communicator<Self>>).collect()))
    }

    fn communicator_bytes(&self, ranks: usize, most: usize) -> usize {
        if self.0.driver.gathers().is_ok() { communicator::bytes(ranks, most) } else { 0 }
    }

    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        if bytes.len() > dst.bytes() {
            return Err(Error::Transfer { op: "write", host: bytes.len(), tensor: dst.bytes() });
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.0.driver.write(dst.buffer().address() + dst.offset() as u64, bytes)
    }

    fn read(&self, src: &Tensor<Self>) -> Result<CudaReadback> {
        let (address, len) = (src.buffer().address() + src.offset() as u64, src.bytes());
        Ok(CudaReadback { transfer: self.0.driver.read(address, len)?, len, _held: src.buffer().clone() })
    }

    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()> {
        // What the launches point to goes away with the plan, and is not freed before they are done.
        self.recorded(record, false)?.prepared.run()
    }

    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<CudaPlan> {
        self.recorded(record, true)
    }

    fn replay(&self, plan: &CudaPlan) -> Result<()> {
        plan.prepared.run()
    }
}
