//! Server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
use crate::ApiError;
use crate::fleet::Part;
use crate::generation::Generation;
use crate::protocol::UsageReport;
use anyfleet::StreamEvent;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream::unfold;
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;

/// A stream that is silent for this long gets a comment, so that proxies keep it open.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events on their way out.
#[derive(Default)]
pub(crate) struct Out(Vec<u8>);

impl Out {
    pub fn data(&mut self, chunk: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        // Chunks are plain structs of strings and numbers, which always have a JSON form.
        serde_json::to_writer(&mut self.0, chunk).expect("chunks serialize");
        self.0.extend_from_slice(b"\n\n");
    }
}

/// Writes a generation's events as chunks.
pub(crate) trait Chunks: Send + 'static {
    /// What comes before the first event.
    fn begin(&mut self, out: &mut Out);
    /// What an event brings.
    fn event(&mut self, prompt: usize, event: StreamEvent, out: &mut Out);
    /// Whether the caller is a fleet's, and is told what chunks mean for its ledger.
    fn in_fleet(&self) -> bool;
    /// What was used so far, where the caller wants to know.
    fn usage(&self) -> Option<UsageReport>;
    /// A chunk without choices.
    fn bare(&self, usage: Option<Option<UsageReport>>, part: Option<Part>, out: &mut Out);

    /// What comes after the last event.
    fn end(&self, out: &mut Out) {
        if let Some(usage) = self.usage() {
            self.bare(Some(Some(usage)), None, out);
        }
    }

    /// A chunk that only means something to the ledger.
    fn part(&self, part: Part, out: &mut Out) {
        self.bare(self.usage().map(|_| None), Some(part), out);
    }
}

/// A generation that is being streamed. The response's body owns it: when the client goes, hyper
/// drops the body, and with it the requests.
struct Streaming<C> {
    generation: Generation,
    chunks: C,
    step: Step,
}

enum Step {
    Begin,
    Events,
    Done,
}

/// Streams a generation: its chunks, then `[DONE]`, or an error event and nothing after it.
pub(crate) fn response(generation: Generation, chunks: impl Chunks) -> Response {
    let streaming = Streaming { generation, chunks, step: Step::Begin };
    let events = unfold(streaming, |mut streaming| async move {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), streaming))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the stream otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl<C: Chunks> Streaming<C> {
    fn begin(&mut self, out: &mut Out) {
        if let Some(ledger) = self.generation.ledger()
            && self.chunks.in_fleet()
        {
            let snapshot = Box::new(ledger.snapshot.clone());
            self.chunks.part(Part::Begin(snapshot), out);
        }
        let before = out.0.len();
        self.chunks.begin(out);
        if let Some(ledger) = self.generation.ledger()
            && out.0.len() > before
        {
            (0..ledger.snapshot.prompts.len()).for_each(|prompt| ledger.begun(prompt));
        }
    }

    /// `[DONE]`, or where the answer goes on.
    fn end(&mut self, out: &mut Out) {
        let suspended = self.generation.is_suspended();
        match self.generation.ledger().filter(|_| suspended) {
            Some(ledger) => {
                ledger.entry.hand_over(&ledger.snapshot);
                match self.chunks.in_fleet() {
                    true => self.chunks.part(Part::Suspended(Box::new(ledger.snapshot.clone())), out),
                    false => out.data(&ApiError::suspended().body()),
                }
            }
            None => {
                self.chunks.end(out);
                out.0.extend_from_slice(b"data: [DONE]\n\n");
            }
        }
    }

    async fn next(&mut self) -> Option<Vec<u8>> {
        let mut out = Out::default();
        while out.0.is_empty() {
            match self.step {
                Step::Begin => {
                    self.begin(&mut out);
                    self.step = Step::Events;
                }
                Step::Events => match tokio::time::timeout(KEEP_ALIVE, self.generation.next()).await {
                    Err(_) => out.0.extend_from_slice(b": keep-alive\n\n"),
                    Ok(Some(Ok((prompt, event)))) => {
                        if let Some(ledger) = self.generation.ledger()
                            && !matches!(event, StreamEvent::Suspended(_))
                        {
                            ledger.begun(prompt);
                        }
                        self.chunks.event(prompt, event, &mut out);
                    }
                    Ok(Some(Err(error))) => {
                        out.data(&error.body());
                        self.step = Step::Done;
                    }
                    Ok(None) => {
                        self.end(&mut out);
                        self.step = Step::Done;
                    }
                },
                Step::Done => return None,
            }
        }
        Some(out.0)
    }
}
