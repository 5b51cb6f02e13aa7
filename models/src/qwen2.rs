//! Qwen2 and Qwen2.5 (Yang et al. 2024): biases on q, k and v, and a window on the upper layers of
//! some.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Variant, windows_by_layer};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: Some(32), head_dim: None, max_positions: 32_768 })?;
    let windows = windows_by_layer(root, dense.layers)?;
    Ok(dense.decoder("qwen2", &Variant { qkv_bias: true, windows, ..Variant::default() }))
}
