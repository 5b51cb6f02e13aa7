//! A backend without arithmetic: it keeps bytes, checks shapes and logs operations. The runtime,
//! the executor and the decoder are tested on it.
use crate::ops::*;
use crate::{
    Backend, Caps, DType, DeviceMemory, Encoder, Error, HostWeight, Readback, Recorder, Result, Tensor, WeightFormat,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// See the module's text.
pub struct NullBackend {
    caps: Caps,
    log: Mutex<Vec<String>>,
    allocated: Mutex<Vec<usize>>,
    broken: AtomicBool,
}

impl Default for NullBackend {
    fn default() -> Self {
        let floats = [DType::F32, DType::BF16, DType::F16];
        NullBackend {
            caps: Caps {
                device: "null".into(),
                identity: Default::default(),
                numerics: "null".into(),
                activations: floats.to_vec(),
                weights: floats.map(WeightFormat::Float).to_vec(),
                operands: Vec::new(),
                operand_rows: 0,
                grouped_operands: Vec::new(),
                invariant: true,
                attention_operands: Vec::new(),
                kv: [floats.as_slice(), &[DType::I8, DType::F8]].concat(),
                latent: [floats.as_slice(), &[DType::F8]].concat(),
                page_size: 16,
                memory: DeviceMemory::default(),
                max_buffer: None,
                queued: false,
            },
            log: Mutex::default(),
            allocated: Mutex::default(),
            broken: AtomicBool::new(false),
        }
    }
}

impl NullBackend {
    /// One that says it computes other bits.
    pub fn with_numerics(numerics: &str) -> Self {
        let mut backend = NullBackend::default();
        backend.caps.numerics = numerics.into();
        backend
    }
    /// One whose buffers have at most `bytes` bytes.
    pub fn with_max_buffer(bytes: u64) -> Self {
        let mut backend = NullBackend::default();
        backend.caps.max_buffer = Some(bytes);
        backend
    }
    /// From now on, whether every step fails.
    pub fn break_down(&self, broken: bool) {
        self.broken.store(broken, Ordering::Relaxed);
    }
    /// Operations executed so far, one line each, the newest last.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Forgets the log.
    pub fn clear_log(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
    /// Sizes of all buffers allocated so far, in bytes.
    pub fn allocations(&self) -> Vec<usize> {
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    fn record_with(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<Vec<String>> {
        let mut lines = NullRecorder(Vec::new());
        let mut encoder = Encoder::new(self, &mut lines);
        record(&mut encoder);
        encoder.finish()?;
        Ok(lines.0)
    }
}

/// Host bytes.
pub type NullBuffer = Arc<Mutex<Vec<u8>>>;

/// Shape of a weight; its data is dropped.
#[derive(Clone, Debug)]
pub struct NullWeight {
    rows: usize,
    cols: usize,
    stack: usize,
}

/// Collects one line per operation.
pub struct NullRecorder(Vec<String>);

/// Bytes already copied.
pub struct NullReadback(Vec<u8>);

impl Readback for NullReadback {
    fn wait(self, out: &mut [u8]) -> Result<()> {
        if out.len() != self.0.len() {
            return Err(Error::Transfer { op: "read", host: out.len(), tensor: self.0.len() });
        }
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

impl Recorder<NullBackend> for NullRecorder {
    fn header(&mut self, _header: &Tensor<NullBackend>) {}
    fn embed(&mut self, op: Embed<'_, NullBackend>) -> Result<()> {
        self.line("embed", op.out)
    }
    fn norm(&mut self, op: Norm<'_, NullBackend>) -> Result<()> {
        self.line("norm", op.out)
    }
    fn linear(&mut self, op: Linear<'_, NullBackend>) -> Result<()> {
        self.line("linear", op.out)
    }
    fn act_mul(&mut self, op: ActMul<'_, NullBackend>) -> Result<()> {
        self.line("act_mul", op.out)
    }
    fn rope_kv(&mut self, op: RopeKv<'_, NullBackend>) -> Result<()> {
        self.line("rope_kv", op.q)
    }
    fn attention(&mut self, op: Attention<'_, NullBackend>) -> Result<()> {
        self.line("attention", op.out)
    }
    fn gather(&mut self, op: Gather<'_, NullBackend>) -> Result<()> {
        self.line("gather", op.out)
    }
    fn softcap(&mut self, op: Softcap<'_, NullBackend>) -> Result<()> {
        self.line("softcap", op.x)
    }
    fn sample(&mut self, op: Sample<'_, NullBackend>) -> Result<()> {
        self.line("sample", op.logits)
    }
    fn route(&mut self, op: Route<'_, NullBackend>) -> Result<()> {
        self.line("route", op.logits)
    }
    fn grouped_linear(&mut self, op: GroupedLinear<'_, NullBackend>) -> Result<()> {
        self.line("grouped_linear", op.out)
    }
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, NullBackend>) -> Result<()> {
        self.line("grouped_linear_act_mul", op.out)
    }
    fn combine(&mut self, op: Combine<'_, NullBackend>) -> Result<()> {
        self.line("combine", op.out)
    }
    fn latent_kv(&mut self, op: LatentKv<'_, NullBackend>) -> Result<()> {
        self.line("latent_kv", op.q)
    }
    fn latent_attention(&mut self, op: LatentAttention<'_, NullBackend>) -> Result<()> {
        self.line("latent_attention", op.out)
    }
    fn head_linear(&mut self, op: HeadLinear<'_, NullBackend>) -> Result<()> {
        self.line("head_linear", op.out)
    }
}

impl NullRecorder {
    fn line(&mut self, op: &str, out: &Tensor<NullBackend>) -> Result<()> {
        self.0.push(format!("{op} {:?}", out.shape()));
        Ok(())
    }
}

impl Backend for NullBackend {
    type Buffer = NullBuffer;
    type Weight = NullWeight;
    type Recorder = NullRecorder;
    type Plan = Vec<String>;
    type Readback = NullReadback;

    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&self, bytes: usize) -> Result<NullBuffer> {
        self.allocated.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
        Ok(Arc::new(Mutex::new(vec![0; bytes])))
    }
    fn load(&self, weight: HostWeight<'_>) -> Result<NullWeight> {
        weight.check()?;
        Ok(NullWeight { rows: weight.rows(), cols: weight.cols, stack: weight.stack })
    }
    fn weight_shape(weight: &NullWeight) -> (usize, usize) {
        (weight.rows, weight.cols)
    }
    fn weight_stack(weight: &NullWeight) -> usize {
        weight.stack
    }
    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize {
        store.bytes(rows, cols)
    }
    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        if bytes.len() > dst.bytes() {
            return Err(Error::Transfer { op: "write", host: bytes.len(), tensor: dst.bytes() });
        }
        let mut buffer = dst.buffer().lock().unwrap_or_else(PoisonError::into_inner);
        buffer[dst.offset()..dst.offset() + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self, src: &Tensor<Self>) -> Result<NullReadback> {
        let buffer = src.buffer().lock().unwrap_or_else(PoisonError::into_inner);
        Ok(NullReadback(buffer[src.offset()..src.offset() + src.bytes()].to_vec()))
    }
    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()> {
        let plan = self.record_with(record)?;
        self.replay(&plan)
    }
    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<Self::Plan> {
        self.record_with(record)
    }
    fn replay(&self, plan: &Self::Plan) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(Error::Device { device: self.caps.device.clone(), reason: "it was told to fail".into() });
        }
        self.log.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(plan);
        Ok(())
    }
}
