//! A model on one device or several.
use super::{EngineBuilder, Load, Loaded, OnBackend, Plan, model_error, numerics_id};
use crate::{DeviceSpec, Error, Progress, Result, Split};
use anyfleet_executor::{AnyDevice, ExecutorOptions, MemoryPlan, Part, SplitExecutor, plan_parts};
use anyfleet_models::{Model, Place, Shard, divide_layers};
use anyfleet_tensor::{Backend, WeightFormat};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Opens a device, to compute or only to plan.
struct Open<'a, const COMPUTES: bool>(&'a EngineBuilder, &'a Model);

impl<const COMPUTES: bool> OnBackend for Open<'_, COMPUTES> {
    const COMPUTES: bool = COMPUTES;
    type Output = (AnyDevice, ExecutorOptions);

    fn run<B: Backend>(self, device: Arc<B>) -> Result<Self::Output> {
        let options = self.0.executor_options(&*device, self.1)?;
        Ok((AnyDevice::new(device), options))
    }
}

impl EngineBuilder {
    /// The memory plan of `model` where it shall run.
    pub(super) fn planned(&self, model: &Model, warnings: &mut Vec<String>) -> Result<MemoryPlan> {
        let DeviceSpec::Split(split) = &self.device else { return self.on_device(Plan(self, model), warnings) };
        let parts = self.parts::<false>(split, model, warnings)?;
        plan_parts(&model.spec, &parts).map_err(|e| Error::Plan(e.to_string()))
    }

    /// `model` where it shall run. Loading ends early once `stop` is set.
    pub(super) fn loaded(&self, model: &Model, stop: &AtomicBool, warnings: &mut Vec<String>) -> Result<Loaded> {
        let DeviceSpec::Split(split) = &self.device else { return self.on_device(Load(self, model, stop), warnings) };
        let parts = self.parts::<true>(split, model, warnings)?;
        let plan = plan_parts(&model.spec, &parts).map_err(|e| Error::Plan(e.to_string()))?;
        let (first, others) = parts.split_first().ok_or_else(|| Error::Plan("no device was named".into()))?;
        let numerics_id = numerics_id(&plan.numerics, &first.options, others);
        let mut progress = |done, total| {
            (self.on_progress)(Progress::Weights { done, total });
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let packs = |bytes| self.pack_cache.folder(bytes);
        let mut executor = SplitExecutor::load(model, parts, &plan, packs, &mut progress).map_err(model_error)?;
        executor.warm_up().map_err(|e| Error::Device(e.to_string()))?;
        let device = plan.device.clone();
        Ok(Loaded { executor: Box::new(executor), plan, device, dtype: self.weight_dtype(model), numerics_id })
    }

    /// The devices of `split`, each with its part of `model`.
    fn parts<const COMPUTES: bool>(
        &self,
        split: &Split,
        model: &Model,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Part>> {
        let cannot = |e: anyfleet_models::ShardError| Error::Plan(format!("device {split}: {e}"));
        // Before a device is opened, which may take long.
        divide_layers(model.spec.layers.len(), &vec![1; split.stages().len()]).map_err(cannot)?;
        let mut said = Vec::new();
        let mut stages = Vec::new();
        for stage in split.stages() {
            let open = |name: &DeviceSpec| {
                let builder = self.clone().device(name.clone()).threads(self.threads_of_rank(stage));
                let (device, options) = builder.on_device(Open::<COMPUTES>(&builder, model), &mut said)?;
                let parts = split.devices().filter(|other| *other == name).count() as u64;
                let available = device.caps().memory.available.map(|bytes| bytes / parts);
                Ok((device, options, available))
            };
            stages.push(stage.iter().map(open).collect::<Result<Vec<_>>>()?);
        }
        // A model has one format: where a device does not keep what the checkpoint has in eight bits, none does.
        let options = || stages.iter().flatten().map(|(_, options, _): &(_, ExecutorOptions, _)| options);
        if self.stays_f8(model) && options().any(|options| options.weights != WeightFormat::F8) {
            let float = WeightFormat::Float(self.weight_dtype(model));
            stages.iter_mut().flatten().for_each(|(_, options, _)| options.weights = float);
        }
        // Two devices of a kind say the same.
        for warning in said {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        let memory = |stage: &Vec<(_, _, Option<u64>)>| stage.iter().map(|(_, _, available)| *available).sum();
        let sizes: Option<Vec<u64>> = stages.iter().map(memory).collect();
        let sizes = sizes.unwrap_or_else(|| vec![1; stages.len()]);
        let ranges = divide_layers(model.spec.layers.len(), &sizes).map_err(cannot)?;
        let mut parts = Vec::new();
        for (stage, layers) in stages.into_iter().zip(ranges) {
            let ranks = stage.len();
            for (rank, (device, options, available)) in stage.into_iter().enumerate() {
                let place = Place { layers: layers.clone(), rank, ranks };
                let shard = Shard::new(&model.spec, &model.weights, place).map_err(cannot)?;
                parts.push(Part { device, options, shard, available });
            }
        }
        Ok(parts)
    }

    /// Threads of each CPU among the ranks of `stage`, which compute at the same time; stages do not.
    fn threads_of_rank(&self, stage: &[DeviceSpec]) -> usize {
        let all = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let ranks = stage.iter().filter(|device| **device == DeviceSpec::Cpu).count();
        (all / ranks.max(1)).max(1)
    }
}
