//! Runs the prompts of one request and merges what comes of them.
use crate::ApiError;
use crate::fleet::registry::Entry;
use crate::fleet::{AnswerHead, PromptSnapshot, StreamSnapshot, VERSION};
use crate::metrics::RequestMetrics;
use anyfleet::{Engine, Error, GenerateRequest, Identity, RequestSnapshot, SamplingParams, StreamEvent, TokenStream};
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
    pending: VecDeque<Work>,
    submitting: Option<(Work, Submission)>,
    retry: Option<Pin<Box<Sleep>>>,
    running: Vec<Running>,
    /// Where the next poll begins, so that no prompt starves the others.
    turn: usize,
    metrics: RequestMetrics,
    /// In a fleet, what it takes to go on elsewhere.
    ledger: Option<Ledger>,
}

/// A prompt that the engine has not taken yet.
#[derive(Clone)]
pub(crate) struct Work {
    prompt: usize,
    request: Source,
    /// Choices that have not finished.
    open: u32,
}

#[derive(Clone)]
enum Source {
    New(Box<GenerateRequest>),
    Resumed(Box<RequestSnapshot>),
}

impl Work {
    pub fn new(prompt: usize, ids: Vec<u32>, params: SamplingParams) -> Self {
        let open = params.n;
        Work { prompt, request: Source::New(Box::new(GenerateRequest::tokens(ids).params(params))), open }
    }

    /// What is left of a prompt, if anything is.
    pub fn resumed(prompt: usize, request: RequestSnapshot) -> Option<Self> {
        let open = request.choices.iter().filter(|choice| choice.finished.is_none()).count() as u32;
        (open > 0).then(|| Work { prompt, request: Source::Resumed(Box::new(request)), open })
    }

    async fn start(self, engine: Engine) -> anyfleet::Result<TokenStream> {
        match self.request {
            Source::New(request) => engine.stream_async(*request).await,
            Source::Resumed(snapshot) => engine.resume_async(*snapshot, None).await,
        }
    }
}

/// An answer that can be suspended.
pub(crate) struct Ledger {
    pub entry: Entry,
    pub snapshot: StreamSnapshot,
}

impl Ledger {
    /// Of an answer that has not begun; `prompts`: ids, parameters with a seed and a limit, echoed text.
    pub fn new(
        entry: Entry,
        identity: &Identity,
        answer: AnswerHead,
        prompts: impl Iterator<Item = (Vec<u32>, SamplingParams, Option<String>)>,
    ) -> Self {
        let prompts = prompts.map(|(ids, params, echo)| PromptSnapshot {
            begun: vec![false; params.n as usize],
            request: RequestSnapshot::new(identity.clone(), ids, params, 0),
            echo,
        });
        Ledger { entry, snapshot: StreamSnapshot { version: VERSION, prompts: prompts.collect(), answer } }
    }

    /// What comes before the first token of a prompt's choices was said.
    pub fn begun(&mut self, prompt: usize) {
        self.snapshot.prompts[prompt].begun.fill(true);
    }

    fn event(&mut self, prompt: usize, event: &StreamEvent) {
        let PromptSnapshot { request, .. } = &mut self.snapshot.prompts[prompt];
        match event {
            StreamEvent::Finished { choice, usage, .. } => {
                request.choices[*choice as usize].finished = Some(usage.completion_tokens);
                request.cached_prompt_tokens = Some(usage.cached_prompt_tokens);
            }
            StreamEvent::Suspended(snapshot) => request.clone_from(snapshot),
            _ => {}
        }
    }
}

struct Running {
    prompt: usize,
    stream: TokenStream,
    /// Choices that have not finished.
    open: u32,
}

impl Generation {
    /// Starts the prompts; returns once the first is accepted.
    pub async fn start(
        engine: &Engine,
        work: impl Iterator<Item = Work>,
        metrics: RequestMetrics,
        ledger: Option<Ledger>,
    ) -> Result<Self, ApiError> {
        let mut this = Generation {
            engine: engine.clone(),
            pending: work.collect(),
            submitting: None,
            retry: None,
            running: Vec::new(),
            turn: 0,
            metrics,
            ledger,
        };
        // A full queue refuses the request at its first prompt; for later ones there is time.
        if let Some(first) = this.pending.pop_front() {
            this.metrics.submitted();
            match first.clone().start(engine.clone()).await {
                Ok(stream) => this.run(&first, stream),
                Err(refusal) => {
                    this.metrics.refused();
                    return Err(refusal.into());
                }
            }
        }
        Ok(this)
    }

    fn run(&mut self, work: &Work, stream: TokenStream) {
        self.metrics.accepted(stream.prompt_tokens());
        // Where it was suspended meanwhile the stream is dropped, and the prompt has not begun.
        if self.ledger.as_ref().is_none_or(|ledger| ledger.entry.started(stream.id())) {
            self.running.push(Running { prompt: work.prompt, stream, open: work.open });
        }
    }

    /// What it takes to go on elsewhere, in a fleet.
    pub fn ledger(&mut self) -> Option<&mut Ledger> {
        self.ledger.as_mut()
    }

    /// Gives what was suspended to whoever suspended it; what to tell a caller who does not follow it.
    pub fn hand_over(&mut self) -> Option<ApiError> {
        let suspended = self.is_suspended();
        let ledger = self.ledger.as_ref().filter(|_| suspended)?;
        ledger.entry.hand_over(&ledger.snapshot);
        Some(ApiError::suspended())
    }

    /// Whether it ended because it was suspended.
    pub fn is_suspended(&self) -> bool {
        self.ledger.as_ref().is_some_and(|ledger| ledger.entry.is_suspended() && !ledger.snapshot.is_finished())
    }

    /// The next event and its prompt's index; `None` when all choices have finished. Nothing is lost
    /// when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<(usize, StreamEvent), ApiError>> {
        let event = poll_fn(|cx| self.poll(cx)).await;
        match &event {
            Some(Ok((prompt, event))) => {
                self.metrics.event(*prompt, event);
                if let Some(ledger) = &mut self.ledger {
                    ledger.event(*prompt, event);
                }
            }
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
                Some(Ok(StreamEvent::Suspended(_))) if self.ledger.is_none() => {
                    Err(Error::Failed("it was suspended to go on elsewhere".into()))
                }
                Some(Ok(event)) => {
                    match event {
                        StreamEvent::Finished { .. } => running.open -= 1,
                        StreamEvent::Suspended(_) => running.open = 0,
                        _ => {}
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
        if self.ledger.as_ref().is_some_and(|ledger| ledger.entry.is_suspended()) {
            // What did not start stays in the ledger as it came.
            self.pending.clear();
            self.submitting = None;
        }
        while self.running.len() < WINDOW {
            if let Some(retry) = &mut self.retry {
                if retry.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                self.retry = None;
            }
            let (_, submission) = match &mut self.submitting {
                Some(submitting) => submitting,
                None => {
                    let Some(work) = self.pending.front() else { return Ok(()) };
                    let submission: Submission = Box::pin(work.clone().start(self.engine.clone()));
                    self.submitting.insert((work.clone(), submission))
                }
            };
            let Poll::Ready(result) = submission.as_mut().poll(cx) else { return Ok(()) };
            let work = self.submitting.take().map(|(work, _)| work);
            match (result, work) {
                (Ok(stream), Some(work)) => {
                    self.pending.pop_front();
                    self.run(&work, stream);
                }
                (Err(Error::QueueFull { .. }), _) => self.retry = Some(Box::pin(tokio::time::sleep(RETRY))),
                (Err(error), _) => return Err(error),
                (Ok(_), None) => {}
            }
        }
        Ok(())
    }
}
