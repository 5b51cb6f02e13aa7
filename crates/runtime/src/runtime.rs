//! The step loop.
use crate::{AddError, Event, Executor, Limits, Request, RequestId};
use anyfleet_text::Tokenizer;

/// What a runtime is told besides its executor's [`Limits`].
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Tokens that end a generation unless the request ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Turns token ids into text; without it events carry no text and stop strings are refused.
    pub tokenizer: Option<Tokenizer>,
    /// Keep pages of finished and running sequences to share with requests that begin alike.
    pub prefix_cache: bool,
    /// Token rows per step, bounded by [`Limits::max_tokens`].
    pub max_batch_tokens: usize,
    /// Prompt rows of one sequence per step; `None` is as many as the batch has room for.
    pub max_prefill_chunk: Option<usize>,
    /// Sequences that run at once, bounded by [`Limits::max_sequences`].
    pub max_num_seqs: usize,
    /// Requests that may wait to start.
    pub max_queue: usize,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        RuntimeOptions {
            eos_token_ids: Vec::new(),
            tokenizer: None,
            prefix_cache: true,
            max_batch_tokens: usize::MAX,
            max_prefill_chunk: None,
            max_num_seqs: usize::MAX,
            max_queue: 1024,
        }
    }
}

/// Limits or options with which no request could run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A snapshot of the runtime's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests with a choice that runs.
    pub requests_running: usize,
    /// Requests that have not started.
    pub requests_waiting: usize,
    /// Sequences (choices) that hold cache pages.
    pub sequences_running: usize,
    /// Sequences that wait for pages or for room in the batch.
    pub sequences_waiting: usize,
    /// Per cache group.
    pub groups: Vec<GroupStats>,
    /// Prompt tokens looked up in the prefix cache since the start.
    pub prefix_queries: u64,
    /// Those found there.
    pub prefix_hits: u64,
    /// Sequences that lost their pages to an older one and were computed again.
    pub preemptions: u64,
    /// Token rows computed in prefill (recomputation after preemption included).
    pub prefill_tokens: u64,
    /// Token rows computed in decode.
    pub decode_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps submitted.
    pub steps: u64,
    /// Steps failed.
    pub failed_steps: u64,
}

/// Pages of one cache group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// All pages.
    pub pages: u32,
    /// Pages that hold nothing.
    pub free: u32,
    /// Pages kept for prefix hits that no sequence uses: given up on demand.
    pub cached: u32,
}

/// Schedules requests on an executor.
pub struct Runtime {
    limits: Limits,
    options: RuntimeOptions,
}

impl Runtime {
    /// A runtime for an executor with these limits.
    ///
    /// # Errors
    /// A limit or an option is zero where nothing could then run.
    pub fn new(limits: Limits, options: RuntimeOptions) -> Result<Self, ConfigError> {
        todo!()
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// The request is malformed, can never run, or the queue is full; see [`AddError`].
    pub fn add(&mut self, request: Request) -> Result<RequestId, AddError> {
        todo!()
    }

    /// Forgets a request; its pages are free before the next step and no further event names it.
    /// Unknown and finished requests are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        todo!()
    }

    /// Whether [`Runtime::step`] has anything to do.
    pub fn has_work(&self) -> bool {
        todo!()
    }

    /// Schedules, submits and waits for one step, and tells what came of it.
    pub fn step(&mut self, executor: &mut dyn Executor) -> Vec<Event> {
        todo!()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        todo!()
    }

    /// Whether reference counts equal owners, free lists are disjoint and no page is lost.
    pub fn check_invariants(&self) -> Result<(), String> {
        todo!()
    }
}
