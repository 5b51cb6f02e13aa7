//! What all requests share: the engine once it is there, the server's settings and its metrics.
use crate::body::{BodyLimits, RequestBody};
use crate::fleet::registry::Registry;
use crate::fleet::{AnswerHead, KEY_HEADER, StreamSnapshot};
use crate::generation::Ledger;
use crate::metrics::Metrics;
use crate::{ApiError, serving::Serving};
use anyfleet::{Engine, GenerateRequest, SamplingParams};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// No engine yet: every request gets a 503.
    Loading,
    /// Requests are answered.
    Ready,
    /// Requests in flight are finished, new ones get a 503.
    Draining,
}

/// Settings of a server; see [`ServerState::builder`].
#[derive(Clone, Debug)]
pub struct ServerStateBuilder {
    names: Vec<String>,
    api_key: Option<String>,
    fleet_key: Option<String>,
    max_body_bytes: usize,
}

impl ServerStateBuilder {
    /// Name of the model in requests and responses. By default it is the hub name or the last part of
    /// the model's directory, and the model as it was given to the engine is taken too. May be called
    /// again for aliases; the first is the one responses carry.
    #[must_use]
    pub fn served_model_name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Key that requests to `/v1/` must carry as `Authorization: Bearer KEY`.
    #[must_use]
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(key.into());
        self
    }

    /// Key that callers must carry as the header [`KEY_HEADER`](crate::fleet::KEY_HEADER) to follow, suspend and resume
    /// answers; without one nobody can. See [`fleet`](crate::fleet).
    #[must_use]
    pub fn fleet_key(mut self, key: impl Into<String>) -> Self {
        self.fleet_key = Some(key.into());
        self
    }

    /// Largest request body in bytes, 16 MiB by default; a larger one gets a 413. Sixteen of the largest
    /// are held at once; a client that sends one more gets a 503.
    #[must_use]
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// The state, in [`Phase::Loading`].
    pub fn build(self) -> ServerState {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let serving = Arc::new(OnceLock::new());
        ServerState {
            shared: Arc::new(Shared {
                metrics: Metrics::new(serving.clone()),
                bodies: BodyLimits::new(self.max_body_bytes),
                settings: self,
                serving,
                answers: Registry::default(),
                phase: AtomicU8::new(Phase::Loading as u8),
                cores,
                text: Arc::new(Semaphore::new(cores)),
            }),
        }
    }
}

/// What all requests share. Clones are handles to the same state.
#[derive(Clone)]
pub struct ServerState {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ServerStateBuilder,
    serving: Arc<OnceLock<Serving>>,
    phase: AtomicU8,
    metrics: Metrics,
    bodies: BodyLimits,
    answers: Registry,
    cores: usize,
    /// A permit a core for work on text, which is not the async threads' to do.
    text: Arc<Semaphore>,
}

impl ServerState {
    /// Starts describing a server.
    pub fn builder() -> ServerStateBuilder {
        ServerStateBuilder { names: Vec::new(), api_key: None, fleet_key: None, max_body_bytes: 16 << 20 }
    }

    /// Generates one token to see that the engine answers, then serves it: [`Phase::Ready`].
    ///
    /// # Errors
    /// The engine failed to generate, or there is one already.
    pub async fn attach(&self, engine: Engine) -> anyfleet::Result<()> {
        let params = SamplingParams { temperature: 0.0, max_tokens: Some(1), ignore_eos: true, ..Default::default() };
        let mut warm_up = engine.stream_async(GenerateRequest::tokens([0]).params(params)).await?;
        while let Some(event) = StreamExt::next(&mut warm_up).await {
            event?;
        }
        let serving = Serving::new(engine, &self.shared.settings.names);
        if self.shared.serving.set(serving).is_err() {
            return Err(anyfleet::Error::Failed("this server has an engine already".into()));
        }
        // A shutdown may have begun while the model loaded.
        let (from, to) = (Phase::Loading as u8, Phase::Ready as u8);
        let _ = self.shared.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
        Ok(())
    }

    /// Takes no new requests from now on; those in flight finish.
    pub fn drain(&self) {
        self.shared.phase.store(Phase::Draining as u8, Ordering::Release);
    }

    /// Where the server is in its life.
    pub fn phase(&self) -> Phase {
        match self.shared.phase.load(Ordering::Acquire) {
            phase if phase == Phase::Loading as u8 => Phase::Loading,
            phase if phase == Phase::Ready as u8 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// The names requests may use, once there is an engine; the first is the model's id.
    pub fn model_names(&self) -> Option<&[String]> {
        self.shared.serving.get().map(|serving| &serving.names[..])
    }

    pub(crate) async fn read_body(&self, request: Request) -> Result<RequestBody, ApiError> {
        self.shared.bodies.read(request).await
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The engine and its names, if requests are answered.
    pub(crate) fn serving(&self) -> Result<&Serving, ApiError> {
        match (self.phase(), self.shared.serving.get()) {
            (Phase::Ready, Some(serving)) => match serving.engine.failure() {
                None => Ok(serving),
                Some(message) => {
                    let message = format!("The engine stopped after an internal error: {message}");
                    Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
                }
            },
            (Phase::Draining, _) => Err(ApiError::unavailable("The server is shutting down.", 5)),
            _ => Err(ApiError::unavailable("The model is still being loaded.", 5)),
        }
    }

    /// The engine, whatever the phase.
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.serving_at_last().map(|serving| &serving.engine)
    }

    /// The engine and its names, whatever the phase.
    pub(crate) fn serving_at_last(&self) -> Option<&Serving> {
        self.shared.serving.get()
    }

    /// Answers that are being given, where there is a fleet.
    pub(crate) fn answers(&self) -> &Registry {
        &self.shared.answers
    }

    /// Whether a caller is the fleet's: it carries the fleet's key.
    pub(crate) fn in_fleet(&self, headers: &HeaderMap) -> Result<bool, ApiError> {
        let Some(given) = headers.get(KEY_HEADER) else { return Ok(false) };
        let refuse = |message| Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_fleet_key"));
        match &self.shared.settings.fleet_key {
            Some(key) if same_secret(given.as_bytes(), key.as_bytes()) => Ok(true),
            Some(_) => refuse("Incorrect fleet key provided."),
            None => refuse("This server is in no fleet: start it with --fleet-key."),
        }
    }

    /// What it will take to go on with an answer elsewhere, where there is a fleet.
    pub(crate) fn ledger(
        &self,
        engine: &Engine,
        head: impl FnOnce() -> AnswerHead,
        prompts: impl Iterator<Item = (Vec<u32>, SamplingParams, Option<String>)>,
    ) -> Option<Ledger> {
        self.shared.settings.fleet_key.as_ref()?;
        let head = head();
        let entry = self.shared.answers.enter(&head.id);
        Some(Ledger::new(entry, &engine.info().identity, head, prompts))
    }

    /// The same of an answer that began elsewhere.
    pub(crate) fn ledger_of(&self, snapshot: StreamSnapshot) -> Ledger {
        Ledger { entry: self.shared.answers.enter(&snapshot.answer.id), snapshot }
    }

    /// Whether a request carries the key this server asks for, if it does.
    pub(crate) fn authorize(&self, authorization: Option<&[u8]>) -> Result<(), ApiError> {
        let Some(key) = &self.shared.settings.api_key else { return Ok(()) };
        let refuse = |message| Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"));
        let Some(value) = authorization else {
            return refuse("You didn't provide an API key: send 'Authorization: Bearer YOUR_KEY'.");
        };
        let given = match value.split_at_checked(7) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given.trim_ascii(),
            _ => value,
        };
        match same_secret(given, key.as_bytes()) {
            true => Ok(()),
            false => refuse("Incorrect API key provided."),
        }
    }

    /// Runs work on `bytes` of text off the async threads, as much of it at once as there are cores:
    /// neither a flood of long prompts nor the memory they take may stall the streams. JSON takes
    /// tens of times its length once it is parsed, so long texts count for more than one.
    pub(crate) async fn text_work<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let failed = |what: &str| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("Internal error: {what}."));
        let permits = self.shared.cores.min(1 + (bytes >> 20)) as u32;
        let permit = self.shared.text.clone().acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| failed("the text pool is closed"))?;
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| failed("reading the request failed"))?
    }
}

/// Compares in a time that does not tell how much of it is right.
pub fn same_secret(given: &[u8], key: &[u8]) -> bool {
    let differ = given.iter().zip(key).fold(0, |differ, (a, b)| differ | (a ^ b));
    std::hint::black_box(differ) == 0 && given.len() == key.len()
}
