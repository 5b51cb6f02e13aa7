//! Model families: `config.json` to [`DecoderSpec`], and the decoder that runs any spec.
mod spec;
pub use spec::*;
