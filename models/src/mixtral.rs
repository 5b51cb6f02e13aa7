//! Mixtral (Jiang et al. 2024): Mistral with a mixture of experts in every layer.
use crate::family::{Defaults, Dense, Variant, experts, window_or};
use crate::{DecoderSpec, ExpertNames};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: Some(8), head_dim: None, max_positions: 131_072 })?;
    let windows = vec![window_or(root, None)?; dense.layers];
    let mixture = experts(root, &["num_local_experts"], dense.layers, (8, 2), (true, ExpertNames::BlockSparse))?;
    let experts = vec![Some((dense.intermediate_size, mixture)); dense.layers];
    Ok(dense.decoder("mixtral", &Variant { windows, experts, ..Variant::default() }))
}
