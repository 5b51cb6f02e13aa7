//! Runs the prompts of one request and merges what comes of them.
use crate::ApiError;
use crate::metrics::RequestMetrics;
use anyfleet::{Engine, Error, GenerateRequest, StreamEvent, TokenStream};
use futures_core::Stream;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// Prompts of one request that are with the engine at once: enough to fill its batches, few enough
/// that a long list does not fill its queue.
const WINDOW: usize = 64;
/// How long to wait before trying a full queue again.
const RETRY: Duration = Duration::from_millis(20);

type Submission = Pin<Box<dyn Future<Output = anyfleet::Result<TokenStream>> + Send>>;

/// The prompts of one request, running. Dropping it cancels them.
pub(crate) struct Generation {
    engine: Engine,
    /// Choices per prompt.
    n: u32,
    pending: VecDeque<(usize, GenerateRequest)>,
    submitting: Option<(usize, Submission)>,
    retry: Option<Pin<Box<Sleep>>>,
    running: Vec<Running>,
    /// Where the next poll begins, so that no prompt starves the others.
    turn: usize,
    metrics: RequestMetrics,
}

struct Running {
    prompt: usize,
    stream: TokenStream,
    /// Choices that have not finished.
    open: u32,
}

impl Generation {
    /// Starts the prompts, each with `n` choices; returns once the first is accepted.
    pub async fn start(
        engine: &Engine,
        requests: Vec<GenerateRequest>,
        n: u32,
        mut metrics: RequestMetrics,
    ) -> Result<Self, ApiError> {
        let mut pending: VecDeque<_> = requests.into_iter().enumerate().collect();
        let mut running = Vec::new();
        // A full queue refuses the request at its first prompt; for later ones there is time.
        if let Some((prompt, request)) = pending.pop_front() {
            let stream = engine.stream_async(request).await?;
            metrics.accepted(stream.prompt_tokens());
            running.push(Running { prompt, stream, open: n });
        }
        Ok(Generation { engine: engine.clone(), n, pending, submitting: None, retry: None, running, turn: 0, metrics })
    }

    /// The next event and its prompt's index; `None` when all choices have finished. Nothing is lost
    /// when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<(usize, StreamEvent), ApiError>> {
        let event = poll_fn(|cx| self.poll(cx)).await;
        match &event {
            Some(Ok((prompt, event))) => self.metrics.event(*prompt, event),
            Some(Err(_)) => self.metrics.failed(),
            None => self.metrics.finished(),
        }
        event.map(|event| event.map_err(ApiError::from))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<anyfleet::Result<(usize, StreamEvent)>>> {
        if let Err(error) = self.submit(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        for i in 0..self.running.len() {
            let at = (self.turn + i) % self.running.len();
            let running = &mut self.running[at];
            let Poll::Ready(event) = Pin::new(&mut running.stream).poll_next(cx) else { continue };
            self.turn = at + 1;
            let prompt = running.prompt;
            return Poll::Ready(Some(match event {
                Some(Ok(StreamEvent::Suspended(_))) => Err(Error::Failed("it was suspended to go on elsewhere".into())),
                Some(Ok(event)) => {
                    if matches!(event, StreamEvent::Finished { .. }) {
                        running.open -= 1;
                    }
                    if running.open == 0 {
                        self.running.swap_remove(at);
                    }
                    Ok((prompt, event))
                }
                Some(Err(error)) => Err(error),
                None => Err(Error::Failed("the engine stopped before it was complete".into())),
            }));
        }
        match self.running.is_empty() && self.pending.is_empty() && self.submitting.is_none() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    /// Hands prompts to the engine as long as it takes them.
    fn submit(&mut self, cx: &mut Context<'_>) -> anyfleet::Result<()> {
        while self.running.len() < WINDOW {
            if let Some(retry) = &mut self.retry {
                if retry.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                self.retry = None;
            }
            let (prompt, submission) = match &mut self.submitting {
                Some(submitting) => submitting,
                None => {
                    let Some((prompt, request)) = self.pending.front() else { return Ok(()) };
                    let (engine, request) = (self.engine.clone(), request.clone());
                    let submission: Submission = Box::pin(async move { engine.stream_async(request).await });
                    self.submitting.insert((*prompt, submission))
                }
            };
            let prompt = *prompt;
            let Poll::Ready(result) = submission.as_mut().poll(cx) else { return Ok(()) };
            self.submitting = None;
            match result {
                Ok(stream) => {
                    self.pending.pop_front();
                    self.metrics.accepted(stream.prompt_tokens());
                    self.running.push(Running { prompt, stream, open: self.n });
                }
                Err(Error::QueueFull { .. }) => self.retry = Some(Box::pin(tokio::time::sleep(RETRY))),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
