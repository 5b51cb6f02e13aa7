//! Servers and how they are.
use crate::status::{Health, PoolStatus};
use crate::upstream::{Client, Failure};
use crate::{Config, Kind, PoolConfig};
use axum::http::{Method, StatusCode};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Time between two probes of a server; a quarter of the stall limit where that is less.
const PROBE: Duration = Duration::from_millis(200);

/// One server.
pub(crate) struct Pool {
    pub config: PoolConfig,
    health: watch::Sender<Health>,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    pub moved_away: AtomicU64,
}

/// What a probe looks at of a server's [`Status`](anyfleet_openai::fleet::Status).
#[derive(serde::Deserialize)]
struct Says {
    ready: bool,
    step_seconds: f64,
}

/// A request that a server has.
pub(crate) struct Held {
    pub pool: Arc<Pool>,
    /// Completes when the server is gone; kept, as it is polled at every event of a stream.
    gone: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Pool {
    pub fn new(config: PoolConfig) -> Self {
        Pool {
            config,
            // Until the first probe says otherwise.
            health: watch::Sender::new(Health::Up),
            in_flight: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            moved_away: AtomicU64::new(0),
        }
    }

    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    pub fn can_move(&self) -> bool {
        self.config.kind == Kind::Anyfleet
    }

    /// Notes what became of an attempt to reach it.
    pub fn note(&self, health: Health) {
        self.health.send_if_modified(|known| {
            let changed = *known != health;
            if changed {
                tracing::info!("pool {} is {health:?}", self.config.name);
            }
            *known = health;
            changed
        });
    }

    /// The same of a request that got no answer: one lost connection is no lost server.
    pub fn note_failure(&self, failure: &Failure) {
        if failure.refused {
            self.note(Health::Down);
        }
    }

    pub fn hold(self: &Arc<Self>) -> Held {
        self.in_flight.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        let mut health = self.health.subscribe();
        let gone = Box::pin(async move {
            if health.wait_for(|health| *health == Health::Down).await.is_err() {
                // The pool, and so the sender, lives as long as the gateway.
                std::future::pending().await
            }
        });
        Held { pool: self.clone(), gone }
    }

    pub fn status(&self) -> PoolStatus {
        PoolStatus {
            name: self.config.name.clone(),
            health: self.health(),
            in_flight: self.in_flight.load(Relaxed),
            requests: self.requests.load(Relaxed),
            moved_away: self.moved_away.load(Relaxed),
        }
    }

    /// What the server says.
    async fn probe(&self, client: &Client, step: f64) -> Result<Health, Failure> {
        let path = if self.can_move() { "/fleet/status" } else { "/health" };
        let response = client.send(self, Method::GET, path, Default::default(), None).await?;
        let status = response.status();
        // Read to its end, so that the connection serves the next probe.
        let body = response.into_body().collect().await.map_err(|e| Failure::of(crate::upstream::reason(&e)))?;
        Ok(match status {
            StatusCode::OK if self.can_move() => match serde_json::from_slice(&body.to_bytes()) {
                Ok(Says { step_seconds, .. }) if step_seconds > step => Health::Down,
                Ok(Says { ready: true, .. }) => Health::Up,
                _ => Health::Refusing,
            },
            status if status.is_success() => Health::Up,
            // A server of another kind may have no such route.
            StatusCode::NOT_FOUND if !self.can_move() => Health::Up,
            _ => Health::Refusing,
        })
    }

    /// Probes the server for ever; its device hangs where a step takes more than `step` seconds.
    pub async fn watch(self: Arc<Self>, client: Client, stall: Duration, step: f64) {
        let rest = PROBE.min(stall / 4);
        // Probes in a row without an answer, and when the last came.
        let (mut lost, mut answer) = (0u32, Instant::now());
        loop {
            // The stall limit counts from the last answer: who hangs right after it is not given the rest as well.
            let limit = if lost == 0 { stall.saturating_sub(answer.elapsed()) } else { stall };
            let probed = tokio::time::timeout(limit, self.probe(&client, step)).await;
            let answered = matches!(probed, Ok(Ok(_)));
            let health = match probed {
                Ok(Ok(health)) => health,
                Ok(Err(Failure { refused: true, .. })) | Err(_) => Health::Down,
                // One lost connection may be bad luck.
                Ok(Err(_)) if lost == 0 => self.health(),
                Ok(Err(_)) => Health::Down,
            };
            lost = if answered { 0 } else { lost + 1 };
            answer = Instant::now();
            self.note(health);
            tokio::time::sleep(rest).await;
        }
    }
}

impl Held {
    /// Completes when the server is gone; not to be called again then.
    pub fn gone(&mut self) -> &mut (impl Future<Output = ()> + use<>) {
        &mut self.gone
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.pool.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The pool to ask next: of those that take requests the one with the fewest, `not` only where there is no other.
pub(crate) fn choose(pools: &[Arc<Pool>], not: Option<&Arc<Pool>>, can_move: bool) -> Option<Arc<Pool>> {
    let usable = |pool: &&Arc<Pool>| pool.health() == Health::Up && (!can_move || pool.can_move());
    let other = |pool: &&Arc<Pool>| not.is_none_or(|not| !Arc::ptr_eq(pool, not));
    let busy = |pool: &&Arc<Pool>| pool.in_flight.load(Relaxed);
    let best = pools.iter().filter(usable).filter(other).min_by_key(busy);
    best.or_else(|| pools.iter().filter(usable).min_by_key(busy)).cloned()
}

/// All pools of a configuration.
pub(crate) fn pools(config: &Config) -> Vec<Arc<Pool>> {
    config.pools.iter().cloned().map(|pool| Arc::new(Pool::new(pool))).collect()
}
