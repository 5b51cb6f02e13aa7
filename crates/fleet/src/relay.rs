//! One streamed answer, from however many servers it takes.
use crate::gateway::Shared;
use crate::pool::{Held, Pool};
use crate::sse::{Broken, Event, Events};
use crate::status::{Cause, Health};
use crate::upstream::Failure;
use anyfleet_openai::fleet::{Part, StreamSnapshot};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use futures_util::stream::unfold;
use hyper::body::Incoming;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// Servers in a row that may take an answer and lose it before they say anything: one that makes every server fail must
/// not go through all of them for ever.
const LOST_IN_A_ROW: u32 = 8;
/// Time between two rounds of asking servers that all refused.
const AGAIN: Duration = Duration::from_millis(50);

/// A request as it came.
pub(crate) struct Asked {
    pub path: &'static str,
    pub body: Bytes,
}

/// A request that no server took, as the client is to hear of it.
pub(crate) enum Refusal {
    /// What a server said of the request itself.
    Answer(Box<Response<Incoming>>),
    /// Nobody could be asked.
    Nobody(String),
}

/// An answer on its way through: the body of the response, which is dropped when the client goes.
struct Relay {
    shared: Arc<Shared>,
    asked: Asked,
    /// Who gives the answer now; nobody while the next is looked for.
    server: Option<Server>,
    /// What the client was told, once a server that says so began.
    ledger: Option<StreamSnapshot>,
    /// The client has something of the answer.
    begun: bool,
    /// Servers that lost the answer since it last grew.
    lost: u32,
    gap: Option<Gap>,
    /// How the server's part ended, if it has.
    end: Option<End>,
}

struct Server {
    held: Held,
    events: Events,
}

/// The client waits for the next server.
pub(crate) struct Gap {
    /// Who left it.
    pub from: Arc<Pool>,
    pub cause: Cause,
    /// When that was known.
    pub since: Instant,
    pub detected: SystemTime,
    pub replayed_tokens: usize,
}

/// Why a server's part in an answer ended.
enum End {
    Complete,
    /// It goes on elsewhere; what happened.
    Lost(Cause, String),
}

/// Asks for a streamed answer, and relays it.
pub(crate) async fn stream(shared: Arc<Shared>, asked: Asked) -> Result<Response<Body>, Refusal> {
    let (held, first) = ask(&shared, Method::POST, &asked, true).await?;
    let status = first.status();
    if status != StatusCode::OK || !is_event_stream(&first) {
        return Ok(through(first, held));
    }
    let server = Some(Server::new(held, first));
    let relay = Relay { shared, asked, server, ledger: None, begun: false, lost: 0, gap: None, end: None };
    let events = unfold(relay, |mut relay| async move {
        let bytes = relay.next().await?;
        Some((Ok::<_, Infallible>(bytes), relay))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn is_event_stream(response: &Response<Incoming>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// A server's answer as it is; the server counts as busy until it was read.
pub(crate) fn through(response: Response<Incoming>, held: Held) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    // These are the connection's.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::HeaderName::from_static("keep-alive")] {
        parts.headers.remove(name);
    }
    let mut body = Body::new(body).into_data_stream();
    let held = futures_util::stream::poll_fn(move |cx| {
        let _held = &held;
        futures_util::Stream::poll_next(std::pin::Pin::new(&mut body), cx)
    });
    Response::from_parts(parts, Body::from_stream(held))
}

/// Asks one server after the other until one takes a request that no byte was answered to, for as long as the
/// operator's patience lasts.
pub(crate) async fn ask(
    shared: &Shared,
    method: Method,
    asked: &Asked,
    streams: bool,
) -> Result<(Held, Response<Incoming>), Refusal> {
    let start = Instant::now();
    let (mut last, mut why): (Option<Arc<Pool>>, String) = (None, "no server takes requests".into());
    let accept = streams.then(|| HeaderValue::from_static("text/event-stream"));
    loop {
        if let Some(pool) = shared.choose(last.as_ref(), false) {
            if last.is_some() {
                shared.retried();
            }
            let mut held = pool.hold();
            let sent = shared.client.send(&pool, method.clone(), asked.path, asked.body.clone(), accept.as_ref());
            let answered = tokio::select! {
                answered = sent => answered,
                () = held.gone() => Err(Failure::of("it does not answer")),
            };
            match answered {
                // Too busy, or not the server's day: another may do better.
                Ok(response) if may_retry(response.status()) && start.elapsed() < shared.config.patience() => {
                    if shared.pools.len() == 1 {
                        return Err(Refusal::Answer(Box::new(response)));
                    }
                    why = format!("{} answers {}", pool.config.name, response.status());
                    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                        pool.note(Health::Refusing);
                    }
                }
                Ok(response) => return Ok((held, response)),
                Err(failure) => {
                    pool.note_failure(&failure);
                    why = format!("{}: {}", pool.config.name, failure.message);
                }
            }
            last = Some(pool);
        }
        if start.elapsed() > shared.config.patience() {
            return Err(Refusal::Nobody(why));
        }
        if last.is_none() || shared.choose(last.as_ref(), false).is_none() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

fn may_retry(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

impl Server {
    fn new(held: Held, response: Response<Incoming>) -> Self {
        Server { held, events: Events::new(response.into_body()) }
    }

    /// Waits for events.
    async fn wait(&mut self) -> Result<(), End> {
        let read = tokio::select! {
            biased;
            read = self.events.wait() => read,
            () = self.held.gone() => return Err(End::Lost(Cause::Hang, "it does not answer".into())),
        };
        read.map_err(|broken| match broken {
            Broken::End => End::Lost(Cause::Reset, "the stream ended early".into()),
            // Whether the server is gone or only this connection, the probes tell.
            Broken::Reset(why) => End::Lost(Cause::Reset, why),
        })
    }
}

impl Relay {
    /// What the client gets next; `None` after the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.end.take() {
                Some(End::Complete) => return None,
                Some(End::Lost(cause, why)) => {
                    if let Err(error) = self.go_on(cause, &why).await {
                        self.end = Some(End::Complete);
                        return Some(error);
                    }
                }
                None => {}
            }
            if let Err(end) = self.server.as_mut()?.wait().await {
                self.end = Some(end);
                continue;
            }
            // All that was read goes out at once.
            let mut out = Vec::new();
            self.end = self.take(&mut out);
            if !out.is_empty() {
                return Some(out.into());
            }
        }
    }

    /// Takes the events that were read.
    fn take(&mut self, out: &mut Vec<u8>) -> Option<End> {
        let Server { held, events } = self.server.as_mut()?;
        while let Some(event) = events.next() {
            let event = match Event::read(event) {
                Ok(event) => event,
                Err(why) => return Some(End::Lost(Cause::Failure, why)),
            };
            // A beginning, the role and comments are no news: the gap is over with what was computed.
            let news = match &event {
                Event::Chunk(_, part) => matches!(part, Part::Tokens { .. } | Part::Finished { .. }),
                Event::Other(event) => event.starts_with(b"data: "),
                Event::Done => true,
                Event::Silent(_) | Event::Error(_) => false,
            };
            if let Some(gap) = self.gap.take_if(|_| news) {
                self.shared.moved(&gap, &held.pool);
            }
            match event {
                Event::Silent(Part::Suspended(snapshot)) => {
                    self.ledger = Some(*snapshot);
                    return Some(End::Lost(Cause::Drain, "it gives its work away".into()));
                }
                Event::Silent(Part::Begin(snapshot)) => {
                    // A ledger says what the client has; who resumed it says the same.
                    self.ledger.get_or_insert(*snapshot);
                    // It has all that the request said.
                    self.asked.body = Bytes::new();
                }
                Event::Silent(_) => {}
                Event::Error(event) => {
                    if self.ledger.is_some() || !self.begun {
                        return Some(End::Lost(Cause::Failure, "it failed".into()));
                    }
                    out.extend_from_slice(event);
                }
                Event::Chunk(visible, part) => {
                    if let Some(Err(why)) = self.ledger.as_mut().map(|ledger| ledger.apply(part)) {
                        return Some(End::Lost(Cause::Failure, why.to_string()));
                    }
                    (self.begun, self.lost) = (true, 0);
                    out.extend_from_slice(visible);
                    out.extend_from_slice(Event::END);
                }
                Event::Done => {
                    out.extend_from_slice(b"data: [DONE]\n\n");
                    return Some(End::Complete);
                }
                Event::Other(event) => {
                    self.begun |= event.starts_with(b"data: ");
                    out.extend_from_slice(event);
                }
            }
        }
        None
    }

    /// Finds the next server; where there is none, what the client is told.
    async fn go_on(&mut self, cause: Cause, why: &str) -> Result<(), Bytes> {
        let (since, detected) = (Instant::now(), SystemTime::now());
        let Some(Server { held, .. }) = self.server.take() else { return Ok(()) };
        let from = held.pool.clone();
        drop(held);
        tracing::info!("an answer leaves pool {}: {why}", from.config.name);
        self.lost += 1;
        if self.lost > LOST_IN_A_ROW {
            let count = self.lost;
            return Err(self.fail(&format!("{count} servers in a row lost this answer; the last: {why}.")));
        }
        let replayed_tokens = self.ledger.as_ref().map_or(0, StreamSnapshot::replayed_tokens);
        // One that goes from server to server has been waiting since the first.
        self.gap.get_or_insert(Gap { from: from.clone(), cause, since, detected, replayed_tokens });
        let next = match &self.ledger {
            Some(ledger) => self.resume(ledger, &from, why).await,
            None if self.begun => {
                Err(format!("The server of this answer is gone ({why}), and it cannot go on elsewhere."))
            }
            None => self.ask_again().await,
        };
        let (held, response) = next.map_err(|message| self.fail(&message))?;
        self.server = Some(Server::new(held, response));
        Ok(())
    }

    /// Asks for the answer as if for the first time.
    async fn ask_again(&self) -> Result<(Held, Response<Incoming>), String> {
        self.shared.retried();
        match ask(&self.shared, Method::POST, &self.asked, true).await {
            Ok((held, response)) if response.status() == StatusCode::OK => Ok((held, response)),
            Ok((_, response)) => Err(format!("The server answers {}.", response.status())),
            Err(_) => Err("No server takes this request.".into()),
        }
    }

    /// The next server that goes on with the answer.
    async fn resume(
        &self,
        ledger: &StreamSnapshot,
        from: &Arc<Pool>,
        why: &str,
    ) -> Result<(Held, Response<Incoming>), String> {
        let body = Bytes::from(serde_json::to_vec(ledger).expect("a ledger has nothing that JSON lacks"));
        let start = Instant::now();
        let (mut last, mut refusal) = (from.clone(), why.to_owned());
        while start.elapsed() < self.shared.config.patience() {
            if let Some(pool) = self.shared.choose(Some(&last), true) {
                let mut held = pool.hold();
                let sent = self.shared.client.send(&pool, Method::POST, "/fleet/resume", body.clone(), None);
                let answered = tokio::select! {
                    answered = sent => answered,
                    () = held.gone() => Err(Failure::of("it does not answer")),
                };
                match answered {
                    Ok(response) if response.status() == StatusCode::OK => return Ok((held, response)),
                    Ok(response) => {
                        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                            pool.note(Health::Refusing);
                        }
                        refusal = format!("{} answers {}", pool.config.name, response.status());
                    }
                    Err(failure) => {
                        pool.note_failure(&failure);
                        refusal = failure.message;
                    }
                }
                let same = Arc::ptr_eq(&pool, &last);
                last = pool;
                if !same {
                    continue;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        Err(format!("No server goes on with this answer: {refusal}."))
    }

    /// An error event, with which the answer ends.
    fn fail(&self, message: &str) -> Bytes {
        self.shared.failed();
        tracing::warn!("an answer failed: {message}");
        let error = serde_json::json!({"error": {
            "message": message, "type": "server_error", "param": null, "code": "upstream_lost",
        }});
        format!("data: {error}\n\n").into()
    }
}
