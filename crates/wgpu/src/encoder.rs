//! Records operations as dispatches.
use crate::WgpuBackend;
use crate::context::Context;
use crate::ops;
use crate::plan::{Dispatch, WgpuPlan};
use anyfleet_tensor::ops::*;
use anyfleet_tensor::{Error, Live, Recorder, Result, Tensor};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Workgroups of the first dimension of a grid: `GRID` of `common.wgsl`.
const GRID: usize = 32_768;
/// `live` of operations that compute every row: `ALL` of `common.wgsl`.
const ALL: u32 = u32::MAX;

/// Receives checked operations.
pub struct WgpuRecorder {
    pub(crate) context: Arc<Context>,
    header: Option<Tensor<WgpuBackend>>,
    calls: Vec<Call>,
}

/// A range of a buffer.
#[derive(Clone)]
pub(crate) struct Range {
    pub(crate) buffer: Arc<wgpu::Buffer>,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A kernel and what it is given.
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) parts: Vec<&'static str>,
    pub(crate) flags: Vec<&'static str>,
    pub(crate) constants: Vec<(&'static str, u32)>,
    pub(crate) params: Vec<u32>,
    header: Option<Range>,
    bindings: Vec<(u32, bool, Range)>,
    pub(crate) groups: [u32; 3],
}

impl Call {
    pub(crate) fn new(name: &'static str, parts: &[&'static str]) -> Call {
        Call {
            name,
            parts: parts.to_vec(),
            flags: Vec::new(),
            constants: Vec::new(),
            params: Vec::new(),
            header: None,
            bindings: Vec::new(),
            groups: [0; 3],
        }
    }

    /// A grid of `count` workgroups, each `z` times.
    pub(crate) fn grid(&mut self, count: usize, z: usize) {
        self.groups = [count.min(GRID) as u32, count.div_ceil(GRID) as u32, z as u32];
    }

    /// Binds a range.
    pub(crate) fn bind_range(&mut self, binding: u32, written: bool, range: Range) {
        self.bindings.push((binding, written, range));
    }

    fn key(&self) -> String {
        let constants = self.constants.iter().map(|(name, value)| format!("{name}={value}"));
        let all: Vec<String> = self.flags.iter().map(|&flag| flag.to_owned()).chain(constants).collect();
        format!("{}({})", self.name, all.join(" "))
    }
}

impl WgpuRecorder {
    pub(crate) fn new(context: Arc<Context>) -> WgpuRecorder {
        WgpuRecorder { context, header: None, calls: Vec::new() }
    }

    /// Binds what a tensor covers, to be read or written; returns where it begins in the range, in elements.
    pub(crate) fn bind(
        &self,
        call: &mut Call,
        binding: u32,
        written: bool,
        tensor: &Tensor<WgpuBackend>,
    ) -> Result<u32> {
        let (range, first) = self.range(call.name, tensor)?;
        call.bind_range(binding, written, range);
        Ok(first)
    }

    /// The range of bytes that a tensor covers, on the boundaries the device wants, and where the tensor begins
    /// in it, in elements.
    pub(crate) fn range(&self, op: &'static str, tensor: &Tensor<WgpuBackend>) -> Result<(Range, u32)> {
        let size = tensor.dtype().size();
        let span = match tensor.rows() {
            0 => 0,
            rows => ((rows - 1) * tensor.row_stride() + tensor.cols()) * size,
        };
        let align = self.context.limits.min_storage_buffer_offset_alignment as usize;
        let start = tensor.offset() / align * align;
        let whole = tensor.buffer().raw.size() as usize;
        let end = (tensor.offset() + span).next_multiple_of(4).max(start + 4).min(whole);
        let most = self.context.limits.max_storage_buffer_binding_size;
        if (end - start) as u64 > most {
            return Err(Error::Shape {
                op,
                what: "a tensor is larger than the device binds",
                details: format!("{tensor:?} takes {} bytes, of at most {most}", end - start),
                remedy: "use fewer tokens a step or a smaller KV cache",
            });
        }
        let range = Range { buffer: tensor.buffer().raw.clone(), offset: start as u64, size: (end - start) as u64 };
        Ok((range, ((tensor.offset() - start) / size) as u32))
    }

    /// The word of the header that says how many rows there are.
    pub(crate) fn live(&self, call: &mut Call, live: Live) -> Result<u32> {
        let word = match live {
            Live::All => return Ok(ALL),
            Live::Tokens => 0,
            Live::Sequences => 1,
            Live::LogitRows => 2,
        };
        let Some(header) = &self.header else {
            return Err(Error::Shape {
                op: call.name,
                what: "live rows need a header",
                details: format!("{live:?} with no header bound"),
                remedy: "bind the step header before this operation",
            });
        };
        self.live_word(call, header, word)
    }

    /// The same of a word of any tensor.
    pub(crate) fn live_word(&self, call: &mut Call, words: &Tensor<WgpuBackend>, word: u32) -> Result<u32> {
        let (range, first) = self.range(call.name, words)?;
        call.header = Some(range);
        Ok(first + word)
    }

    pub(crate) fn push(&mut self, mut call: Call) {
        if self.context.variant.subgroups() {
            call.flags.push("SUBGROUPS");
        }
        if call.groups.iter().all(|&n| n > 0) {
            self.calls.push(call);
        }
    }

    /// Resolves pipelines and bind groups.
    pub(crate) fn finish(self) -> Result<WgpuPlan> {
        let WgpuRecorder { context, calls, .. } = self;
        let align = context.limits.min_uniform_buffer_offset_alignment.max(16) as usize;
        let most = context.limits.max_compute_workgroups_per_dimension;
        if let Some(call) = calls.iter().find(|call| call.groups.iter().any(|&n| n > most)) {
            return Err(Error::Shape {
                op: call.name,
                what: "the device runs no grid of this size",
                details: format!("{:?} workgroups, of at most {most} in a dimension", call.groups),
                remedy: "use fewer tokens a step",
            });
        }
        let mut arena: Vec<u8> = Vec::new();
        let mut places = Vec::with_capacity(calls.len());
        for call in &calls {
            arena.resize(arena.len().next_multiple_of(align), 0);
            let start = arena.len();
            arena.extend_from_slice(bytemuck::cast_slice(&call.params));
            arena.resize(arena.len().next_multiple_of(16), 0);
            places.push((start, arena.len() - start));
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let params = Arc::new(context.buffer(arena.len(), usage, "parameters of a plan")?);
        context.queue.write_buffer(&params, 0, &arena);
        let mut dispatches = Vec::with_capacity(calls.len());
        let mut ranges = Vec::new();
        for (call, (start, len)) in calls.into_iter().zip(places) {
            let bindings: Vec<(u32, bool)> =
                call.bindings.iter().map(|(binding, written, _)| (*binding, *written)).collect();
            let source = || anyfleet_kernels::assemble(&call.parts, &call.flags, &call.constants);
            let pipeline = context.pipeline(&call.key(), source, &bindings)?;
            ranges.extend(call.bindings.iter().map(|(_, _, range)| range.clone()));
            let own = Range { buffer: params.clone(), offset: start as u64, size: len as u64 };
            let none = Range { buffer: params.clone(), offset: 0, size: 16 };
            let header = call.header.as_ref().unwrap_or(&none);
            let mut entries = Vec::with_capacity(2 + call.bindings.len());
            entries.push(entry(0, &own));
            entries.push(entry(1, header));
            entries.extend(call.bindings.iter().map(|(binding, _, range)| entry(*binding, range)));
            context.counters.bind_groups.fetch_add(1, Relaxed);
            let bind_group = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(call.name),
                layout: &pipeline.layout,
                entries: &entries,
            });
            dispatches.push(Dispatch { pipeline, bind_group, groups: call.groups });
        }
        context.check()?;
        Ok(WgpuPlan { dispatches, ranges: ranges.into() })
    }
}

fn entry(binding: u32, range: &Range) -> wgpu::BindGroupEntry<'_> {
    let size = NonZeroU64::new(range.size);
    let resource =
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &range.buffer, offset: range.offset, size });
    wgpu::BindGroupEntry { binding, resource }
}

impl Recorder<WgpuBackend> for WgpuRecorder {
    fn header(&mut self, header: &Tensor<WgpuBackend>) {
        self.header = Some(header.clone());
    }
    fn embed(&mut self, op: Embed<'_, WgpuBackend>) -> Result<()> {
        ops::embed::record(self, &op)
    }
    fn norm(&mut self, op: Norm<'_, WgpuBackend>) -> Result<()> {
        ops::norm::record(self, &op)
    }
    fn linear(&mut self, op: Linear<'_, WgpuBackend>) -> Result<()> {
        ops::linear::record(self, &op)
    }
    fn act_mul(&mut self, op: ActMul<'_, WgpuBackend>) -> Result<()> {
        ops::act_mul::record(self, &op)
    }
    fn rope_kv(&mut self, op: RopeKv<'_, WgpuBackend>) -> Result<()> {
        ops::rope_kv::record(self, &op)
    }
    fn attention(&mut self, op: Attention<'_, WgpuBackend>) -> Result<()> {
        ops::attention::record(self, &op)
    }
    fn gather(&mut self, op: Gather<'_, WgpuBackend>) -> Result<()> {
        ops::gather::record(self, &op)
    }
    fn softcap(&mut self, op: Softcap<'_, WgpuBackend>) -> Result<()> {
        ops::softcap::record(self, &op)
    }
    fn sample(&mut self, op: Sample<'_, WgpuBackend>) -> Result<()> {
        ops::sample::record(self, &op)
    }
    fn linear_act_mul(&mut self, op: LinearActMul<'_, WgpuBackend>) -> Result<()> {
        match ops::linear::record_gated(self, &op)? {
            true => Ok(()),
            false => {
                let LinearActMul { out, gate_up, x, weight, bias, activation, live } = op;
                self.linear(Linear { out: gate_up, x, weight, bias, residual: None, live })?;
                self.act_mul(ActMul { out, gate_up, activation, live })
            }
        }
    }
    fn route(&mut self, op: Route<'_, WgpuBackend>) -> Result<()> {
        ops::route::record(self, &op)
    }
    fn grouped_linear(&mut self, op: GroupedLinear<'_, WgpuBackend>) -> Result<()> {
        ops::grouped_linear::record(self, &op)
    }
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, WgpuBackend>) -> Result<()> {
        ops::grouped_linear::record_gated(self, &op)
    }
    fn combine(&mut self, op: Combine<'_, WgpuBackend>) -> Result<()> {
        ops::combine::record(self, &op)
    }
    fn latent_kv(&mut self, op: LatentKv<'_, WgpuBackend>) -> Result<()> {
        ops::latent_kv::record(self, &op)
    }
    fn latent_attention(&mut self, op: LatentAttention<'_, WgpuBackend>) -> Result<()> {
        ops::attention::record_latent(self, &op)
    }
    fn head_linear(&mut self, op: HeadLinear<'_, WgpuBackend>) -> Result<()> {
        ops::head_linear::record(self, &op)
    }
}
