//! A running request, seen by its caller.
use crate::request::{Choice, Completion};
use crate::{Error, FinishReason, RequestId, RequestSnapshot, Result, TokenLogprob, Usage};
use async_channel::Receiver;
use futures_core::Stream;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Something that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    /// Log-probabilities of the prompt's tokens from the second on; once, before any
    /// [`StreamEvent::Delta`], when they were asked for.
    PromptLogprobs(Vec<TokenLogprob>),
    /// A choice grew. Text is whole characters; a token's entry comes with the text it completes.
    Delta {
        /// Which of the request's `n` choices.
        choice: u32,
        /// New text.
        text: String,
        /// New tokens.
        tokens: Vec<TokenLogprob>,
    },
    /// A choice is complete.
    Finished {
        /// Which of the request's `n` choices.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
        /// Tokens it used.
        usage: Usage,
    },
    /// [`Engine::suspend`](crate::Engine::suspend) ended the request here; the last event.
    Suspended(Box<RequestSnapshot>),
}

/// Events of one request: an [`Iterator`] that blocks, and a [`Stream`] for any async runtime.
/// It ends when every choice has finished, or with one error. Dropping it cancels the request,
/// whose memory is free before the next step.
#[derive(Debug)]
pub struct TokenStream {
    events: Pin<Box<Receiver<Result<StreamEvent>>>>,
    id: RequestId,
    prompt_tokens: usize,
}

impl TokenStream {
    pub(crate) fn new(events: Receiver<Result<StreamEvent>>, id: RequestId, prompt_tokens: usize) -> Self {
        TokenStream { events: Box::pin(events), id, prompt_tokens }
    }

    /// What [`Engine::suspend`](crate::Engine::suspend) knows the request by.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// [`Error::Failed`] when the device failed while the request ran, or it was suspended.
    pub fn collect_completion(self) -> Result<Completion> {
        let mut parts = Parts::default();
        for event in self {
            parts.add(event?);
        }
        parts.completion()
    }
}

impl Iterator for TokenStream {
    type Item = Result<StreamEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        self.events.recv_blocking().ok()
    }
}

impl Stream for TokenStream {
    type Item = Result<StreamEvent>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.as_mut().poll_next(cx)
    }
}

/// A completion under construction.
#[derive(Default)]
struct Parts {
    growing: BTreeMap<u32, (String, Vec<TokenLogprob>)>,
    done: BTreeMap<u32, Choice>,
    prompt_logprobs: Option<Vec<TokenLogprob>>,
    suspended: bool,
}

impl Parts {
    fn add(&mut self, event: StreamEvent) {
        match event {
            StreamEvent::PromptLogprobs(logprobs) => self.prompt_logprobs = Some(logprobs),
            StreamEvent::Delta { choice, text, tokens } => {
                let (all_text, all_tokens) = self.growing.entry(choice).or_default();
                all_text.push_str(&text);
                all_tokens.extend(tokens);
            }
            StreamEvent::Finished { choice, reason, usage } => {
                let (text, tokens) = self.growing.remove(&choice).unwrap_or_default();
                self.done.insert(choice, Choice { text, tokens, finish_reason: reason, usage });
            }
            StreamEvent::Suspended(_) => self.suspended = true,
        }
    }

    fn completion(self) -> Result<Completion> {
        if self.suspended {
            return Err(Error::Failed("it was suspended; its snapshot can be resumed".into()));
        }
        // A stream that ended early is an engine that was torn down under it.
        if self.done.is_empty() || !self.growing.is_empty() {
            return Err(Error::Failed("the engine stopped before it was complete".into()));
        }
        Ok(Completion { choices: self.done.into_values().collect(), prompt_logprobs: self.prompt_logprobs })
    }
}
