//! The executor proper.
use crate::cache::{self, cache_groups};
use crate::inputs::{Bucket, StepInputs};
use crate::output::HeadBuffers;
use crate::plan::{ExecutorOptions, MemoryPlan, step_sizes};
use anyfleet_models::{Decoder, LayerCache, Scratch};
use anyfleet_runtime::{Batch, Executor, ExecutorError, Limits, StepOutput, TokenSource};
use anyfleet_tensor::{Backend, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// Runs one decoder on one backend. See the crate's text.
pub struct ModelExecutor<B: Backend> {
    device: Arc<B>,
    decoder: Decoder<B>,
    limits: Limits,
    caches: Vec<LayerCache<B>>,
    scratch: Scratch<B>,
    inputs: StepInputs<B>,
    head: HeadBuffers<B>,
    plans: HashMap<Bucket, B::Plan>,
    output: StepOutput,
    /// A submitted step whose output has not been taken.
    pending: bool,
}

impl<B: Backend> ModelExecutor<B> {
    /// Allocates everything in `plan` beside the weights, which `decoder` already holds.
    ///
    /// # Errors
    /// Out of memory, when something else took it since the plan was made.
    pub fn new(device: Arc<B>, decoder: Decoder<B>, options: &ExecutorOptions, plan: &MemoryPlan) -> Result<Self> {
        let spec = decoder.spec();
        let limits = plan.limits.clone();
        let groups = cache_groups(spec, limits.max_model_len);
        device.reserve(&step_sizes(spec, options, limits.max_model_len))?;
        Ok(ModelExecutor {
            caches: cache::allocate(&*device, spec, &groups, &limits.cache, options.kv)?,
            scratch: Scratch::new(&*device, spec, options.activation, options.max_tokens)?,
            inputs: StepInputs::new(&*device, options, groups.len(), &limits)?,
            head: HeadBuffers::new(&*device, spec, options)?,
            plans: HashMap::new(),
            output: StepOutput::default(),
            pending: false,
            device,
            decoder,
            limits,
        })
    }

    fn run(&mut self, batch: &Batch) -> Result<()> {
        let sampled = &self.output.ids;
        self.inputs.write(&*self.device, batch, |token| match token {
            TokenSource::Id(id) => id,
            TokenSource::SampledBy(row) => sampled[row as usize],
        })?;
        self.head.prepare(&*self.device, batch)?;
        let bucket = self.inputs.bucket(batch);
        self.plan(bucket)?;
        self.device.replay(&self.plans[&bucket])?;
        self.head.launch(&*self.device, &self.decoder, &self.scratch.x)
    }

    fn plan(&mut self, bucket: Bucket) -> Result<()> {
        if !self.plans.contains_key(&bucket) {
            let step = self.inputs.view(bucket);
            let plan = self.device.record(|enc| self.decoder.layers(enc, &step, &self.caches, &self.scratch))?;
            self.plans.insert(bucket, plan);
        }
        Ok(())
    }

    /// Records the plans of all steps there can be, so that the device compiles and allocates what they need now.
    /// Without it each is recorded when its first step comes.
    ///
    /// # Errors
    /// The device's: a kernel that does not compile, out of memory.
    pub fn warm_up(&mut self) -> Result<()> {
        self.inputs.buckets().into_iter().try_for_each(|bucket| self.plan(bucket))?;
        self.head.warm_up(&*self.device, &self.decoder, &self.scratch.x)
    }
}

fn failed(error: anyfleet_tensor::Error) -> ExecutorError {
    ExecutorError(error.to_string())
}

impl<B: Backend> Executor for ModelExecutor<B> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> std::result::Result<(), ExecutorError> {
        assert!(!self.pending, "executor: submit before the last step was waited for");
        self.run(batch).map_err(failed)?;
        self.pending = true;
        Ok(())
    }

    fn wait(&mut self) -> std::result::Result<&StepOutput, ExecutorError> {
        assert!(std::mem::take(&mut self.pending), "executor: wait without a submitted step");
        self.head.collect(&*self.device, &self.decoder, &self.scratch.x, &mut self.output).map_err(failed)?;
        Ok(&self.output)
    }
}
