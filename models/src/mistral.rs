//! Mistral (Jiang et al. 2023): Llama with a head size of its own and a window on every layer.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Variant, window};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: Some(8), head_dim: None, max_positions: 131_072 })?;
    let windows = vec![window(root)?; dense.layers];
    Ok(dense.decoder("mistral", &Variant { windows, ..Variant::default() }))
}
