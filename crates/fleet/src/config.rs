//! What an operator writes down.
use serde::Deserialize;
use std::time::Duration;

/// A fleet.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The key that the pools' servers were started with (`serve --fleet-key`).
    pub fleet_key: Option<String>,
    /// Key that clients must send as a bearer token.
    pub api_key: Option<String>,
    /// Seconds without an answer to a probe after which a server counts as gone, and its streams move.
    #[serde(default = "stall_seconds")]
    pub stall_seconds: f64,
    /// Seconds that one step of a server may take before its device counts as hung, and its streams move.
    #[serde(default = "step_seconds")]
    pub step_seconds: f64,
    /// Seconds that a stream waits for a pool that takes it before it fails.
    #[serde(default = "patience_seconds")]
    pub patience_seconds: f64,
    /// Largest request body, in bytes.
    #[serde(default = "max_body_bytes")]
    pub max_body_bytes: usize,
    /// Servers, preferred first.
    #[serde(rename = "pool")]
    pub pools: Vec<PoolConfig>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    /// What logs and the status call it.
    pub name: String,
    /// Where it is: `http://HOST:PORT`.
    pub url: String,
    /// What it is.
    #[serde(default)]
    pub kind: Kind,
    /// The bearer token it asks for.
    pub api_key: Option<String>,
}

/// What a server understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// anyfleet's `serve`: its streams can move.
    #[default]
    Anyfleet,
    /// Any other server of OpenAI's API.
    Openai,
}

/// A configuration that makes no sense, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        ConfigError(message.into())
    }
}

fn stall_seconds() -> f64 {
    3.0
}

fn step_seconds() -> f64 {
    60.0
}

fn patience_seconds() -> f64 {
    30.0
}

fn max_body_bytes() -> usize {
    16 << 20
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// One line that says what is wrong, and where.
    pub fn from_toml(text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(String::new(), |span| {
                format!("line {}: ", text[..span.start.min(text.len())].matches('\n').count() + 1)
            });
            ConfigError(format!("{line}{}", e.message()))
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |message: String| Err(ConfigError(message));
        if self.pools.is_empty() {
            return bad("there is no [[pool]]: name at least one server".into());
        }
        for (name, seconds) in [
            ("stall_seconds", self.stall_seconds),
            ("step_seconds", self.step_seconds),
            ("patience_seconds", self.patience_seconds),
        ] {
            if !(0.05..=86_400.0).contains(&seconds) {
                return bad(format!("{name} is {seconds}; use 0.05 to 86400"));
            }
        }
        for (i, pool) in self.pools.iter().enumerate() {
            if pool.name.is_empty() || self.pools[..i].iter().any(|other| other.name == pool.name) {
                return bad(format!("pool {}: the name {:?} is empty or taken", i + 1, pool.name));
            }
            let authority = pool.url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
            if !authority.is_some_and(|a| !a.contains('/') && a.parse::<axum::http::uri::Authority>().is_ok()) {
                return bad(format!("pool {}: the url {:?} is not of the form http://HOST:PORT", pool.name, pool.url));
            }
            if pool.kind == Kind::Anyfleet && self.fleet_key.is_none() {
                return bad(format!(
                    "pool {}: streams of anyfleet servers need the fleet_key they were started with",
                    pool.name
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn stall(&self) -> Duration {
        Duration::from_secs_f64(self.stall_seconds)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs_f64(self.patience_seconds)
    }
}
