//! Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms before and after attention and MLP, soft caps of scores and logits,
//! and a window on every other layer.
use crate::DecoderSpec;
use crate::family::{Defaults, Dense, Habits, Variant, cap, window};
use anyfleet_weights::{Result, Section};

/// What Gemmas have in common where they differ from others.
pub(crate) const HABITS: Habits =
    Habits { activation: ("hidden_activation", "gelu_pytorch_tanh"), tied_head: true, rope_by_layer_type: false };

pub(crate) fn spec(root: &Section<'_>) -> Result<DecoderSpec> {
    let dense =
        Dense::read_as(root, &Defaults { kv_heads: Some(4), head_dim: Some(256), max_positions: 8192 }, &HABITS)?;
    let (window, layers) = (window(root)?, sliding_layers(root, dense.layers, 2)?);
    let windows = layers.into_iter().map(|sliding| window.filter(|_| sliding)).collect();
    let mut spec = decoder(root, dense, "gemma2", Variant { windows, ..Variant::default() })?;
    let softcap = softcap(root, "attn_logit_softcapping", Some(50.0))?;
    spec.layers.iter_mut().for_each(|layer| layer.attention.softcap = softcap);
    spec.logit_softcap = self::softcap(root, "final_logit_softcapping", Some(30.0))?;
    Ok(spec)
}

/// A Gemma's decoder: embeddings scaled by the root of the width, queries by a scalar of their own, norms after attention
/// and MLP, and norm weights stored less 1.
pub(crate) fn decoder(root: &Section<'_>, dense: Dense, family: &'static str, variant: Variant) -> Result<DecoderSpec> {
    if root.flag("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(root.error("use_bidirectional_attention", "false, since a decoder looks back only"));
    }
    let scalar = root.float("query_pre_attn_scalar", 1e-3..=1e6)?.unwrap_or(256.0);
    let bias = root.flag("attention_bias")?.unwrap_or(false);
    let mut spec = dense.decoder(family, &Variant { qkv_bias: bias, output_bias: bias, ..variant });
    for layer in &mut spec.layers {
        layer.attention.scale = scalar.powf(-0.5) as f32;
        layer.post_norm = Some(layer.mlp_norm);
    }
    spec.embed_scale = Some((spec.hidden_size as f64).sqrt());
    spec.norms_less_one = true;
    Ok(spec)
}

/// Which layers have the window: those that `layer_types` names, or all but every `pattern`th.
pub(crate) fn sliding_layers(root: &Section<'_>, layers: usize, pattern: usize) -> Result<Vec<bool>> {
    let Some(types) = root.texts("layer_types")? else {
        return Ok((1..=layers).map(|i| !i.is_multiple_of(pattern)).collect());
    };
    if types.len() != layers {
        return Err(root.error("layer_types", format!("one entry for each of the {layers} layers")));
    }
    let sliding = types.into_iter().map(|kind| match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(root.error("layer_types", "full_attention and sliding_attention, the types supported")),
    });
    sliding.collect()
}

/// A soft cap: `default` where the key is missing and none where it is null.
pub(crate) fn softcap(root: &Section<'_>, key: &str, default: Option<f32>) -> Result<Option<f32>> {
    let given = root.float(key, cap::SOFTCAP)?.map(|cap| cap as f32);
    Ok(if root.get(key).is_none() { default } else { given })
}
