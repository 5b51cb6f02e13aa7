//! The engine's whole view of a device.
use crate::{Batch, StepOutput};

/// How one group of layers keeps its state, and so how its pages are allocated, shared and freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheKind {
    /// Keys and values of every token.
    Paged,
    /// Keys and values of the last `n` tokens; older pages are freed.
    Window(u32),
    /// One compressed vector per token (multi-head latent attention); pages like [`CacheKind::Paged`].
    Latent,
    /// One fixed-size state per sequence, checkpointed at page-aligned positions.
    Recurrent,
}

/// One cache group: layers that share an allocator and a block table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// Kind of state.
    pub kind: CacheKind,
    /// Pages (for [`CacheKind::Recurrent`]: states) in this group's memory.
    pub pages: u32,
}

/// A model's cache, as planned before load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Tokens per page, the same in every group.
    pub page_size: u32,
    /// Groups, in the order [`Batch::groups`] uses.
    pub groups: Vec<GroupSpec>,
}

/// What an executor can take.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Token rows per batch.
    pub max_tokens: usize,
    /// Sequences per batch.
    pub max_sequences: usize,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
    /// Size of the vocabulary; ids are below it.
    pub vocab_size: usize,
    /// The cache.
    pub cache: CacheSpec,
    /// Batches that may be submitted before the first is waited for; at least 1.
    pub steps_in_flight: usize,
}

/// A failed step. The engine fails the requests in it and goes on.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ExecutorError(pub String);

/// Runs batches on a device. Object-safe: the one erased seam between the runtime and hardware.
pub trait Executor: Send {
    /// What it can take; constant.
    fn limits(&self) -> &Limits;
    /// Starts a step. Returns as soon as the batch has been copied, or, where whole rows of logits are wanted, with them.
    ///
    /// # Errors
    /// The device failed; nothing of the batch's sequences in the cache may be relied on.
    fn submit(&mut self, batch: &Batch) -> Result<(), ExecutorError>;
    /// Waits for the oldest submitted step.
    ///
    /// # Errors
    /// As [`Executor::submit`].
    fn wait(&mut self) -> Result<&StepOutput, ExecutorError>;
}
