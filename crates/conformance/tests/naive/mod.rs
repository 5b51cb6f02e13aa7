//! A backend that does what the ops' documentation says in the plainest way, and can be told to do
//! one thing wrong.
mod experts;
mod latent;
mod ops;

use anyfleet_tensor::ops::*;
use anyfleet_tensor::{
    Backend, Caps, DType, DeviceMemory, Encoder, Error, HostWeight, Live, Readback, Recorder, Result, StepHeader,
    Tensor, WeightFormat, f8, quant,
};
use half::{bf16, f16};
use std::sync::{Arc, Mutex};

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    EmbedNextRow,
    EmbedIgnoresSampled,
    EmbedForgetsScale,
    NormForgetsEps,
    NormWritesPastTheEnd,
    NormWritesItsInput,
    NormComputesPadding,
    NormUsesBatchStatistics,
    NormForgetsResidual,
    NormScalesResidual,
    LinearDropsLastK,
    LinearIgnoresStride,
    LinearRoundsToBf16,
    LinearOrderDependsOnRows,
    LinearForgetsResidual,
    LinearSkipsLastRow,
    F8TakesNextScale,
    F8TakesScalesOfRowBefore,
    F8KeepsTheProduct,
    F8TruncatesTheProduct,
    F8LosesTheSign,
    F8FlushesSubnormals,
    ActMulSwapsHalves,
    ActMulDrifts,
    RopeThetaOff,
    RopeStoresUnusedSlots,
    RopeInterleavesWrong,
    RopeTruncatesStores,
    RopeScalesByPage,
    RopeOverflowsEightBits,
    RopeFlushesEightBits,
    RopeTruncatesEightBits,
    AttentionWindowOffByOne,
    AttentionSeesTheFuture,
    AttentionIgnoresFirstPage,
    AttentionSumsByPage,
    AttentionOneKvHead,
    AttentionForgetsScales,
    AttentionForgetsTheCap,
    AttentionCapsWithoutScale,
    AttentionCapIsOff,
    AttentionForgetsSinks,
    AttentionSinksByKvHead,
    AttentionSinksBySegment,
    GatherCopiesInOrder,
    SoftcapForgetsFactor,
    SoftcapClamps,
    SampleTiesToHighestId,
    SampleAdjustsLogprobs,
    SampleIgnoresTopP,
    SampleSeedsByRow,
    SampleIgnoresMask,
    SampleMasksHighBitFirst,
    SampleMasksByRow,
    SampleMasksAfterTopK,
    SampleMasksLogprobs,
    SampleLeavesMask,
    RouteForgetsBias,
    RouteTiesToHighest,
    RouteWeighsBiased,
    RouteSortsByToken,
    RouteCountsPadding,
    GroupedTakesFirstExpert,
    GroupedIgnoresRows,
    GroupedComputesPadding,
    GroupedOrderDependsOnRows,
    GroupedSwapsHalves,
    CombineForgetsWeights,
    CombineForgetsResidual,
    CombineReadsInOrder,
    RouteIgnoresGroups,
    RouteGroupsByHighest,
    RouteGroupsUnbiased,
    LatentForgetsNorm,
    LatentNormsTheKey,
    LatentTurnsFirstElements,
    LatentInterleavesWrong,
    LatentStoresUnusedSlots,
    LatentOverflowsEightBits,
    LatentFlushesEightBits,
    LatentTruncatesEightBits,
    LatentSumsByPage,
    LatentSeesTheFuture,
    LatentForgetsTheKey,
    LatentTakesLastElements,
    HeadLinearTakesFirstHead,
    HeadLinearIgnoresGaps,
    HeadLinearWritesGaps,
    HeadLinearComputesPadding,
    HeadLinearOrderDependsOnRows,
    PlanKeepsOldCounts,
    Panics,
}

pub type Bytes = Arc<Mutex<Vec<u8>>>;

pub struct Naive {
    caps: Caps,
    pub mutation: Mutation,
    /// Runs so far, for the one mutation that makes results drift.
    runs: Mutex<u32>,
}

impl Naive {
    pub fn new(mutation: Mutation) -> Self {
        let caps = Caps {
            device: format!("naive, {mutation:?}"),
            identity: Default::default(),
            numerics: "naive".into(),
            activations: vec![DType::F32, DType::BF16],
            weights: vec![WeightFormat::Float(DType::F32), WeightFormat::Float(DType::BF16), WeightFormat::F8],
            operands: Vec::new(),
            operand_rows: 0,
            grouped_operands: Vec::new(),
            invariant: true,
            attention_operands: Vec::new(),
            kv: vec![DType::BF16, DType::I8, DType::F8],
            latent: vec![DType::BF16, DType::F8],
            page_size: 16,
            memory: DeviceMemory::default(),
            max_buffer: None,
            queued: false,
        };
        Naive { caps, mutation, runs: Mutex::new(0) }
    }

    /// One that promises no row's bits.
    pub fn fast(mutation: Mutation) -> Self {
        let mut naive = Naive::new(mutation);
        naive.caps.invariant = false;
        naive
    }

    fn commands(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<Plan> {
        let mut plan = Plan { mutation: self.mutation, commands: Vec::new(), header: None, frozen: None };
        let mut encoder = Encoder::new(self, &mut plan);
        record(&mut encoder);
        encoder.finish()?;
        Ok(plan)
    }
}

#[derive(Clone)]
pub struct Packed {
    pub stack: usize,
    /// Of each.
    pub rows: usize,
    pub cols: usize,
    pub values: Arc<Vec<f32>>,
}

type Command = Box<dyn Fn(&StepHeader) + Send>;

pub struct Plan {
    mutation: Mutation,
    commands: Vec<Command>,
    header: Option<Tensor<Naive>>,
    frozen: Option<StepHeader>,
}

pub struct Copied(Vec<u8>);

impl Readback for Copied {
    fn wait(self, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

/// Elements of a tensor by index.
#[derive(Clone)]
pub struct View {
    buffer: Bytes,
    offset: usize,
    dims: Vec<usize>,
    stride: usize,
    cols: usize,
    dtype: DType,
}

pub fn view(t: &Tensor<Naive>) -> View {
    View {
        buffer: t.buffer().clone(),
        offset: t.offset(),
        dims: t.shape().to_vec(),
        stride: t.row_stride(),
        cols: t.cols(),
        dtype: t.dtype(),
    }
}

impl View {
    pub fn rows(&self) -> usize {
        self.dims[0]
    }
    pub fn cols(&self) -> usize {
        self.cols
    }
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
    pub fn is(&self, other: &View) -> bool {
        Arc::ptr_eq(&self.buffer, &other.buffer)
    }
    /// `count` elements from `element` on, counted from the view's first.
    pub fn slice(&self, element: usize, count: usize) -> Vec<f32> {
        let size = self.dtype.size();
        let buffer = self.buffer.lock().unwrap();
        let bytes = &buffer[self.offset + element * size..][..count * size];
        let decode = |b: &[u8]| match self.dtype {
            DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            DType::I8 => f32::from(b[0] as i8),
            DType::F8 => f8::decode(b[0]),
            _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        };
        bytes.chunks_exact(size).map(decode).collect()
    }
    pub fn row(&self, row: usize) -> Vec<f32> {
        self.slice(row * self.stride, self.cols)
    }
    pub fn get(&self, row: usize, col: usize) -> f32 {
        self.slice(row * self.stride + col, 1)[0]
    }
    pub fn index(&self, row: usize, col: usize) -> u32 {
        self.get(row, col).to_bits()
    }
    /// Writes elements from `element` on, counted from the view's first.
    pub fn put(&self, element: usize, values: &[f32]) {
        let size = self.dtype.size();
        let mut buffer = self.buffer.lock().unwrap();
        let bytes = &mut buffer[self.offset + element * size..][..values.len() * size];
        for (to, &value) in bytes.chunks_exact_mut(size).zip(values) {
            match self.dtype {
                DType::BF16 => to.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                DType::F16 => to.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                DType::I8 => to[0] = value as i8 as u8,
                DType::F8 => to[0] = f8::encode(value),
                _ => to.copy_from_slice(&value.to_le_bytes()),
            }
        }
    }
    pub fn put_row(&self, row: usize, values: &[f32]) {
        self.put(row * self.stride, values);
    }
    pub fn set(&self, row: usize, col: usize, value: f32) {
        self.put(row * self.stride + col, &[value]);
    }
    pub fn set_index(&self, row: usize, col: usize, value: u32) {
        self.set(row, col, f32::from_bits(value));
    }
}

impl Plan {
    fn push(&mut self, live: Live, rows: usize, command: impl Fn(usize) + Send + 'static) -> Result<()> {
        self.commands.push(Box::new(move |header| command(live.count(header, rows))));
        Ok(())
    }
}

impl Recorder<Naive> for Plan {
    fn header(&mut self, header: &Tensor<Naive>) {
        if self.mutation == Mutation::PlanKeepsOldCounts {
            self.frozen = Some(read_header(header));
        }
        self.header = Some(header.clone());
    }
    fn embed(&mut self, op: Embed<'_, Naive>) -> Result<()> {
        let (out, ids, weight, mutation) = (view(op.out), view(op.ids), op.weight.clone(), self.mutation);
        let sampled = op.sampled.map(view);
        let scale = op.scale;
        self.push(op.live, op.out.rows(), move |live| {
            ops::embed(mutation, live, &out, &ids, sampled.as_ref(), &weight, scale);
        })
    }
    fn norm(&mut self, op: Norm<'_, Naive>) -> Result<()> {
        let (out, x, weight, eps, mutation) = (view(op.out), view(op.x), view(op.weight), op.eps, self.mutation);
        let residual = op.residual.map(view);
        self.push(op.live, op.out.rows(), move |live| {
            ops::norm(mutation, live, &out, &x, &weight, eps, residual.as_ref());
        })
    }
    fn linear(&mut self, op: Linear<'_, Naive>) -> Result<()> {
        let (out, x, weight, mutation) = (view(op.out), view(op.x), op.weight.clone(), self.mutation);
        let (bias, residual) = (op.bias.map(view), op.residual.map(view));
        self.push(op.live, op.out.rows(), move |live| {
            ops::linear(mutation, live, &out, &x, &weight, bias.as_ref(), residual.as_ref());
        })
    }
    fn act_mul(&mut self, op: ActMul<'_, Naive>) -> Result<()> {
        let (out, gate_up, activation, mutation) = (view(op.out), view(op.gate_up), op.activation, self.mutation);
        self.push(op.live, op.out.rows(), move |live| ops::act_mul(mutation, live, &out, &gate_up, activation))
    }
    fn rope_kv(&mut self, op: RopeKv<'_, Naive>) -> Result<()> {
        let args = ops::RopeArgs {
            q: view(op.q),
            k_cache: view(op.k_cache),
            v_cache: view(op.v_cache),
            scales: op.scales.map(|s| [view(s.k), view(s.v)]),
            qkv: view(op.qkv),
            positions: view(op.positions),
            slots: view(op.slots),
            rope: op.rope.map(|r| (view(r.table), r.interleaved)),
            norm: op.qk_norm.map(|n| (view(n.q), view(n.k), n.eps)),
        };
        let mutation = self.mutation;
        self.push(op.live, op.q.rows(), move |live| ops::rope_kv(mutation, live, &args))
    }
    fn attention(&mut self, op: Attention<'_, Naive>) -> Result<()> {
        let args = ops::AttentionArgs {
            out: view(op.out),
            q: view(op.q),
            k_cache: view(op.k_cache),
            v_cache: view(op.v_cache),
            scales: op.scales.map(|s| [view(s.k), view(s.v)]),
            seqs: view(op.seqs),
            table: view(op.table),
            scale: op.scale,
            softcap: op.softcap,
            sinks: op.sinks.map(view),
            window: op.window,
            value_size: op.v_cache.dim(3),
        };
        let mutation = self.mutation;
        self.push(op.live, op.seqs.rows(), move |live| ops::attention(mutation, live, &args))
    }
    fn gather(&mut self, op: Gather<'_, Naive>) -> Result<()> {
        let (out, x, rows, mutation) = (view(op.out), view(op.x), view(op.rows), self.mutation);
        self.push(op.live, op.out.rows(), move |live| ops::gather(mutation, live, &out, &x, &rows))
    }
    fn softcap(&mut self, op: Softcap<'_, Naive>) -> Result<()> {
        let (x, cap, mutation) = (view(op.x), op.cap, self.mutation);
        self.push(op.live, op.x.rows(), move |live| ops::softcap(mutation, live, &x, cap))
    }
    fn sample(&mut self, op: Sample<'_, Naive>) -> Result<()> {
        let args = ops::SampleArgs {
            ids: view(op.ids),
            logprobs: view(op.logprobs),
            top_ids: view(op.top_ids),
            top_logprobs: view(op.top_logprobs),
            logits: view(op.logits),
            params: view(op.params),
            adjust: view(op.adjust),
            masks: op.masks.map(view),
        };
        let mutation = self.mutation;
        self.push(op.live, op.logits.rows(), move |live| ops::sample(mutation, live, &args))
    }
    fn route(&mut self, op: Route<'_, Naive>) -> Result<()> {
        let args = experts::RouteArgs {
            weights: view(&op.routing.weights),
            places: view(&op.routing.places),
            rows: view(&op.routing.rows),
            offsets: view(&op.routing.offsets),
            hits: view(&op.routing.hits),
            logits: view(op.logits),
            bias: op.bias.map(view),
            scoring: op.scoring,
            groups: op.groups,
            renormalise: op.renormalise,
            scale: op.scale,
        };
        let mutation = self.mutation;
        self.push(op.live, op.logits.rows(), move |live| experts::route(mutation, live, &args))
    }
    fn grouped_linear(&mut self, op: GroupedLinear<'_, Naive>) -> Result<()> {
        let args = experts::grouped(&op);
        let (out, mutation) = (view(op.out), self.mutation);
        self.push(Live::All, op.out.rows(), move |rows| {
            experts::grouped_linear(mutation, rows, &out, &args);
        })
    }
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, Naive>) -> Result<()> {
        let (args, activation) = (experts::grouped(&op.product()), op.activation);
        let (out, gate_up, mutation) = (view(op.out), view(op.gate_up), self.mutation);
        self.push(Live::All, op.out.rows(), move |rows| {
            let live = experts::grouped_linear(mutation, rows, &gate_up, &args);
            experts::act_mul(mutation, live, &out, &gate_up, activation);
        })
    }
    fn combine(&mut self, op: Combine<'_, Naive>) -> Result<()> {
        let (out, x, weights, places) = (view(op.out), view(op.x), view(op.weights), view(op.places));
        let (residual, mutation) = (op.residual.map(view), self.mutation);
        self.push(op.live, op.out.rows(), move |live| {
            experts::combine(mutation, live, &out, &x, &weights, &places, residual.as_ref());
        })
    }
    fn latent_kv(&mut self, op: LatentKv<'_, Naive>) -> Result<()> {
        let (args, mutation) = (latent::latent_kv_args(&op), self.mutation);
        self.push(op.live, op.q.rows(), move |live| latent::latent_kv(mutation, live, &args))
    }
    fn latent_attention(&mut self, op: LatentAttention<'_, Naive>) -> Result<()> {
        let (args, mutation) = (latent::attention_args(&op), self.mutation);
        self.push(op.live, op.seqs.rows(), move |live| latent::attention(mutation, live, &args))
    }
    fn head_linear(&mut self, op: HeadLinear<'_, Naive>) -> Result<()> {
        let (out, x, weight, mutation) = (view(op.out), view(op.x), op.weight.clone(), self.mutation);
        self.push(op.live, op.out.rows(), move |live| latent::head_linear(mutation, live, &out, &x, &weight))
    }
}

fn read_header(header: &Tensor<Naive>) -> StepHeader {
    let header = view(header);
    let [tokens, sequences, logit_rows] = [0, 1, 2].map(|i| header.index(i, 0));
    StepHeader { tokens, sequences, logit_rows, reserved: 0 }
}

impl Backend for Naive {
    type Buffer = Bytes;
    type Weight = Packed;
    type Recorder = Plan;
    type Plan = Plan;
    type Readback = Copied;

    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&self, bytes: usize) -> Result<Bytes> {
        Ok(Arc::new(Mutex::new(vec![0x3c; bytes])))
    }
    fn load(&self, weight: HostWeight<'_>) -> Result<Packed> {
        weight.check()?;
        let cols = weight.cols;
        let mut values = Vec::with_capacity(weight.all_rows() * cols);
        let mut scales_before = None;
        for row in weight.parts.iter().flat_map(|part| (0..part.rows).map(|row| part.row(row, cols))) {
            let mut numbers = vec![0.0; cols];
            match weight.store {
                WeightFormat::Float(kept) => {
                    row.values(&mut numbers);
                    values.extend(numbers.into_iter().map(|value| ops::store(kept, value)));
                }
                WeightFormat::F8 => {
                    let (mut bytes, mut scales) = (vec![0; cols], vec![0.0; cols.div_ceil(quant::F8_GROUP)]);
                    row.f8(&mut bytes, &mut scales);
                    let before = scales_before.replace(scales.clone());
                    if self.mutation == Mutation::F8TakesScalesOfRowBefore {
                        scales = before.unwrap_or(scales);
                    }
                    values.extend(ops::read_f8(self.mutation, &bytes, &scales));
                }
                other => {
                    let reason = format!("no matrices of {other}");
                    return Err(Error::Weight { name: weight.name, reason });
                }
            }
        }
        Ok(Packed { stack: weight.stack, rows: weight.rows(), cols: weight.cols, values: Arc::new(values) })
    }
    fn weight_shape(weight: &Packed) -> (usize, usize) {
        (weight.rows, weight.cols)
    }
    fn weight_stack(weight: &Packed) -> usize {
        weight.stack
    }
    fn weight_bytes(&self, rows: usize, cols: usize, store: WeightFormat) -> usize {
        store.bytes(rows, cols)
    }
    fn write(&self, dst: &Tensor<Self>, bytes: &[u8]) -> Result<()> {
        dst.buffer().lock().unwrap()[dst.offset()..dst.offset() + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self, src: &Tensor<Self>) -> Result<Copied> {
        Ok(Copied(src.buffer().lock().unwrap()[src.offset()..src.offset() + src.bytes()].to_vec()))
    }
    fn run(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<()> {
        let plan = self.commands(record)?;
        self.replay(&plan)
    }
    fn record(&self, record: impl FnOnce(&mut Encoder<'_, Self>)) -> Result<Plan> {
        self.commands(record)
    }
    fn replay(&self, plan: &Plan) -> Result<()> {
        *self.runs.lock().unwrap() += 1;
        ops::set_runs(*self.runs.lock().unwrap());
        assert!(self.mutation != Mutation::Panics, "the device fell over");
        let header = plan.frozen.or_else(|| plan.header.as_ref().map(read_header)).unwrap_or_default();
        plan.commands.iter().for_each(|command| command(&header));
        Ok(())
    }
}
