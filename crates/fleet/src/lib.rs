//! The front door of a fleet: one OpenAI-compatible address before many servers, of which any may go away.
//!
//! [`router`] is a plain axum [`Router`](axum::Router) over a list of [pools](PoolConfig). It proxies OpenAI's API. Of
//! every streamed answer of an anyfleet server it keeps a ledger ([`StreamSnapshot`](anyfleet_openai::fleet)): what
//! the client was told, in tokens. When the server resets the connection, hangs, or gives its work away, the answer
//! goes on from the ledger on another pool, in the same stream: the client sees a pause and nothing else. Nothing has
//! to be asked of the server that is gone.
//!
//! What is lost with other engines: a pool that is not an anyfleet server (`kind = "openai"`) sends no ledger, so an
//! answer of it that has begun cannot go on elsewhere; it ends with an error event. Before its first byte it is tried
//! again elsewhere like any other. Answers that are not streamed are tried again as a whole.
//!
//! What it does not do: TLS (a pool's address is `http://`), authentication of clients beyond one key, placement by
//! price or place.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = anyfleet_fleet::Config::from_toml(
//!     r#"
//!     fleet_key = "between-us"
//!     [[pool]]
//!     name = "cpu"
//!     url = "http://10.0.0.1:8000"
//!     [[pool]]
//!     name = "vulkan"
//!     url = "http://10.0.0.2:8000"
//!     "#,
//! )?;
//! let gateway = anyfleet_fleet::Gateway::start(config)?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9000").await?;
//! axum::serve(listener, anyfleet_fleet::router(gateway)).await?;
//! # Ok(())
//! # }
//! ```
mod config;
mod gateway;
mod metrics;
mod pool;
mod relay;
mod router;
mod sse;
mod status;
mod upstream;

pub use config::{Config, ConfigError, Kind, PoolConfig};
pub use gateway::Gateway;
pub use router::router;
pub use status::{Cause, GatewayStatus, Health, LATEST_MOVES, Move, PoolStatus};
