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
    /// It does not answer, or its device hangs: its streams move.
    Down,
}

/// Why an answer left a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its connection was lost.
    Reset,
    /// The server answers no probes, or its device hangs.
    Hang,
    /// The server gave it away.
    Drain,
    /// The server answered with an error, or what makes no sense.
    Failure,
}

impl Cause {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Cause::Reset => "reset",
            Cause::Hang => "hang",
            Cause::Drain => "drain",
            Cause::Failure => "failure",
        }
    }
}

/// A move of an answer from one server to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The server that left it.
    pub from: String,
    /// The server that went on with it.
    pub to: String,
    /// Why.
    pub cause: Cause,
    /// When the gateway knew, in Unix seconds.
    pub detected: f64,
    /// From then to the first news of the other server, in seconds.
    pub gap_seconds: f64,
    /// Tokens of prompt and answer that the other server had to compute first.
    pub replayed_tokens: usize,
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

/// Moves that a status tells of.
pub const LATEST_MOVES: usize = 64;

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
    /// The longest [`Move::gap_seconds`].
    pub longest_gap_seconds: f64,
    /// The last of the moves, at most [`LATEST_MOVES`], latest last.
    pub latest_moves: Vec<Move>,
}
