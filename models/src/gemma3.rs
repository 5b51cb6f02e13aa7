//! Gemma 3, text (Gemma Team 2025, arXiv 2503.19786): Gemma 2 with norms of query and key heads in the place of soft caps,
//! five layers with a window to one without, and rotary embeddings of their own for both.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Habits, Variant, rope, window};
use crate::gemma2::{self, HABITS, sliding_layers, softcap};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    const HEAD_DIM: usize = 256;
    let defaults = Defaults { kv_heads: Some(4), head_dim: Some(HEAD_DIM), max_positions: 131_072 };
    let dense = Dense::read_as(root, &defaults, &Habits { rope_by_layer_type: true, ..HABITS })?;
    let pattern = root.uint("sliding_window_pattern", 1..=1024)?.unwrap_or(6);
    let (window, sliding) = (window(root)?, sliding_layers(root, dense.layers, pattern)?);
    let windows = sliding.iter().map(|&sliding| window.filter(|_| sliding)).collect();
    let mut spec = gemma2::decoder(root, dense, "gemma3", Variant { qk_norm: true, windows, ..Variant::default() })?;
    let head_dim = spec.layers.first().map_or(HEAD_DIM, |layer| layer.attention.head_dim);
    let local = rope::read_by_layer_type(root, head_dim, spec.max_position_embeddings)?.sliding;
    for (layer, _) in spec.layers.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
        layer.attention.rope = Some(local.clone());
    }
    // The reference implementation reads the key and does nothing with it.
    if softcap(root, "attn_logit_softcapping", None)?.is_some() {
        return Err(
            root.error("attn_logit_softcapping", "null, since Gemma 3 has norms of query and key heads instead")
        );
    }
    spec.logit_softcap = softcap(root, "final_logit_softcapping", None)?;
    Ok(spec)
}
