//! A model on several devices: stages of layers one after another, each on one device or shared by the ranks of several.
use crate::device::{AnyDevice, Load};
use crate::executor::failed;
use crate::group::{self, End};
use crate::plan::{ExecutorOptions, MemoryPlan, PlanError, plan_placed, residual_elements};
use crate::rank::{Job, Product, Rank, Reply};
use crate::stage::Stage;
use anyfleet_models::{DecoderSpec, LoadError, LoadOptions, Model, Shard};
use anyfleet_runtime::{Batch, Executor, ExecutorError, Limits, StepOutput};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

/// A device and what it shall hold.
pub struct Part {
    /// The device.
    pub device: AnyDevice,
    /// How it runs its part. Parts of one model differ in the type of activations at most.
    pub options: ExecutorOptions,
    /// Its part of the model. Ranks of a stage follow each other, as stages do.
    pub shard: Shard,
    /// Device memory it may take, where that is known: a device may have several parts.
    pub available: Option<u64>,
}

impl Part {
    /// The most elements of a sum over ranks: the residual stream of the largest step.
    pub(crate) fn residual_elements(&self) -> usize {
        residual_elements(&self.shard, &self.options)
    }
}

/// Names of a split's parts: `+` between the ranks of a stage, `,` between stages.
fn joined(parts: &[Part], name: impl Fn(&Part) -> String) -> String {
    let mut text = String::new();
    for (i, part) in parts.iter().enumerate() {
        match (i, part.shard.place.rank) {
            (0, _) => {}
            (_, 0) => text += ", ",
            _ => text += " + ",
        }
        text += &name(part);
    }
    text
}

/// What decides the bits of a logit: stages that follow each other and compute the same bits are one, so that layers
/// divided among equal devices have the name of one device.
fn numerics(parts: &[Part]) -> String {
    let mut stages: Vec<(String, Range<usize>)> = Vec::new();
    for part in parts {
        let name = &part.device.caps().numerics;
        match stages.last_mut() {
            Some((names, _)) if part.shard.place.rank > 0 => *names += &format!("+{name}"),
            _ => stages.push((name.clone(), part.shard.place.layers.clone())),
        }
    }
    stages.dedup_by(|(next, layers), (name, before)| {
        let same = next == name;
        if same {
            before.end = layers.end;
        }
        same
    });
    match &stages[..] {
        [(name, _)] => name.clone(),
        _ => {
            let named =
                |(name, layers): &(String, Range<usize>)| format!("{name} layers {}-{}", layers.start, layers.end - 1);
            stages.iter().map(named).collect::<Vec<_>>().join(", ")
        }
    }
}

/// Each rank of a stage finds a token's experts by itself. Where two of them are nearly equal, devices that round otherwise
/// would not find the same, and add halves of different ones.
fn ranks_agree(spec: &DecoderSpec, parts: &[Part]) -> Result<(), PlanError> {
    let has_experts = |part: &Part| {
        let layers = part.shard.place.layers.clone();
        spec.layers[layers].iter().any(|layer| layer.mlp.experts.is_some())
    };
    let differ = parts.windows(2).find(|pair| {
        let numerics = |i: usize| &pair[i].device.caps().numerics;
        pair[1].shard.place.rank > 0 && has_experts(&pair[1]) && numerics(0) != numerics(1)
    });
    let Some([one, other]) = differ else { return Ok(()) };
    let [one, other] = [one, other].map(|part| &part.device.caps().device);
    Err(PlanError::new(format!(
        "{one} and {other} do not compute the same bits, so they might choose different experts for a token; join devices of \
         one kind with +, or give devices whole layers, with commas"
    )))
}

/// Plans the model `spec` on several devices. The plan's [`parts`](MemoryPlan::parts) are those of the devices.
///
/// # Errors
/// One line that says what does not fit and what would.
pub fn plan_parts(spec: &DecoderSpec, parts: &[Part]) -> Result<MemoryPlan, PlanError> {
    let none = || PlanError::new("no device was named".into());
    let options = &parts.first().ok_or_else(none)?.options;
    ranks_agree(spec, parts)?;
    let placed: Vec<_> = parts.iter().map(|part| part.device.placed(part)).collect();
    let plans = plan_placed(spec, &placed, options)?;
    let device = joined(parts, |part| part.device.caps().device.clone());
    MemoryPlan::sum(plans, device, numerics(parts)).ok_or_else(none)
}

/// Runs one model on several devices. Stages take turns: the residual stream goes from one to the next through the host.
pub struct SplitExecutor {
    limits: Limits,
    stages: Vec<Vec<Rank>>,
    /// Steps so far.
    step: u64,
    /// A step whose last stage has been started.
    pending: bool,
    output: StepOutput,
}

impl SplitExecutor {
    /// Loads the parts of `model` and allocates what [`plan_parts`] planned. `packs` says where packed weights of so
    /// many bytes are kept; `progress` is that of [`Decoder::load`](anyfleet_models::Decoder::load), over all parts.
    ///
    /// # Errors
    /// The first tensor that cannot be used, out of device memory, or stopped.
    pub fn load(
        model: &Model,
        parts: Vec<Part>,
        plan: &MemoryPlan,
        packs: impl Fn(u64) -> Option<PathBuf>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
    ) -> Result<SplitExecutor, LoadError> {
        SplitExecutor::load_joined(model, parts, plan, packs, progress, group::best)
    }

    /// The same with ends for the ranks of each stage.
    fn load_joined(
        model: &Model,
        parts: Vec<Part>,
        plan: &MemoryPlan,
        packs: impl Fn(u64) -> Option<PathBuf>,
        progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
        join: impl Fn(&[Part]) -> anyfleet_tensor::Result<Vec<End>>,
    ) -> Result<SplitExecutor, LoadError> {
        let total = parts.iter().map(|part| part.shard.elements()).sum();
        let (mut before, mut ends) = (0, Vec::new());
        let mut stages: Vec<Vec<Box<dyn Stage>>> = Vec::new();
        for (i, (part, plan)) in parts.iter().zip(&plan.parts).enumerate() {
            if part.shard.place.rank == 0 {
                stages.push(Vec::new());
                ends = join(&parts[i..][..part.shard.place.ranks])?;
                ends.reverse();
            }
            let group = ends.pop().filter(|_| part.shard.place.ranks > 1);
            let options = LoadOptions {
                store: part.options.weights,
                positions: plan.limits.max_model_len,
                packs: packs(plan.weights),
            };
            let progress = &mut |done, _| progress(before + done, total);
            let stage = part.device.load(Load { dir: &model.dir, part, plan, options, group, progress })?;
            before += part.shard.elements();
            if let Some(ranks) = stages.last_mut() {
                ranks.push(stage);
            }
        }
        Ok(SplitExecutor::new(stages, plan.limits.clone())?)
    }

    /// Drives stages, each of one or several ranks. The first of each has the residual stream for the next stage, and
    /// of the last the output.
    ///
    /// # Errors
    /// The system has no thread for each.
    pub fn new(stages: Vec<Vec<Box<dyn Stage>>>, limits: Limits) -> anyfleet_tensor::Result<SplitExecutor> {
        let count = stages.len();
        let spawn = |(number, ranks): (usize, Vec<Box<dyn Stage>>)| {
            let product = |rank: usize| match (rank, number + 1 == count) {
                (0, true) => Product::Output,
                (0, false) => Product::Residual,
                _ => Product::Nothing,
            };
            ranks.into_iter().enumerate().map(|(rank, stage)| Rank::spawn(stage, product(rank))).collect()
        };
        let stages = stages.into_iter().enumerate().map(spawn).collect::<anyfleet_tensor::Result<_>>()?;
        // A step's tokens are handed to the first stage by the host.
        let limits = Limits { steps_in_flight: 1, ..limits };
        Ok(SplitExecutor { limits, stages, step: 0, pending: false, output: StepOutput::default() })
    }

    /// Records the plans of all steps there can be, on all devices at once.
    ///
    /// # Errors
    /// The devices': a kernel that does not compile, out of memory.
    pub fn warm_up(&mut self) -> anyfleet_tensor::Result<()> {
        self.step += 1;
        let (step, ranks) = (self.step, || self.stages.iter().flatten());
        ranks().for_each(|rank| rank.send(Job::WarmUp { step }));
        // All replies are taken, whatever the first says.
        let replies: Vec<_> = ranks().map(Rank::reply).collect();
        replies.into_iter().try_for_each(|reply| reply.map(|_| ()))
    }

    fn start(&self, stage: usize, step: &Arc<Step>, residual: Option<Arc<Vec<f32>>>) {
        for rank in &self.stages[stage] {
            rank.send(Job::Run { step: step.clone(), residual: residual.clone() });
        }
    }

    /// What a stage made of its step. Ranks report the error of the one that failed, whichever that is.
    fn finish(&self, stage: usize) -> anyfleet_tensor::Result<Reply> {
        let mut replies: Vec<_> = self.stages[stage].iter().map(Rank::reply).collect();
        let first = replies.swap_remove(0);
        replies.into_iter().try_for_each(|reply| reply.map(|_| ()))?;
        first
    }

    fn run(&mut self, batch: &Batch) -> anyfleet_tensor::Result<()> {
        self.step += 1;
        let step = Step { number: self.step, batch: batch.clone(), sampled: self.output.ids.clone() };
        let step = Arc::new(step);
        let mut residual = None;
        for stage in 0..self.stages.len() {
            if stage > 0 {
                residual = match self.finish(stage - 1)? {
                    Reply::Residual(values) => Some(Arc::new(values)),
                    _ => None,
                };
            }
            self.start(stage, &step, residual.take());
        }
        Ok(())
    }
}

/// What all ranks are told of a step.
pub(crate) struct Step {
    pub number: u64,
    pub batch: Batch,
    /// Tokens chosen in the step before.
    pub sampled: Vec<u32>,
}

impl Executor for SplitExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> Result<(), ExecutorError> {
        assert!(!self.pending, "executor: submit before the last step was waited for");
        self.run(batch).map_err(failed)?;
        self.pending = true;
        Ok(())
    }

    fn wait(&mut self) -> Result<&StepOutput, ExecutorError> {
        assert!(std::mem::take(&mut self.pending), "executor: wait without a submitted step");
        if let Reply::Output(output) = self.finish(self.stages.len() - 1).map_err(failed)? {
            self.output = output;
        }
        Ok(&self.output)
    }
}

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_cuda::CudaBackend;
    use anyfleet_models::Place;
    use anyfleet_tensor::null::NullBackend;
    use anyfleet_tensor::{DType, WeightFormat};

    /// Ids and bits of log-probabilities of some steps on two devices.
    fn run(join: impl Fn(&[Part]) -> anyfleet_tensor::Result<Vec<End>>) -> Option<Vec<(Vec<u32>, Vec<u32>)>> {
        let model = common::model("llama2");
        let options = ExecutorOptions {
            weights: WeightFormat::Float(DType::BF16),
            kv: DType::BF16,
            activation: DType::F32,
            max_model_len: Some(128),
            kv_bytes: Some(1 << 20),
            max_sequences: 4,
            max_tokens: 40,
            page_size: None,
        };
        let part = |rank| {
            // Without a C++ compiler; crates/conformance says so loudly.
            let device = AnyDevice::new(Arc::new(CudaBackend::emulated().ok()?));
            let place = Place { layers: 0..model.spec.layers.len(), rank, ranks: 2 };
            let shard = Shard::new(&model.spec, &model.weights, place).expect("heads");
            Some(Part { device, options: options.clone(), shard, available: None })
        };
        let parts: Vec<Part> = (0..2).map(part).collect::<Option<_>>()?;
        let plan = plan_parts(&model.spec, &parts).expect("plan");
        let go_on = &mut |_, _| ControlFlow::Continue(());
        let mut executor = SplitExecutor::load_joined(&model, parts, &plan, |_| None, go_on, join).expect("load");
        let groups = plan.limits.cache.groups.len();
        let step = |(sequences, rows)| {
            executor.submit(&common::batch(sequences, rows, groups)).expect("a step");
            let output = executor.wait().expect("an output");
            (output.ids.clone(), output.logprobs.iter().map(|value| value.to_bits()).collect())
        };
        Some([(1, 33), (3, 1), (2, 9)].into_iter().map(step).collect())
    }

    #[test]
    fn sums_from_device_to_device_have_the_bits_of_the_hosts() {
        let on_devices = |parts: &[Part]| {
            let ends = group::best(parts)?;
            assert!(ends.len() == 2 && ends.iter().all(|end| matches!(end, End::Device(_))), "through the host");
            Ok(ends)
        };
        assert_eq!(run(on_devices), run(|parts| Ok(group::through_the_host(parts))));
    }

    #[test]
    fn devices_of_different_backends_meet_on_the_host() {
        let Ok(cuda) = CudaBackend::emulated() else { return };
        let devices = [AnyDevice::new(Arc::new(cuda)), AnyDevice::new(Arc::new(NullBackend::default()))];
        let [one, other] = [(0, 1), (1, 0)].map(|(a, b)| devices[a].group(&[&devices[a], &devices[b]], 8));
        assert!(one.expect("no failure").is_none() && other.expect("no failure").is_none());
    }
}
