//! Records operations as launches.
use crate::driver::{Kernel, Launch, Matmul, Work};
use crate::{CudaBackend, CudaBuffer, CudaWeight, ops};
use anyfleet_tensor::ops::*;
use anyfleet_tensor::{Error, Live, Recorder, Result, Tensor};
use bytemuck::NoUninit;

/// The most blocks in the second and third dimension of a grid.
const GRID: usize = 65_535;

/// Receives checked operations.
pub struct CudaRecorder {
    pub(crate) device: CudaBackend,
    header: Option<Tensor<CudaBackend>>,
    pub(crate) work: Vec<Work>,
    /// What it points to: it must outlive the work.
    pub(crate) held: Vec<CudaBuffer>,
    pub(crate) weights: Vec<CudaWeight>,
}

impl CudaRecorder {
    pub(crate) fn new(device: CudaBackend) -> CudaRecorder {
        CudaRecorder { device, header: None, work: Vec::new(), held: Vec::new(), weights: Vec::new() }
    }

    /// Where a tensor begins on the device.
    pub(crate) fn address(&mut self, tensor: &Tensor<CudaBackend>) -> u64 {
        self.held.push(tensor.buffer().clone());
        tensor.buffer().address() + tensor.offset() as u64
    }

    /// Where a tensor begins; 0, which kernels know as none, where there is none.
    pub(crate) fn address_of(&mut self, tensor: Option<&Tensor<CudaBackend>>) -> u64 {
        tensor.map_or(0, |tensor| self.address(tensor))
    }

    /// Memory that an op's launches share, of at least `bytes` bytes, 256-byte aligned. Every op has the same.
    pub(crate) fn scratch(&mut self, bytes: usize) -> Result<u64> {
        let buffer = self.device.scratch(bytes)?;
        self.held.push(buffer.clone());
        Ok(buffer.address())
    }

    /// Where the number of live rows is; 0 where all are.
    pub(crate) fn live(&mut self, op: &'static str, live: Live) -> Result<u64> {
        let word = match live {
            Live::All => return Ok(0),
            Live::Tokens => 0,
            Live::Sequences => 1,
            Live::LogitRows => 2,
        };
        let Some(header) = self.header.clone() else {
            return Err(Error::Shape {
                op,
                what: "live rows need a header",
                details: format!("{live:?} with no header bound"),
                remedy: "bind the step header before this operation",
            });
        };
        Ok(self.address(&header) + 4 * word)
    }

    /// Adds a launch of `kernel` of module `module`, unless there is nothing to do. `params` is laid out as the kernel's
    /// structure: addresses first, then words, a whole number of eight bytes.
    pub(crate) fn launch(
        &mut self,
        (module, name): (&'static str, &'static str),
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        params: &impl NoUninit,
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = grid;
        if x > i32::MAX as usize || y > GRID || z > GRID {
            return Err(Error::Shape {
                op: module,
                what: "more blocks than the device has in a grid",
                details: format!("{name}: {grid:?}"),
                remedy: "use fewer tokens a step",
            });
        }
        self.work.push(Work::Launch(Launch {
            kernel: Kernel { module, name },
            grid: grid.map(|n| n as u32),
            threads: threads as u32,
            shared: shared as u32,
            params: bytemuck::bytes_of(params).to_vec(),
        }));
        Ok(())
    }

    /// Adds a product of the library.
    pub(crate) fn matmul(&mut self, matmul: Matmul) {
        self.work.push(Work::Matmul(matmul));
    }
}

impl Recorder<CudaBackend> for CudaRecorder {
    fn header(&mut self, header: &Tensor<CudaBackend>) {
        self.header = Some(header.clone());
    }
    fn embed(&mut self, op: Embed<'_, CudaBackend>) -> Result<()> {
        ops::embed::record(self, &op)
    }
    fn norm(&mut self, op: Norm<'_, CudaBackend>) -> Result<()> {
        ops::norm::record(self, &op)
    }
    fn linear(&mut self, op: Linear<'_, CudaBackend>) -> Result<()> {
        ops::linear::record(self, &op)
    }
    fn act_mul(&mut self, op: ActMul<'_, CudaBackend>) -> Result<()> {
        ops::act_mul::record(self, &op)
    }
    fn rope_kv(&mut self, op: RopeKv<'_, CudaBackend>) -> Result<()> {
        ops::rope_kv::record(self, &op)
    }
    fn attention(&mut self, op: Attention<'_, CudaBackend>) -> Result<()> {
        ops::attention::record(self, &op)
    }
    fn gather(&mut self, op: Gather<'_, CudaBackend>) -> Result<()> {
        ops::gather::record(self, &op)
    }
    fn softcap(&mut self, op: Softcap<'_, CudaBackend>) -> Result<()> {
        ops::softcap::record(self, &op)
    }
    fn sample(&mut self, op: Sample<'_, CudaBackend>) -> Result<()> {
        ops::sample::record(self, &op)
    }
    fn linear_act_mul(&mut self, op: LinearActMul<'_, CudaBackend>) -> Result<()> {
        if ops::linear::record_gated(self, &op)? {
            return Ok(());
        }
        let LinearActMul { out, gate_up, x, weight, bias, activation, live } = op;
        self.linear(Linear { out: gate_up, x, weight, bias, residual: None, live })?;
        self.act_mul(ActMul { out, gate_up, activation, live })
    }
    fn route(&mut self, op: Route<'_, CudaBackend>) -> Result<()> {
        ops::route::record(self, &op)
    }
    fn grouped_linear(&mut self, op: GroupedLinear<'_, CudaBackend>) -> Result<()> {
        ops::grouped_linear::record(self, &op)
    }
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, CudaBackend>) -> Result<()> {
        ops::grouped_linear::record_gated(self, &op)
    }
    fn combine(&mut self, op: Combine<'_, CudaBackend>) -> Result<()> {
        ops::combine::record(self, &op)
    }
    fn latent_kv(&mut self, op: LatentKv<'_, CudaBackend>) -> Result<()> {
        ops::latent_kv::record(self, &op)
    }
    fn latent_attention(&mut self, op: LatentAttention<'_, CudaBackend>) -> Result<()> {
        ops::attention::record_latent(self, &op)
    }
    fn head_linear(&mut self, op: HeadLinear<'_, CudaBackend>) -> Result<()> {
        ops::head_linear::record(self, &op)
    }
}
