//! The engine's thread: takes requests between steps, runs steps, hands events out.
use crate::{Error, Result, StreamEvent};
use anyfleet_runtime::{AddError, Event, Executor, Request, RequestId, RequestSnapshot, Runtime, SnapshotError, Stats};
use async_channel::{Receiver, Sender, TryRecvError};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something for the engine's thread to do between two steps.
pub(crate) enum Command {
    /// Start or resume a request.
    Start(Box<Submission>),
    /// Suspend a request, or all.
    Suspend { request: Option<RequestId>, snapshots: Sender<Result<Vec<RequestSnapshot>>> },
}

/// A request on its way to the engine's thread.
pub(crate) struct Submission {
    pub work: Work,
    pub events: Sender<Result<StreamEvent>>,
    pub accepted: Sender<Result<RequestId>>,
}

pub(crate) enum Work {
    New(Request),
    Resumed { snapshot: RequestSnapshot, tenant_salt: Vec<u8> },
}

/// What the thread tells everybody.
#[derive(Default)]
pub(crate) struct Board {
    stats: Mutex<Stats>,
    rates: Mutex<Rates>,
    /// When the step that runs began; nothing between steps.
    step: Mutex<Option<Instant>>,
    /// Why the engine stopped for good, if it did.
    dead: Mutex<Option<String>>,
}

/// How fast an engine computes, measured over its latest steps; `None` before the first of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Rows of prompts a second, in steps that have nothing else.
    pub prefill: Option<f64>,
    /// Tokens a second over all sequences, in steps that have nothing else.
    pub decode: Option<f64>,
}

/// Share of a new step in a rate.
const NEW: f64 = 0.05;

impl Rates {
    fn note(&mut self, before: &Stats, after: &Stats, seconds: f64) {
        let prefilled = after.prefill_tokens - before.prefill_tokens;
        let decoded = after.decode_tokens - before.decode_tokens;
        let (rate, rows) = match (prefilled, decoded) {
            (rows, 0) => (&mut self.prefill, rows),
            (0, rows) => (&mut self.decode, rows),
            _ => return,
        };
        if rows > 0 && seconds > 0.0 {
            let new = rows as f64 / seconds;
            *rate = Some(rate.map_or(new, |old| old + NEW * (new - old)));
        }
    }
}

impl Board {
    pub fn rates(&self) -> Rates {
        *self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn step_time(&self) -> Option<Duration> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner).map(|start| start.elapsed())
    }

    fn note_step(&self, start: Option<Instant>) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = start;
    }

    pub fn dead(&self) -> Option<String> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) struct Worker {
    pub runtime: Runtime,
    pub executor: Box<dyn Executor>,
    pub commands: Receiver<Command>,
    pub board: Arc<Board>,
    pub streams: HashMap<RequestId, Sender<Result<StreamEvent>>>,
}

impl Worker {
    /// Runs until the commands' channel is closed and all work is done.
    pub fn run(mut self) {
        while self.take_commands() {
            self.cancel_dropped();
            // A panic is a bug of ours; the requests in flight must hear of it all the same.
            let (before, start) = (self.runtime.stats(), Instant::now());
            self.board.note_step(Some(start));
            let events = std::panic::catch_unwind(AssertUnwindSafe(|| self.runtime.step(&mut *self.executor)));
            self.board.note_step(None);
            match events {
                Ok(events) => {
                    // First, so that who has seen a request finish sees its pages free.
                    let mut rates = self.board.rates();
                    rates.note(&before, &self.runtime.stats(), start.elapsed().as_secs_f64());
                    *self.board.rates.lock().unwrap_or_else(PoisonError::into_inner) = rates;
                    self.publish();
                    events.into_iter().for_each(|event| self.dispatch(event));
                }
                Err(panic) => return self.die(panic_message(&*panic)),
            }
        }
    }

    /// Takes what is to be done; waits when there is nothing else to do. False at the end.
    fn take_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty | TryRecvError::Closed) if self.runtime.has_work() => return true,
                Err(TryRecvError::Closed) => return false,
                Err(TryRecvError::Empty) => {
                    self.publish();
                    match self.commands.recv_blocking() {
                        Ok(command) => self.obey(command),
                        Err(_) => return false,
                    }
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(submission) => self.start(*submission),
            Command::Suspend { request, snapshots } => {
                let suspended = match request {
                    Some(id) => self.suspend(id).map(|snapshot| snapshot.into_iter().collect()),
                    None => {
                        let all: Vec<RequestId> = self.streams.keys().copied().collect();
                        Ok(all.into_iter().filter_map(|id| self.suspend(id).ok().flatten()).collect())
                    }
                };
                let _ = snapshots.try_send(suspended);
            }
        }
    }

    fn start(&mut self, submission: Submission) {
        let Submission { work, events, accepted } = submission;
        // A caller that is gone already gets nothing computed.
        if events.is_closed() {
            return;
        }
        let started = match work {
            Work::New(request) => self.runtime.add(request).map(|id| (id, Vec::new())),
            Work::Resumed { snapshot, tenant_salt } => self.runtime.resume(snapshot, tenant_salt),
        };
        match started {
            Ok((id, first)) => {
                self.streams.insert(id, events);
                let _ = accepted.try_send(Ok(id));
                first.into_iter().for_each(|event| self.dispatch(event));
            }
            Err(error) => drop(accepted.try_send(Err(refusal(error)))),
        }
    }

    /// Ends a request with its snapshot, which its stream gets too.
    fn suspend(&mut self, id: RequestId) -> Result<Option<RequestSnapshot>> {
        let refused = |error: SnapshotError| Error::Request { param: None, message: error.to_string() };
        let snapshot = self.runtime.suspend(id).map_err(refused)?;
        if let Some(snapshot) = &snapshot
            && let Some(events) = self.streams.remove(&id)
        {
            let _ = events.try_send(Ok(StreamEvent::Suspended(Box::new(snapshot.clone()))));
        }
        Ok(snapshot)
    }

    fn cancel_dropped(&mut self) {
        let runtime = &mut self.runtime;
        self.streams.retain(|&id, events| {
            if events.is_closed() {
                runtime.cancel(id);
            }
            !events.is_closed()
        });
    }

    fn dispatch(&mut self, event: Event) {
        let (id, last, event) = match event {
            Event::PromptLogprobs { request, logprobs } => (request, false, Ok(StreamEvent::PromptLogprobs(logprobs))),
            Event::Delta { request, choice, text, tokens } => {
                (request, false, Ok(StreamEvent::Delta { choice, text, tokens }))
            }
            Event::Finished { request, choice, reason, usage, last } => {
                (request, last, Ok(StreamEvent::Finished { choice, reason, usage }))
            }
            Event::Failed { request, message } => (request, true, Err(Error::Failed(message))),
        };
        if let Some(events) = self.streams.get(&id) {
            // The channel has no bound (the request's max_tokens is one) and a dropped receiver is
            // noticed before the next step.
            let _ = events.try_send(event);
        }
        if last {
            self.streams.remove(&id);
        }
    }

    fn publish(&self) {
        *self.board.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.runtime.stats();
    }

    fn die(mut self, message: String) {
        tracing::error!("the engine stopped: {message}");
        let error = Error::Failed(format!("the engine stopped after an internal error: {message}"));
        *self.board.dead.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        self.commands.close();
        for (_, events) in self.streams.drain() {
            let _ = events.try_send(Err(error.clone()));
        }
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Start(submission) = command {
                let _ = submission.accepted.try_send(Err(error.clone()));
            }
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

/// A refused request in the facade's words.
fn refusal(error: AddError) -> Error {
    let request = |param: &str, message: String| Error::Request { param: Some(param.to_owned()), message };
    match error {
        AddError::InvalidParam(e) => request(e.param, e.to_string()),
        AddError::ContextTooLong { prompt_tokens, max_tokens, max_model_len } => {
            Error::ContextLength { max: max_model_len, prompt: prompt_tokens, requested: max_tokens }
        }
        AddError::NeverFits { prompt_tokens, max_tokens, capacity_tokens } => {
            Error::ContextLength { max: capacity_tokens, prompt: prompt_tokens, requested: max_tokens }
        }
        AddError::Snapshot { .. } => request("snapshot", error.to_string()),
        AddError::QueueFull { max_queue } => Error::QueueFull { waiting: max_queue },
        other => request("prompt", other.to_string()),
    }
}
