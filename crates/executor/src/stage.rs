//! One device's part of every step.
use crate::cache;
use crate::head_inputs;
use crate::inputs::{Bucket, StepInputs};
use crate::output::{HeadBuffers, LOGIT_ROWS, sampled_at};
use crate::plan::{ExecutorOptions, MemoryPlan, step_sizes};
use crate::residual;
use anyfleet_models::{Decoder, LayerCache, Scratch};
use anyfleet_runtime::{Batch, Limits, StepOutput, TokenSource};
use anyfleet_tensor::{Backend, Communicator, Error, Result, ops};
use std::collections::HashMap;
use std::sync::Arc;

/// A part of a model on a device, of whatever backend.
pub trait Stage: Send {
    /// Starts step `step`, another number each time. `sampled` are the tokens chosen in the step before, or `None` where
    /// this has all of the model and chose them itself; and `residual` is what the layers before have made of the batch's
    /// rows, where this is not the first.
    ///
    /// # Errors
    /// The device failed, or one it shares layers with.
    fn run(&mut self, step: u64, batch: &Batch, sampled: Option<&[u32]>, residual: Option<&[f32]>) -> Result<()>;

    /// Waits for what the layers made of `rows` rows.
    ///
    /// # Errors
    /// The device failed.
    fn residual(&mut self, rows: usize, out: &mut Vec<f32>) -> Result<()>;

    /// Waits for the output of the oldest step that has not been asked for, where this has the head.
    ///
    /// # Errors
    /// The device failed.
    fn output(&mut self, output: &mut StepOutput) -> Result<()>;

    /// Waits until the device is through with the step, where neither of the above is asked for.
    ///
    /// # Errors
    /// The device failed.
    fn wait(&mut self) -> Result<()>;

    /// Tells devices it shares layers with that it goes no further in this step.
    fn abort(&mut self, error: &Error);

    /// Records all plans, so that the device compiles and allocates what they need now. `step` is as in
    /// [`run`](Stage::run): devices that share layers add once.
    ///
    /// # Errors
    /// The device's: a kernel that does not compile, out of memory. Or one of a device it shares layers with.
    fn warm_up(&mut self, step: u64) -> Result<()>;
}

/// Runs a decoder, or a shard of one, on a backend.
pub(crate) struct StageExecutor<B: Backend> {
    device: Arc<B>,
    decoder: Decoder<B>,
    caches: Vec<LayerCache<B>>,
    scratch: Scratch<B>,
    inputs: StepInputs<B>,
    /// Where the decoder has a head.
    head: Option<HeadBuffers<B>>,
    /// Of each segment of the decoder.
    plans: HashMap<Bucket, Vec<B::Plan>>,
    /// Where the decoder is one of several ranks.
    group: Option<Box<dyn Communicator<B>>>,
}

impl<B: Backend> StageExecutor<B> {
    /// Allocates everything in `plan` beside the weights.
    ///
    /// # Panics
    /// When one of several ranks has no group: a bug of the caller.
    pub(crate) fn new(
        device: Arc<B>,
        decoder: Decoder<B>,
        options: &ExecutorOptions,
        plan: &MemoryPlan,
        group: Option<Box<dyn Communicator<B>>>,
    ) -> Result<Self> {
        assert!(group.is_some() || decoder.place().ranks == 1, "stage: a rank without a group");
        let (spec, limits): (_, &Limits) = (decoder.spec(), &plan.limits);
        device.reserve(&step_sizes(spec, options, limits.max_model_len))?;
        let inputs = StepInputs::new(&*device, options, limits.cache.groups.len(), limits)?;
        let head = decoder.has_head().then(|| HeadBuffers::new(&*device, inputs.head(), spec, options));
        Ok(StageExecutor {
            caches: cache::allocate(&*device, spec, limits, options.kv)?,
            scratch: Scratch::new(&*device, spec, options.activation, options.max_tokens)?,
            inputs,
            head: head.transpose()?,
            plans: HashMap::new(),
            group,
            device,
            decoder,
        })
    }

    fn plan(&mut self, bucket: Bucket) -> Result<()> {
        if !self.plans.contains_key(&bucket) {
            let step = self.inputs.view(bucket, self.head.as_ref().map(HeadBuffers::sampled));
            let record = |segment| {
                self.device.record(|enc| self.decoder.segment(enc, segment, &step, &self.caches, &self.scratch))
            };
            let plans = (0..self.decoder.segments()).map(record).collect::<Result<_>>()?;
            self.plans.insert(bucket, plans);
        }
        Ok(())
    }
}

impl<B: Backend> Stage for StageExecutor<B> {
    fn run(&mut self, step: u64, batch: &Batch, sampled: Option<&[u32]>, residual: Option<&[f32]>) -> Result<()> {
        let device = &*self.device;
        if let Some(group) = &mut self.group {
            group.begin(step);
        }
        let resolve = |token| match (token, sampled) {
            (TokenSource::Id(id), _) => id,
            (TokenSource::SampledBy(row), Some(ids)) => ids[row as usize],
            (TokenSource::SampledBy(row), None) => ops::SAMPLED | sampled_at(row),
        };
        let first = |words: &mut [u32]| {
            if let Some(rows) = batch.logit_rows.chunks(LOGIT_ROWS).next() {
                head_inputs::fill(words, batch, rows);
            }
        };
        self.inputs.write(device, batch, resolve, first)?;
        if let Some(head) = &mut self.head {
            head.prepare(device, &self.decoder, &self.scratch.x, batch)?;
        }
        let x = self.scratch.x.narrow(0, batch.tokens.len());
        if let Some(values) = residual {
            residual::write(device, &x, values)?;
        }
        let bucket = self.inputs.bucket(batch);
        self.plan(bucket)?;
        for plan in &self.plans[&bucket] {
            self.device.replay(plan)?;
            if let Some(group) = &mut self.group {
                group.all_reduce(&self.device, &x)?;
            }
        }
        self.head.as_mut().map_or(Ok(()), |head| head.launch(&*self.device, batch))
    }

    fn residual(&mut self, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        residual::read(&*self.device, &self.scratch.x.narrow(0, rows), out)
    }

    fn output(&mut self, output: &mut StepOutput) -> Result<()> {
        let head = self.head.as_mut().expect("stage: the head is on another device");
        head.collect(output)
    }

    fn wait(&mut self) -> Result<()> {
        // What is read last comes last.
        residual::read(&*self.device, &self.scratch.x.narrow(0, 1), &mut Vec::new())
    }

    fn abort(&mut self, error: &Error) {
        if let Some(group) = &mut self.group {
            group.abort(error);
        }
    }

    fn warm_up(&mut self, step: u64) -> Result<()> {
        if let Some(group) = &mut self.group {
            group.begin(step);
        }
        self.inputs.buckets().into_iter().try_for_each(|bucket| self.plan(bucket))?;
        if let Some(head) = &mut self.head {
            head.warm_up(&*self.device, &self.decoder, &self.scratch.x)?;
        }
        // Making room for a transfer or a way to a peer may wait for other devices of the machine, and in a step one of
        // them may wait for a sum that its rank has not come to. One device alone makes room when it has results.
        match &self.head {
            Some(head) if step > 0 => head.make_room(&*self.device)?,
            _ => {}
        }
        let Some(group) = &mut self.group else { return Ok(()) };
        let rows = if self.head.is_none() && self.decoder.place().rank == 0 { self.scratch.x.rows() } else { 1 };
        residual::read(&*self.device, &self.scratch.x.narrow(0, rows), &mut Vec::new())?;
        group.all_reduce(&self.device, &self.scratch.x.narrow(0, 1))?;
        self.wait()
    }
}
