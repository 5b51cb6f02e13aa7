//! The step loop.
use crate::assemble::assemble;
use crate::cache::Cache;
use crate::constraint::Guide;
use crate::output::Output;
use crate::postprocess::{Step, delta, finish_choice};
use crate::prefix::Scope;
use crate::scheduler::{Progress, Scheduler, StepLimits};
use crate::sequence::{Job, SeqKey, Sequence};
use crate::{
    AddError, Batch, Event, Executor, ExecutorError, Identity, Limits, ParamError, Request, RequestId, RequestSnapshot,
    SamplingParams, SnapshotError, Stats, snapshot,
};
use anyfleet_text::{Detokenizer, Tokenizer};
use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

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
    /// What snapshots say they are of, and must be of to be resumed.
    pub identity: Identity,
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
            identity: Identity::default(),
        }
    }
}

/// Limits or options with which no request could run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Schedules requests on an executor.
///
/// ```
/// use anyfleet_runtime::null::NullExecutor;
/// use anyfleet_runtime::{Event, Executor, Request, Runtime, RuntimeOptions, SamplingParams};
///
/// let mut executor = NullExecutor::small();
/// let mut runtime = Runtime::new(executor.limits().clone(), RuntimeOptions::default()).unwrap();
/// let params = SamplingParams { max_tokens: Some(3), ..SamplingParams::default() };
/// runtime.add(Request { prompt: vec![1, 2, 3], params, ..Request::default() }).unwrap();
/// let mut tokens = 0;
/// while runtime.has_work() {
///     for event in runtime.step(&mut executor) {
///         if let Event::Delta { tokens: new, .. } = event {
///             tokens += new.len();
///         }
///     }
/// }
/// assert_eq!(tokens, 3);
/// ```
pub struct Runtime {
    limits: Limits,
    options: RuntimeOptions,
    scheduler: Scheduler,
    batch: Batch,
    /// Submitted steps, oldest first.
    in_flight: VecDeque<Step>,
    next_id: u64,
    entropy: RandomState,
}

/// Steps that the runtime keeps in flight at most: one runs while the next is prepared.
const MAX_STEPS_IN_FLIGHT: usize = 2;

impl Runtime {
    /// A runtime for an executor with these limits.
    ///
    /// # Errors
    /// A limit or an option is zero where nothing could then run.
    pub fn new(limits: Limits, options: RuntimeOptions) -> Result<Self, ConfigError> {
        let step = StepLimits {
            rows: options.max_batch_tokens.min(limits.max_tokens),
            chunk: options.max_prefill_chunk.unwrap_or(usize::MAX),
            sequences: options.max_num_seqs.min(limits.max_sequences),
        };
        let pages = limits.cache.groups.iter().map(|group| group.pages as usize).min().unwrap_or(1);
        let needed = [
            ("tokens per step", step.rows),
            ("max_prefill_chunk", step.chunk),
            ("sequences per step", step.sequences),
            ("max_queue", options.max_queue),
            ("max_model_len", limits.max_model_len),
            ("the vocabulary size", limits.vocab_size),
            ("the cache's page size", limits.cache.page_size as usize),
            ("the number of pages of a cache group", pages),
            ("steps_in_flight", limits.steps_in_flight),
        ];
        if let Some((what, _)) = needed.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError(format!("{what} must be at least 1")));
        }
        let cache = Cache::new(&limits.cache, options.prefix_cache);
        let batch = Batch { groups: cache.empty_batch(), ..Batch::default() };
        Ok(Runtime {
            limits,
            options,
            scheduler: Scheduler::new(step, cache),
            batch,
            in_flight: VecDeque::new(),
            next_id: 0,
            entropy: RandomState::new(),
        })
    }

    /// Takes a request into the queue.
    ///
    /// Where its parameters name no seed it gets one from a generator that the standard library keys
    /// from the operating system's randomness.
    ///
    /// # Errors
    /// The request is malformed, can never run, or the queue is full; see [`AddError`].
    pub fn add(&mut self, request: Request) -> Result<RequestId, AddError> {
        let max_len = self.admissible(&request)?;
        let id = self.next_id();
        let choices = self.choices(id, request, max_len);
        self.scheduler.insert(id, Progress::default(), (0..).zip(choices));
        Ok(id)
    }

    fn next_id(&mut self) -> RequestId {
        self.next_id += 1;
        RequestId(self.next_id - 1)
    }

    /// Ends a request with what [`Runtime::resume`] needs to go on with it; its pages are free before the next step
    /// and no further event names it. `None` if it is unknown or complete.
    ///
    /// # Errors
    /// The request has a [`Constraint`](crate::Constraint), which no snapshot can hold; it goes on here.
    pub fn suspend(&mut self, request: RequestId) -> Result<Option<RequestSnapshot>, SnapshotError> {
        let snapshot = self.snapshot(request)?;
        if snapshot.is_some() {
            self.scheduler.remove_request(request);
        }
        Ok(snapshot)
    }

    /// What [`Runtime::suspend`] would give, while the request goes on.
    ///
    /// # Errors
    /// As [`Runtime::suspend`].
    pub fn snapshot(&self, request: RequestId) -> Result<Option<RequestSnapshot>, SnapshotError> {
        let Some(progress) = self.scheduler.requests.get(&request) else { return Ok(None) };
        let mut choices = self.scheduler.choices(request).peekable();
        let Some((_, first)) = choices.peek() else { return Ok(None) };
        if first.guide.is_some() {
            let message = "a request with a constraint has no snapshot: let it end here, or cancel it and ask again";
            return Err(SnapshotError(message.into()));
        }
        let job = first.job.clone();
        let max_tokens = (job.max_len - job.prompt_len()) as u32;
        let params = SamplingParams { seed: Some(job.seed), max_tokens: Some(max_tokens), ..job.params.clone() };
        let (identity, adapter) = (self.options.identity.clone(), job.scope.adapter);
        let mut snapshot = RequestSnapshot::new(identity, job.prompt.clone(), params, adapter);
        snapshot.cached_prompt_tokens = progress.cached_tokens;
        snapshot.prompt_scored = true;
        for (key, sequence) in choices {
            snapshot.prompt_scored &= sequence.prompt_scores.is_none();
            snapshot.choices[key.choice as usize] = sequence.snapshot();
        }
        for (&choice, &tokens) in &progress.finished {
            snapshot.choices[choice as usize].finished = Some(tokens);
        }
        Ok(Some(snapshot))
    }

    /// Takes a suspended request into the queue, and tells what its caller does not have of it yet. Complete choices
    /// are not mentioned again.
    ///
    /// # Errors
    /// As [`Runtime::add`], and where the snapshot is of another model, contradicts itself, or has nothing left to do.
    pub fn resume(
        &mut self,
        snapshot: RequestSnapshot,
        tenant_salt: Vec<u8>,
    ) -> Result<(RequestId, Vec<Event>), AddError> {
        snapshot.check(&self.options.identity, self.limits.vocab_size)?;
        if snapshot.is_finished() {
            return Err(snapshot::bad("all its choices are complete".into()));
        }
        let RequestSnapshot { prompt, params, adapter, prompt_scored, cached_prompt_tokens, choices, .. } = snapshot;
        let request = Request { prompt, params, adapter, tenant_salt, constraint: None };
        let max_len = self.admissible(&request)?;
        let id = self.next_id();
        let mut progress = Progress {
            cached_tokens: cached_prompt_tokens,
            prefilled: choices[0].finished.is_some(),
            ..Progress::default()
        };
        let (mut sequences, mut events, mut complete) = (Vec::new(), Vec::new(), Vec::new());
        for (mut sequence, (choice, state)) in self.choices(id, request, max_len).zip((0..).zip(choices)) {
            let key = SeqKey { request: id, choice };
            if let Some(tokens) = state.finished {
                progress.finished.insert(choice, tokens);
                continue;
            }
            if prompt_scored {
                sequence.prompt_scores = None;
            }
            let (piece, finish) = sequence
                .replay(state, &self.options.eos_token_ids)
                .map_err(|message| snapshot::bad(format!("choice {choice} {message}")))?;
            events.extend(delta(key, piece));
            complete.extend(finish.map(|reason| (key, reason)));
            sequences.push((choice, sequence));
        }
        self.scheduler.insert(id, progress, sequences.into_iter());
        for (key, reason) in complete {
            finish_choice(key, reason, &mut self.scheduler, &mut events);
        }
        Ok((id, events))
    }

    /// Whether a request can be queued, and the tokens, prompt and output, at which a choice of it is full.
    fn admissible(&self, request: &Request) -> Result<usize, AddError> {
        self.check_request(request)?;
        let max_len = self.max_len(request.prompt.len(), request.params.max_tokens)?;
        if self.scheduler.queued() >= self.options.max_queue {
            return Err(AddError::QueueFull { max_queue: self.options.max_queue });
        }
        Ok(max_len)
    }

    fn check_request(&self, request: &Request) -> Result<(), AddError> {
        let vocab_size = self.limits.vocab_size;
        request.params.validate(vocab_size)?;
        if !request.params.stop.is_empty() && self.options.tokenizer.is_none() {
            let message = "stop strings need a tokenizer, and this runtime has none: use stop_token_ids".into();
            return Err(ParamError { param: "stop", message }.into());
        }
        if request.prompt.is_empty() {
            return Err(AddError::EmptyPrompt);
        }
        match request.prompt.iter().enumerate().find(|&(_, &id)| id as usize >= vocab_size) {
            Some((index, &id)) => Err(AddError::TokenOutOfVocab { index, id, vocab_size }),
            None => Ok(()),
        }
    }

    /// Tokens, prompt and output, at which a choice is full.
    fn max_len(&self, prompt_tokens: usize, max_tokens: Option<u32>) -> Result<usize, AddError> {
        let max_model_len = self.limits.max_model_len;
        let capacity_tokens = self.capacity();
        let asked = max_tokens.map_or(1, |max| max as usize);
        if prompt_tokens + asked > max_model_len {
            return Err(AddError::ContextTooLong { prompt_tokens, max_tokens: asked, max_model_len });
        }
        if prompt_tokens + asked.max(1) > capacity_tokens {
            return Err(AddError::NeverFits { prompt_tokens, max_tokens: asked, capacity_tokens });
        }
        Ok(match max_tokens {
            Some(_) => prompt_tokens + asked,
            None => self.max_sequence_len(),
        })
    }

    /// The most tokens, prompt and output, that a sequence can have: the model's length, or less
    /// where the cache holds less.
    pub fn max_sequence_len(&self) -> usize {
        self.limits.max_model_len.min(self.capacity())
    }

    /// The most tokens, prompt and output, that the cache allows a sequence that runs alone.
    fn capacity(&self) -> usize {
        // The last token is never fed, so it needs no room.
        self.scheduler.cache.capacity().saturating_add(1)
    }

    fn choices(&self, id: RequestId, request: Request, max_len: usize) -> impl Iterator<Item = Sequence> + use<> {
        let Request { prompt, params, adapter, tenant_salt, constraint } = request;
        let detokenizer =
            self.options.tokenizer.as_ref().map(|t| Detokenizer::after_prompt(t, &prompt, params.skip_special_tokens));
        let output = Output::new(&params, detokenizer);
        let job = Arc::new(Job {
            scope: Scope { tenant_salt: tenant_salt.into(), adapter },
            seed: params.seed.unwrap_or_else(|| self.entropy.hash_one(id)),
            prompt,
            stop_tokens: self.stop_tokens(&params),
            max_len,
            params,
        });
        let guide = move || constraint.as_deref().map(Guide::new);
        (0..job.params.n).map(move |choice| Sequence::new(job.clone(), choice, output.clone(), guide()))
    }

    /// The tokens that end a choice of this request.
    fn stop_tokens(&self, params: &SamplingParams) -> Vec<u32> {
        let eos: &[u32] = if params.ignore_eos { &[] } else { &self.options.eos_token_ids };
        let ids = eos.iter().chain(&params.stop_token_ids).copied();
        ids.filter(|&id| (id as usize) < self.limits.vocab_size).collect()
    }

    /// Forgets a request; its pages are free before the next step and no further event names it.
    /// Unknown and finished requests are ignored.
    pub fn cancel(&mut self, request: RequestId) {
        self.scheduler.remove_request(request);
    }

    /// Whether [`Runtime::step`] has anything to do.
    pub fn has_work(&self) -> bool {
        !self.scheduler.sequences.is_empty() || !self.in_flight.is_empty()
    }

    /// Schedules and submits what the executor can take, waits for the oldest step, and tells what
    /// came of it.
    ///
    /// When a step fails, the requests in it fail; everything else starts over with an empty cache.
    pub fn step(&mut self, executor: &mut dyn Executor) -> Vec<Event> {
        let mut events = Vec::new();
        let depth = self.limits.steps_in_flight.min(MAX_STEPS_IN_FLIGHT);
        while self.in_flight.len() < depth {
            // A step without those that wait for their tokens would part the batch for good.
            if !self.in_flight.is_empty() && self.scheduler.waits_for_tokens() {
                break;
            }
            let Some(step) = self.schedule() else { break };
            if let Err(error) = executor.submit(&self.batch) {
                self.fail(&step, &error, executor, &mut events);
                return events;
            }
            self.in_flight.push_back(step);
        }
        if let Some(step) = self.in_flight.pop_front() {
            let outcome =
                executor.wait().and_then(|output| step.check(output, self.limits.vocab_size).map(|()| output));
            match outcome {
                Ok(output) => step.postprocess(output, &mut self.scheduler, &self.options.eos_token_ids, &mut events),
                Err(error) => self.fail(&step, &error, executor, &mut events),
            }
        }
        events
    }

    /// Plans the next step and writes its batch; `None` if nothing can run now.
    fn schedule(&mut self) -> Option<Step> {
        self.scheduler.plan();
        if self.scheduler.plan.is_empty() {
            return None;
        }
        let rows = assemble(&mut self.scheduler, self.limits.vocab_size, &mut self.batch);
        self.scheduler.counters.steps += 1;
        Some(Step::new(&self.scheduler.plan, &self.batch, rows))
    }

    /// Fails the requests of a step and recomputes all others.
    fn fail(&mut self, step: &Step, error: &ExecutorError, executor: &mut dyn Executor, events: &mut Vec<Event>) {
        // Steps submitted since read what this one should have stored: their results, errors
        // included, mean nothing.
        for _ in self.in_flight.drain(..) {
            let _ = executor.wait();
        }
        self.scheduler.counters.failed_steps += 1;
        for request in step.requests() {
            if self.scheduler.remove_request(request) {
                events.push(Event::Failed { request, message: format!("the device failed: {error}") });
            }
        }
        self.scheduler.start_over();
    }

    /// Counters and gauges.
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// Whether reference counts equal owners, free lists are disjoint and no page is lost. Reads
    /// everything: for tests, and for a server that has nothing else to do.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.scheduler.check()
    }
}
