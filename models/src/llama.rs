//! Llama 1 to 3.x (Touvron et al. 2023; Grattafiori et al. 2024), and models published under its
//! architecture.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Variant};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: None, head_dim: None, max_positions: 2048 })?;
    let bias = root.flag("attention_bias")?.unwrap_or(false);
    let mlp_bias = root.flag("mlp_bias")?.unwrap_or(false);
    // One key puts biases on all four projections.
    Ok(dense.decoder("llama", &Variant { qkv_bias: bias, output_bias: bias, mlp_bias, ..Variant::default() }))
}
