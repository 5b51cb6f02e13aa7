//! Qwen3, dense (Yang et al. 2025): a norm on each query and key head, and a head size of its own.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Variant, windows_by_layer};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: Some(32), head_dim: Some(128), max_positions: 32_768 })?;
    let bias = root.flag("attention_bias")?.unwrap_or(false);
    let windows = windows_by_layer(root, dense.layers)?;
    Ok(dense
        .decoder("qwen3", &Variant { qkv_bias: bias, output_bias: bias, qk_norm: true, windows, ..Variant::default() }))
}
