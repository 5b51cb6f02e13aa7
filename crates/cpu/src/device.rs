//! The CPU as a device: options, capabilities, memory, transfers.
use crate::buffer::CpuBuffer;
use crate::encoder::CpuRecorder;
use crate::memory;
use crate::plan::{CpuPlan, Workspace};
use crate::simd::{Isa, KernelSet};
use crate::team::Team;
use crate::view::View;
use crate::weight::{CpuWeight, FORMATS, LAYOUT, packed_bytes};
use anyfleet_tensor::{
    Backend, Caps, DType, Encoder, Error, HostWeight, Identity, Operand, PackedWeight, Readback, Result, SharedBytes,
    Tensor, WeightFormat,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How to open the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Worker threads; `None` takes as many as the process may use processors.
    pub threads: Option<usize>,
    /// Kernel set; `None` takes the one named by the environment variable `ANYFLEET_CPU`, and without
    /// it the fastest the processor has.
    pub isa: Option<Isa>,
}

/// The processor this program runs on.
///
/// Every kernel set computes the same bits (`numerics` is `cpu-fma3` for all): each sum has one
/// accumulator and fused multiply-adds in index order, or sixteen strided partial sums and one
/// reduction tree; products with bf16 weights round activations to bf16 and sum by pairs, as AMX does.
pub struct CpuBackend {
    caps: Caps,
    kernels: KernelSet,
    /// Executes plans.
    team: Arc<Team>,
    /// Packs weights.
    pool: ThreadPool,
    /// Held while device bytes are read or written: the order of calls is the order of effects.
    queue: Mutex<Workspace>,
}

/// Name of the arithmetic, the same for every kernel set.
const NUMERICS: &str = "cpu-fma3";

/// More threads than the largest machines have processors: their start alone would take minutes.
const MAX_THREADS: usize = 2048;

/// Environment variable that forces a kernel set.
const ISA_VARIABLE: &str = "ANYFLEET_CPU";

impl CpuBackend {
    /// Opens the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] when the kernel set asked for is unknown or not supported by this processor,
    /// or when threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<CpuBackend> {
        let named = std::env::var(ISA_VARIABLE).ok().filter(|name| !name.is_empty());
        let kernels = choose(options.isa, named.as_deref())?;
        let threads = match options.threads {
            Some(0) => return Err(failed("0 threads were asked for; ask for at least one".into())),
            Some(threads @ MAX_THREADS..) => {
                return Err(failed(format!("{threads} threads were asked for; lower --threads below {MAX_THREADS}")));
            }
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let not_started =
            |e: &dyn std::fmt::Display| failed(format!("{threads} threads could not be started: {e}; lower --threads"));
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("anyfleet-pack-{i}"))
            .build()
            .map_err(|e| not_started(&e))?;
        let team = Arc::new(Team::new(threads).map_err(|e| not_started(&e))?);
        let floats = [DType::F32, DType::BF16, DType::F16];
        let operands = [
            (WeightFormat::Float(DType::BF16), Operand::Rounded(DType::BF16)),
            (WeightFormat::F8, Operand::Rounded(DType::BF16)),
            (WeightFormat::Q8, Operand::Bytes),
            (WeightFormat::Q4, Operand::Bytes),
        ];
        let caps = Caps {
            device: format!(
                "cpu ({threads} {}, {})",
                if threads == 1 { "thread" } else { "threads" },
                kernels.isa().name()
            ),
            identity: Identity {
                adapter: std::env::consts::ARCH.into(),
                driver: kernels.isa().name().into(),
                kernels: concat!("anyfleet-cpu ", env!("CARGO_PKG_VERSION")).into(),
            },
            numerics: NUMERICS.into(),
            activations: vec![DType::F32],
            weights: FORMATS.to_vec(),
            operands: operands.to_vec(),
            operand_rows: 0,
            grouped_operands: operands.to_vec(),
            invariant: true,
            attention_operands: [DType::BF16, DType::I8, DType::F8].map(|kv| (kv, DType::BF16)).to_vec(),
            kv: [floats.as_slice(), &[DType::I8, DType::F8]].concat(),
            latent: [floats.as_slice(), &[DType::F8]].concat(),
            page_size: 16,
            memory: memory::measure(),
            max_buffer: None,
            queued: false,
        };
        Ok(CpuBackend { caps, kernels, team, pool, queue: Mutex::default() })
    }

    /// The kernel set in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }

    fn lock(&self) -> MutexGuard<'_, Workspace> {
        // A panic inside an operation leaves wrong numbers at worst, never a broken workspace.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contiguous(op: &'static str, tensor: &Tensor<Self>) -> Result<View> {
        if tensor.is_contiguous() {
            return View::new(op, tensor);
        }
        Err(Error::Shape {
            op,
            what: "tensor must be contiguous",
            details: format!("{tensor:?} with row stride {}", tensor.row_stride()),
            remedy: "transfer a contiguous tensor",
        })
    }
}

fn failed(reason: String) -> Error {
    Error::Device { device: "cpu".into(), reason }
}

/// The set asked for in code, else the one named, else the fastest there is.
fn choose(isa: Option<Isa>, named: Option<&str>) -> Result<KernelSet> {
    let wanted = match (isa, named) {
        (Some(isa), _) => isa,
        (None, Some(name)) => Isa::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| {
            failed(format!("{ISA_VARIABLE}={name} is not a kernel set; use {}", list(Isa::supported())))
        })?,
        (None, None) => Isa::fastest(),
    };
    KernelSet::new(wanted)
        .ok_or_else(|| failed(format!("this processor has no {}; use {}", wanted.name(), list(Isa::supported()))))
}

fn list(sets: impl Iterator<Item = Isa>) -> String {
    sets.map(Isa::name).collect::<Vec<_>>().join(" or ")
}

/// Bytes copied when the read was asked for.
pub struct CpuReadback(Vec<u8>);

impl Readback for CpuReadback {
    fn wait(self, out: &mut [u8]) -> Result<()> {
        if out.len() != self.0.len() {
            return Err(Error::Transfer { op: "read", host: out.len(), tensor: self.0.len() });
        }
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Weight = CpuWeight;
    type Recorder = CpuRecorder;
    type Plan = CpuPlan;
    type Readback = CpuReadback;

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<CpuBuffer> {
        CpuBuffer::new(bytes)
    }

    fn load(&self, weight: HostWeight<'_>) -> Result<CpuWeight> {
        self.pool.install(|| CpuWeight::pack(self.kernels, &weight))
    }

    fn weight_shape(weight: &CpuWeight) -> (usize, usize) {
        (weight.rows(), weight.cols())
    }

    fn weight_stack(weight: &CpuWeight) -> usize {
        weight.stack()
    }

    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize {
        packed_bytes(rows, cols, store).unwrap_or(usize::MAX)
    }

    fn layout(&self) -> Option<String> {
        Some(LAYOUT.into())
    }

    fn export(weight: &CpuWeight) -> Option<&[u8]> {
        Some(weight.all_bytes())
    }

    fn adopt(&self, weight: &PackedWeight, bytes: SharedBytes) -> Result<CpuWeight> {
        CpuWeight::adopt(weight, bytes)
    }

    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        if bytes.len() > dst.bytes() {
            return Err(Error::Transfer { op: "write", host: bytes.len(), tensor: dst.bytes() });
        }
        let view = Self::contiguous("write", dst)?;
        let _exclusive = self.lock();
        // SAFETY: a contiguous view of `dst.bytes()` bytes; the lock keeps everyone else out.
        unsafe { view.bytes().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn read(&self, src: &Tensor<Self>) -> Result<CpuReadback> {
        let view = Self::contiguous("read", src)?;
        let _exclusive = self.lock();
        // SAFETY: a contiguous view of `src.bytes()` bytes; the lock keeps writers out.
        let bytes = unsafe { std::slice::from_raw_parts(view.bytes(), src.bytes()) };
        Ok(CpuReadback(bytes.to_vec()))
    }

    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()> {
        let plan = self.record(record)?;
        self.replay(&plan)
    }

    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<CpuPlan> {
        let mut recorder = CpuRecorder::default();
        let mut encoder = Encoder::new(self, &mut recorder);
        record(&mut encoder);
        encoder.finish()?;
        recorder.finish()
    }

    fn replay(&self, plan: &CpuPlan) -> Result<()> {
        let mut lock = self.lock();
        let workspace = &mut *lock;
        plan.execute(self.kernels, &self.team, workspace);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_sets_are_chosen_by_name() {
        assert_eq!(choose(None, Some("portable")).unwrap().isa(), Isa::Portable);
        assert_eq!(choose(Some(Isa::Portable), Some("nonsense")).unwrap().isa(), Isa::Portable);
        // The first there is, but for dot products of bf16 where they are no faster.
        let fastest = choose(None, None).unwrap().isa();
        let first = Isa::supported().find(|&isa| isa == fastest || isa != Isa::Avx512Bf16);
        assert_eq!(Some(fastest), first);
        let message = |named| choose(None, Some(named)).unwrap_err().to_string();
        assert!(message("sse9").contains("ANYFLEET_CPU=sse9 is not a kernel set; use"), "{}", message("sse9"));
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        assert!(message(foreign).contains("this processor has no"), "{}", message(foreign));
    }

    #[test]
    fn transfers_check_sizes() {
        let device = CpuBackend::new(CpuOptions { threads: Some(1), isa: None }).unwrap();
        let t = Tensor::new(&device, DType::U32, &[2, 3]).unwrap();
        device.write(&t, bytemuck::cast_slice(&[7u32; 6])).unwrap();
        device.write(&t, bytemuck::cast_slice(&[1u32, 2])).unwrap();
        let mut out = [0u32; 6];
        device.read(&t).unwrap().wait(bytemuck::cast_slice_mut(&mut out)).unwrap();
        assert_eq!(out, [1, 2, 7, 7, 7, 7]);
        assert!(matches!(device.write(&t, &[0; 25]), Err(Error::Transfer { .. })));
        assert!(matches!(device.read(&t).unwrap().wait(&mut [0; 23]), Err(Error::Transfer { .. })));
        let past = Tensor::from_buffer(t.buffer().clone(), DType::U32, &[7]);
        assert!(matches!(device.read(&past), Err(Error::Shape { .. })));
        assert!(matches!(device.write(&t.columns(1, 2), &[0; 8]), Err(Error::Shape { .. })));
    }
}
