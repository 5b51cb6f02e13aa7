//! The engine's thread: takes requests between steps, runs steps, hands events out.
use crate::{Error, Result, StreamEvent};
use anyfleet_runtime::{AddError, Event, Executor, Request, RequestId, Runtime, Stats};
use async_channel::{Receiver, Sender, TryRecvError};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

/// A request on its way to the engine's thread.
pub(crate) struct Submission {
    pub request: Request,
    pub events: Sender<Result<StreamEvent>>,
    pub accepted: Sender<Result<()>>,
}

/// What the thread tells everybody.
#[derive(Default)]
pub(crate) struct Board {
    stats: Mutex<Stats>,
    /// Why the engine stopped for good, if it did.
    dead: Mutex<Option<String>>,
}

impl Board {
    pub fn stats(&self) -> Stats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn dead(&self) -> Option<String> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(crate) struct Worker {
    pub runtime: Runtime,
    pub executor: Box<dyn Executor>,
    pub submissions: Receiver<Submission>,
    pub board: Arc<Board>,
    pub streams: HashMap<RequestId, Sender<Result<StreamEvent>>>,
}

impl Worker {
    /// Runs until the submissions' channel is closed and all work is done.
    pub fn run(mut self) {
        while self.take_submissions() {
            self.cancel_dropped();
            // A panic is a bug of ours; the requests in flight must hear of it all the same.
            let events = std::panic::catch_unwind(AssertUnwindSafe(|| self.runtime.step(&mut *self.executor)));
            match events {
                Ok(events) => {
                    // First, so that who has seen a request finish sees its pages free.
                    self.publish();
                    events.into_iter().for_each(|event| self.dispatch(event));
                }
                Err(panic) => return self.die(panic_message(&*panic)),
            }
        }
    }

    /// Takes what was submitted; waits when there is nothing else to do. False at the end.
    fn take_submissions(&mut self) -> bool {
        loop {
            match self.submissions.try_recv() {
                Ok(submission) => self.add(submission),
                Err(TryRecvError::Empty | TryRecvError::Closed) if self.runtime.has_work() => return true,
                Err(TryRecvError::Closed) => return false,
                Err(TryRecvError::Empty) => {
                    self.publish();
                    match self.submissions.recv_blocking() {
                        Ok(submission) => self.add(submission),
                        Err(_) => return false,
                    }
                }
            }
        }
    }

    fn add(&mut self, submission: Submission) {
        let Submission { request, events, accepted } = submission;
        // A caller that is gone already gets nothing computed.
        if events.is_closed() {
            return;
        }
        let added = self.runtime.add(request);
        let reply = match added {
            Ok(id) => {
                self.streams.insert(id, events);
                Ok(())
            }
            Err(error) => Err(refusal(error)),
        };
        let _ = accepted.try_send(reply);
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
        self.submissions.close();
        for (_, events) in self.streams.drain() {
            let _ = events.try_send(Err(error.clone()));
        }
        while let Ok(submission) = self.submissions.try_recv() {
            let _ = submission.accepted.try_send(Err(error.clone()));
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
        AddError::QueueFull { max_queue } => Error::QueueFull { waiting: max_queue },
        other => request("prompt", other.to_string()),
    }
}
