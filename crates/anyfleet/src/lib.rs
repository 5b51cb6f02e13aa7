//! A hardware-portable LLM inference engine that embeds as a crate.
//!
//! anyfleet is the layer between model weights and hardware: a Hugging Face model directory is
//! opened, planned, loaded onto a device and served to many threads at once, with paged attention
//! and continuous batching, and with the same bits whatever else runs in the batch.
//!
//! ```no_run
//! use anyfleet::{Engine, GenerateRequest};
//!
//! fn main() -> anyfleet::Result<()> {
//!     let engine = Engine::builder("path/to/model").build()?;
//!     let request = GenerateRequest::text("Once upon a time").max_tokens(64).temperature(0.0);
//!     println!("{}", engine.generate(request)?.text());
//!     Ok(())
//! }
//! ```
//!
//! A stream is an iterator, and with any async runtime a [`futures_core::Stream`]:
//!
//! ```no_run
//! # use anyfleet::{Engine, GenerateRequest, StreamEvent};
//! # fn main() -> anyfleet::Result<()> {
//! # let engine = Engine::builder("path/to/model").build()?;
//! for event in engine.stream(GenerateRequest::text("Once upon a time"))? {
//!     if let StreamEvent::Delta { text, .. } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `pocket`, which is off by default, a small chat model is part of the program and
//! `Engine::bundled()` needs no files.
//!
//! An [`Engine`] is a cheap handle: clone it into as many threads as there are requests. It forces
//! no async runtime on anyone; its step loop runs on a thread of its own.
#![cfg_attr(
    not(all(feature = "cpu", feature = "cuda", feature = "wgpu")),
    allow(dead_code, unused_variables, unused_mut, clippy::ptr_arg, reason = "some of it only other backends need")
)]
mod builder;
#[cfg(feature = "check")]
mod check;
mod device;
mod engine;
mod error;
mod pack_cache;
mod request;
mod split;
mod stream;
mod worker;

pub use anyfleet_executor::MemoryPlan;
pub use anyfleet_runtime::{
    Batch, ChoiceSnapshot, Constraint, Executor, ExecutorError, FinishReason, GroupStats, Identity, Limits, RequestId,
    RequestSnapshot, SamplingParams, SnapshotError, Stats, StepOutput, StopCause, TokenLogprob, Usage,
};
pub use anyfleet_tensor::Gemm;
pub use anyfleet_text::{ChatInput, ChatTemplate, Detokenizer, Tokenizer};
pub use builder::{EngineBuilder, Progress};
#[cfg(feature = "check")]
pub use check::{Certificate, ModelOutcome, SelfCheck, check_device};
pub use device::{DTypeSpec, DeviceInfo, DeviceSpec, KvDType, QuantizeSpec, list_devices};
pub use engine::{Engine, EngineInfo};
pub use error::{Error, Result};
pub use pack_cache::PackCache;
pub use request::{Choice, Completion, GenerateRequest, Prompt};
pub use split::Split;
pub use stream::{StreamEvent, TokenStream};
pub use worker::Rates;
