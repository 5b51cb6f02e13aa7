//! A whole model on one device.
use crate::plan::{ExecutorOptions, MemoryPlan};
use crate::stage::{Stage, StageExecutor};
use anyfleet_models::Decoder;
use anyfleet_runtime::{Batch, Executor, ExecutorError, Limits, StepOutput};
use anyfleet_tensor::{Backend, Result};
use std::sync::Arc;

/// Runs one decoder on one backend. See the crate's text.
pub struct ModelExecutor<B: Backend> {
    stage: StageExecutor<B>,
    limits: Limits,
    output: StepOutput,
    /// Submitted steps whose output has not been taken.
    pending: usize,
}

impl<B: Backend> ModelExecutor<B> {
    /// Allocates everything in `plan` beside the weights, which `decoder` already holds.
    ///
    /// # Errors
    /// Out of memory, when something else took it since the plan was made.
    pub fn new(device: Arc<B>, decoder: Decoder<B>, options: &ExecutorOptions, plan: &MemoryPlan) -> Result<Self> {
        Ok(ModelExecutor {
            stage: StageExecutor::new(device, decoder, options, plan, None)?,
            limits: plan.limits.clone(),
            output: StepOutput::default(),
            pending: 0,
        })
    }

    /// Records the plans of all steps there can be, so that the device compiles and allocates what they need now.
    /// Without it each is recorded when its first step comes.
    ///
    /// # Errors
    /// The device's: a kernel that does not compile, out of memory.
    pub fn warm_up(&mut self) -> Result<()> {
        self.stage.warm_up(0)
    }
}

pub(crate) fn failed(error: anyfleet_tensor::Error) -> ExecutorError {
    ExecutorError(error.to_string())
}

impl<B: Backend> Executor for ModelExecutor<B> {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn submit(&mut self, batch: &Batch) -> std::result::Result<(), ExecutorError> {
        assert!(self.pending < self.limits.steps_in_flight, "executor: submit before an earlier step was waited for");
        // Alone, a device has nobody who must know the number of the step, and has chosen all tokens itself.
        self.stage.run(0, batch, None, None).map_err(failed)?;
        self.pending += 1;
        Ok(())
    }

    fn wait(&mut self) -> std::result::Result<&StepOutput, ExecutorError> {
        self.pending = self.pending.checked_sub(1).expect("executor: wait without a submitted step");
        self.stage.output(&mut self.output).map_err(failed)?;
        Ok(&self.output)
    }
}
