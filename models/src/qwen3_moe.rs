//! Qwen3 with experts (Yang et al. 2025): as the dense one, with a mixture of experts in all layers or some.
use crate::family::{Defaults, Dense, Variant, cap, experts, window_or};
use crate::{DecoderSpec, ExpertNames};
use anyfleet_weights::{Result, Section};

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense = Dense::read(root, &Defaults { kv_heads: Some(4), head_dim: None, max_positions: 32_768 })?;
    let bias = root.flag("attention_bias")?.unwrap_or(false);
    let window = if root.flag("use_sliding_window")?.unwrap_or(false) { window_or(root, Some(4096))? } else { None };
    let renormalise = root.flag("norm_topk_prob")?.unwrap_or(false);
    let keys = ["num_experts", "num_local_experts"];
    let mixture = experts(root, &keys, dense.layers, (128, 8), (renormalise, ExpertNames::Mlp))?;
    let inner = root.uint("moe_intermediate_size", 1..=cap::INNER)?.unwrap_or(768);
    let step = root.uint("decoder_sparse_step", 1..=cap::LAYERS)?.unwrap_or(1);
    let dense_layers = root.uints("mlp_only_layers", 0..=cap::LAYERS)?.unwrap_or_default();
    let is_sparse = |layer: usize| (layer + 1).is_multiple_of(step) && !dense_layers.contains(&layer);
    let experts = (0..dense.layers).map(|layer| is_sparse(layer).then_some((inner, mixture))).collect();
    let windows = vec![window; dense.layers];
    let variant = Variant { qkv_bias: bias, output_bias: bias, qk_norm: true, windows, experts, ..Variant::default() };
    Ok(dense.decoder("qwen3_moe", &variant))
}
