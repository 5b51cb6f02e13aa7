//! An OpenAI-compatible HTTP API over an anyfleet engine.
//!
//! [`router`] is a plain axum [`Router`](axum::Router): mount it in a program of your own, or hand it
//! to [`serve`], which adds what a public listener needs (header timeouts, a shutdown that finishes
//! streams). Responses and errors have OpenAI's shapes, so official clients work unmodified; extension
//! fields have vLLM's names.
//!
//! ```no_run
//! use anyfleet_openai::{ServerState, router, serve};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let state = ServerState::builder().served_model_name("story").build();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! let server = serve(listener, router(state.clone()), state.clone(), std::future::pending(), std::time::Duration::from_secs(60));
//! let server = tokio::spawn(server);
//! // Until the model is there, requests are answered with a 503.
//! let engine = tokio::task::spawn_blocking(|| anyfleet::Engine::builder("path/to/model").build()).await??;
//! state.attach(engine).await?;
//! server.await?;
//! # Ok(())
//! # }
//! ```
//!
//! Where OpenAI leaves room, or differs from other servers:
//! - Parameters that a request leaves out come from the model's `generation_config.json`, else they are
//!   OpenAI's defaults. `max_tokens` is 16 for completions and the rest of the context for chat.
//! - A prompt and an explicit `max_tokens` that together exceed the context are refused with
//!   `context_length_exceeded`, as vLLM does; nothing is cut.
//! - `stop` takes at most 4 strings; `logprobs` of a completion goes to 20; `best_of` must equal `n`.
//! - Parameters that would change the answer and are not implemented (`suffix`, `response_format` other
//!   than text, forced `tool_choice`, ...) are refused; fields nobody knows are ignored.
//! - `tools` reach the chat template; what the model answers stays text.
//! - Content parts of a message are joined with line breaks, and the role `developer` becomes
//!   `system`, which is the name that chat templates know.
//! - A token that is not whole characters is named `bytes:\xNN...`; `bytes` has its bytes.
mod body;
mod chat_completions;
mod completions;
mod error;
mod fields;
pub mod fleet;
mod generation;
mod messages;
mod metrics;
pub mod protocol;
mod router;
mod server;
mod serving;
mod sse;
mod state;
mod tokens;

pub use body::{BodyLimits, RequestBody};
pub use error::{ApiError, ErrorBody, ErrorObject};
pub use router::router;
pub use server::{Shutdown, serve};
pub use state::{Phase, ServerState, ServerStateBuilder, same_secret};
