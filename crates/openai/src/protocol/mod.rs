//! Requests and responses as they go over the wire.
//!
//! Names and shapes are OpenAI's (<https://platform.openai.com/docs/api-reference>). Fields that
//! OpenAI does not have carry vLLM's names, so that its clients and evaluation harnesses work too.
mod chat;
mod completion;
mod logprobs;
mod model;
mod sampling;
mod usage;

pub use chat::*;
pub use completion::*;
pub use logprobs::*;
pub use model::*;
pub use sampling::*;
pub use usage::*;
