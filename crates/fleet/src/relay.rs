//! One streamed answer, from however many servers it takes.
use crate::gateway::Shared;
use crate::pool::{Held, Pool};
use crate::sse::{Broken, Event, Events};
use crate::status::Health;
use crate::upstream::Failure;
use anyfleet_openai::fleet::{Part, StreamSnapshot};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Events that wait for a slow client before its server has to.
const BUFFER: usize = 64;
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

/// An answer on its way through.
struct Relay {
    shared: Arc<Shared>,
    asked: Asked,
    /// What the client was told, once a server that says so began.
    ledger: Option<StreamSnapshot>,
    /// The client has something of the answer.
    begun: bool,
    /// Servers that lost the answer since it last grew.
    lost: u32,
    out: mpsc::Sender<Bytes>,
}

/// Why a server's part in an answer ended.
enum End {
    Complete,
    /// The client is gone.
    Abandoned,
    /// It goes on elsewhere; what happened.
    Lost(String),
}

/// Asks for a streamed answer, and relays it.
pub(crate) async fn stream(shared: Arc<Shared>, asked: Asked) -> Result<Response<Body>, Refusal> {
    let (held, first) = ask(&shared, Method::POST, &asked, true).await?;
    let status = first.status();
    if status != StatusCode::OK || !is_event_stream(&first) {
        return Ok(through(first, held));
    }
    let (out, mut events) = mpsc::channel(BUFFER);
    let relay = Relay { shared, asked, ledger: None, begun: false, lost: 0, out };
    tokio::spawn(relay.run(held, first));
    let body =
        futures_util::stream::poll_fn(move |cx| events.poll_recv(cx).map(|event| event.map(Ok::<Bytes, Infallible>)));
    let mut response = Response::new(Body::from_stream(body));
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

impl Relay {
    async fn run(mut self, mut held: Held, mut response: Response<Incoming>) {
        // Since when the client waits for the next server, and the one that left it.
        let mut gap: Option<(Instant, Arc<Pool>)> = None;
        loop {
            let end = self.follow(&mut held, response, &mut gap).await;
            let why = match end {
                End::Complete | End::Abandoned => return,
                End::Lost(why) => why,
            };
            let from = held.pool.clone();
            drop(held);
            tracing::info!("an answer leaves pool {}: {why}", from.config.name);
            self.lost += 1;
            if self.lost > LOST_IN_A_ROW {
                let count = self.lost;
                return self.fail(&format!("{count} servers in a row lost this answer; the last: {why}.")).await;
            }
            let since = gap.take().map_or_else(Instant::now, |(since, _)| since);
            match self.next(&from, &why).await {
                Some((next, answered)) => (held, response) = (next, answered),
                None => return,
            }
            gap = Some((since, from));
        }
    }

    /// Relays one server's part.
    async fn follow(
        &mut self,
        held: &mut Held,
        response: Response<Incoming>,
        gap: &mut Option<(Instant, Arc<Pool>)>,
    ) -> End {
        let mut events = Events::new(response.into_body());
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                () = self.out.closed() => return End::Abandoned,
                () = held.gone() => return End::Lost("it does not answer".into()),
            };
            let event = match event {
                Ok(event) => Event::read(event),
                Err(Broken::End) => return End::Lost("the stream ended early".into()),
                // Whether the server is gone or only this connection, the probes tell.
                Err(Broken::Reset(why)) => return End::Lost(why),
            };
            if let Some((since, from)) = gap.take() {
                self.shared.moved(&from, since.elapsed());
            }
            let sent = match event {
                Err(why) => return End::Lost(why),
                Ok(Event::Silent(Part::Suspended(snapshot))) => {
                    self.ledger = Some(*snapshot);
                    return End::Lost("it gives its work away".into());
                }
                Ok(Event::Silent(part)) => match (&mut self.ledger, part) {
                    (None, Part::Begin(snapshot)) => {
                        self.ledger = Some(*snapshot);
                        true
                    }
                    // The ledger says what the client has; who resumed it says the same.
                    _ => true,
                },
                Ok(Event::Error(event)) => {
                    if self.ledger.is_some() || !self.begun {
                        return End::Lost("it failed".into());
                    }
                    self.out.send(event).await.is_ok()
                }
                Ok(Event::Chunk(visible, part)) => {
                    if let Some(Err(why)) = self.ledger.as_mut().map(|ledger| ledger.apply(part)) {
                        return End::Lost(why.to_string());
                    }
                    (self.begun, self.lost) = (true, 0);
                    self.out.send(visible.into()).await.is_ok()
                }
                Ok(Event::Done) => {
                    let _ = self.out.send(Bytes::from_static(b"data: [DONE]\n\n")).await;
                    return End::Complete;
                }
                Ok(Event::Other(event)) => {
                    self.begun |= event.starts_with(b"data: ");
                    self.out.send(event).await.is_ok()
                }
            };
            if !sent {
                return End::Abandoned;
            }
        }
    }

    /// The next server that goes on with the answer, or begins it.
    async fn next(&mut self, from: &Arc<Pool>, why: &str) -> Option<(Held, Response<Incoming>)> {
        let Some(ledger) = &self.ledger else {
            if self.begun {
                self.fail(&format!("The server of this answer is gone ({why}), and it cannot go on elsewhere.")).await;
                return None;
            }
            self.shared.retried();
            let asked = ask(&self.shared, Method::POST, &self.asked, true).await;
            return match asked {
                Ok((held, response)) if response.status() == StatusCode::OK => Some((held, response)),
                Ok((_, response)) => {
                    self.fail(&format!("The server answers {}.", response.status())).await;
                    None
                }
                Err(_) => {
                    self.fail("No server takes this request.").await;
                    None
                }
            };
        };
        let body = Bytes::from(serde_json::to_vec(ledger).expect("a ledger has nothing that JSON lacks"));
        let start = Instant::now();
        let (mut last, mut refusal) = (from.clone(), why.to_owned());
        while start.elapsed() < self.shared.config.patience() && !self.out.is_closed() {
            if let Some(pool) = self.shared.choose(Some(&last), true) {
                let mut held = pool.hold();
                let sent = self.shared.client.send(&pool, Method::POST, "/fleet/resume", body.clone(), None);
                let answered = tokio::select! {
                    answered = sent => answered,
                    () = held.gone() => Err(Failure::of("it does not answer")),
                };
                match answered {
                    Ok(response) if response.status() == StatusCode::OK => return Some((held, response)),
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
        self.fail(&format!("No server goes on with this answer: {refusal}.")).await;
        None
    }

    /// Ends the answer with an error event.
    async fn fail(&self, message: &str) {
        self.shared.failed();
        tracing::warn!("an answer failed: {message}");
        let error = serde_json::json!({"error": {
            "message": message, "type": "server_error", "param": null, "code": "upstream_lost",
        }});
        let _ = self.out.send(format!("data: {error}\n\n").into()).await;
    }
}
