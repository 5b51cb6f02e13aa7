//! What all requests share.
use crate::config::{Config, ConfigError};
use crate::metrics::Metrics;
use crate::pool::{Pool, choose, pools};
use crate::relay::Gap;
use crate::status::{GatewayStatus, LATEST_MOVES, Move};
use crate::upstream::Client;
use anyfleet_openai::BodyLimits;
use axum::http::HeaderValue;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::UNIX_EPOCH;

/// A running gateway. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub config: Config,
    pub pools: Vec<Arc<Pool>>,
    pub client: Client,
    pub metrics: Metrics,
    pub bodies: BodyLimits,
    moves: Mutex<Moves>,
}

/// Moves so far.
#[derive(Default)]
struct Moves {
    count: u64,
    longest_gap: f64,
    latest: VecDeque<Move>,
}

impl Gateway {
    /// Starts to watch the servers; on an async runtime of tokio.
    ///
    /// # Errors
    /// A key that no header can carry.
    pub fn start(config: Config) -> Result<Gateway, ConfigError> {
        let key = config.fleet_key.as_deref().map(header).transpose()?;
        for pool in &config.pools {
            pool.api_key.as_deref().map(header).transpose()?;
        }
        let (client, pools) = (Client::new(key), pools(&config));
        for pool in &pools {
            tokio::spawn(pool.clone().watch(client.clone(), config.stall(), config.step_seconds));
        }
        let shared = Shared {
            metrics: Metrics::new(&pools),
            bodies: BodyLimits::new(config.max_body_bytes),
            config,
            pools,
            client,
            moves: Mutex::default(),
        };
        Ok(Gateway { shared: Arc::new(shared) })
    }

    /// What it did so far, and how its servers are.
    pub fn status(&self) -> GatewayStatus {
        let Shared { pools, metrics, .. } = &*self.shared;
        let moves = self.shared.moves();
        GatewayStatus {
            pools: pools.iter().map(|pool| pool.status()).collect(),
            moves: moves.count,
            retries: metrics.retries.get(),
            failures: metrics.failures.get(),
            longest_gap_seconds: moves.longest_gap,
            latest_moves: moves.latest.iter().cloned().collect(),
        }
    }
}

fn header(key: &str) -> Result<HeaderValue, ConfigError> {
    HeaderValue::from_str(key).map_err(|_| ConfigError::new("a key has characters that no HTTP header may have"))
}

impl Shared {
    /// The pool to ask next; see [`choose`].
    pub fn choose(&self, not: Option<&Arc<Pool>>, can_move: bool) -> Option<Arc<Pool>> {
        choose(&self.pools, not, can_move)
    }

    /// An answer went on on pool `to`.
    pub fn moved(&self, gap: &Gap, to: &Pool) {
        gap.from.moved_away.fetch_add(1, Relaxed);
        let gap_seconds = gap.since.elapsed().as_secs_f64();
        let latest = Move {
            from: gap.from.config.name.clone(),
            to: to.config.name.clone(),
            cause: gap.cause,
            detected: gap.detected.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            gap_seconds,
            replayed_tokens: gap.replayed_tokens,
        };
        self.metrics.moved(&latest);
        let mut moves = self.moves();
        moves.count += 1;
        moves.longest_gap = moves.longest_gap.max(gap_seconds);
        if moves.latest.len() == LATEST_MOVES {
            moves.latest.pop_front();
        }
        moves.latest.push_back(latest);
    }

    fn moves(&self) -> MutexGuard<'_, Moves> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn retried(&self) {
        self.metrics.retries.inc();
    }

    pub fn failed(&self) {
        self.metrics.failures.inc();
    }
}
