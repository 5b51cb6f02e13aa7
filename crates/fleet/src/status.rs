//! What the gateway says of itself.
use serde::{Deserialize, Serialize};

/// Whether a server can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It takes requests.
    Up,
    /// It answers, but takes none now: it loads, drains or failed. Its streams may go on.
    Refusing,
    /// It does not answer: its streams move.
    Down,
}

/// A server as the gateway sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// Whether it can be used.
    pub health: Health,
    /// Requests it has from this gateway.
    pub in_flight: usize,
    /// Requests it was given.
    pub requests: u64,
    /// Answers that moved away from it.
    pub moved_away: u64,
}

/// The answer of `GET /gateway/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatewayStatus {
    /// Servers, preferred first.
    pub pools: Vec<PoolStatus>,
    /// Answers that went on on another server.
    pub moves: u64,
    /// Requests that were tried again before their first byte.
    pub retries: u64,
    /// Answers that ended with an error of the gateway.
    pub failures: u64,
    /// The longest time from the moment a server was found gone to the first event from the next, in seconds.
    pub longest_gap_seconds: f64,
}
