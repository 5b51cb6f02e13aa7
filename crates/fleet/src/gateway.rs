//! What all requests share.
use crate::config::{Config, ConfigError};
use crate::pool::{Pool, choose, pools};
use crate::status::GatewayStatus;
use crate::upstream::Client;
use axum::http::HeaderValue;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A running gateway. Clones are handles to the same one.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub config: Config,
    pub pools: Vec<Arc<Pool>>,
    pub client: Client,
    moves: AtomicU64,
    retries: AtomicU64,
    failures: AtomicU64,
    longest_gap: Mutex<Duration>,
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
            tokio::spawn(pool.clone().watch(client.clone(), config.stall()));
        }
        let shared = Shared {
            config,
            pools,
            client,
            moves: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            longest_gap: Mutex::default(),
        };
        Ok(Gateway { shared: Arc::new(shared) })
    }

    /// What it did so far, and how its servers are.
    pub fn status(&self) -> GatewayStatus {
        let Shared { pools, moves, retries, failures, longest_gap, .. } = &*self.shared;
        GatewayStatus {
            pools: pools.iter().map(|pool| pool.status()).collect(),
            moves: moves.load(Relaxed),
            retries: retries.load(Relaxed),
            failures: failures.load(Relaxed),
            longest_gap_seconds: longest_gap.lock().unwrap_or_else(PoisonError::into_inner).as_secs_f64(),
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

    pub fn moved(&self, from: &Pool, gap: Duration) {
        self.moves.fetch_add(1, Relaxed);
        from.moved_away.fetch_add(1, Relaxed);
        let mut longest = self.longest_gap.lock().unwrap_or_else(PoisonError::into_inner);
        *longest = gap.max(*longest);
    }

    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }
}
