//! DeepSeek-V2 (arXiv 2405.04434) and DeepSeek-V3 (arXiv 2412.19437), and what has V3's architecture (R1, Kimi K2): latent
//! attention, and in all layers but the first a mixture of experts beside experts that every token has.
use crate::family::{Defaults, Dense, Variant, cap, rope};
use crate::{DecoderSpec, ExpertNames, ExpertsSpec, LatentSpec, NormSpec};
use anyfleet_tensor::ops::{ExpertGroups, GroupScore, Scoring};
use anyfleet_weights::{Result, Section};

/// What the two generations do not share.
struct Generation {
    family: &'static str,
    max_positions: usize,
    dense_layers: usize,
    experts: (usize, usize, usize),
    shared: usize,
    inner: usize,
    groups: (usize, usize),
    scale: f64,
    renormalise: bool,
    scoring: (&'static str, Scoring),
    /// The method that chooses from groups, and how these are chosen.
    method: (&'static str, GroupScore),
}

pub(crate) fn v2(root: &Section<'_>) -> Result<DecoderSpec> {
    if root.flag("mlp_bias")?.unwrap_or(false) {
        return Err(root.error("mlp_bias", "false, as in the published models"));
    }
    let generation = Generation {
        family: "deepseek_v2",
        max_positions: 2048,
        dense_layers: 0,
        experts: (64, 6, 2048),
        shared: 2,
        inner: 1407,
        groups: (1, 1),
        scale: 1.0,
        renormalise: false,
        scoring: ("softmax", Scoring::Softmax),
        method: ("group_limited_greedy", GroupScore::Highest),
    };
    spec(root, &generation)
}

pub(crate) fn v3(root: &Section<'_>) -> Result<DecoderSpec> {
    let generation = Generation {
        family: "deepseek_v3",
        max_positions: 4096,
        dense_layers: 3,
        experts: (256, 8, 2048),
        shared: 1,
        inner: 2048,
        groups: (8, 4),
        scale: 2.5,
        renormalise: true,
        scoring: ("sigmoid", Scoring::Sigmoid),
        method: ("noaux_tc", GroupScore::TwoHighest),
    };
    spec(root, &generation)
}

fn spec(root: &Section<'_>, own: &Generation) -> Result<DecoderSpec> {
    // The rotated part is what configs that have the key call a head.
    let defaults = Defaults { kv_heads: None, head_dim: Some(64), max_positions: own.max_positions };
    let dense = Dense::read(root, &defaults)?;
    let first = root.uint("first_k_dense_replace", 0..=cap::LAYERS)?.unwrap_or(own.dense_layers);
    let step = root.uint("moe_layer_freq", 1..=cap::LAYERS)?.unwrap_or(1);
    let inner = root.uint("moe_intermediate_size", 1..=cap::INNER)?.unwrap_or(own.inner);
    let mixture = match root.get("n_routed_experts") {
        Some(value) if value.is_null() => None,
        _ => Some(experts(root, own, dense.layers, inner)?),
    };
    let is_sparse = |layer: usize| layer >= first && layer.is_multiple_of(step);
    let of_layer = |layer| mixture.filter(|_| is_sparse(layer)).map(|mixture| (inner, mixture));
    let experts = (0..dense.layers).map(of_layer).collect();
    let bias = root.flag("attention_bias")?.unwrap_or(false);
    let mut spec = dense.decoder(own.family, &Variant { output_bias: bias, experts, ..Variant::default() });
    let latent = latent(root)?;
    if bias && latent.query_rank.is_none() {
        return Err(root.error("attention_bias", "false where q_lora_rank is null"));
    }
    let mut rope = rope::read(root, latent.rotated, spec.max_position_embeddings)?;
    rope.interleaved = root.flag("rope_interleave")?.unwrap_or(true);
    let scale = rope::softmax_factor(root, &rope)? * (latent.query() as f64).powf(-0.5);
    for layer in &mut spec.layers {
        let attention = &mut layer.attention;
        // All heads share one key a token.
        (attention.kv_heads, attention.head_dim) = (1, latent.rank + latent.rotated);
        (attention.scale, attention.qkv_bias) = (scale as f32, bias);
        (attention.rope, attention.latent) = (Some(rope.clone()), Some(latent));
    }
    Ok(spec)
}

fn latent(root: &Section<'_>) -> Result<LatentSpec> {
    let size = |key: &str, most: usize, default: usize| Ok(root.uint(key, 1..=most)?.unwrap_or(default));
    let query_rank = match root.get("q_lora_rank") {
        None => Some(1536),
        Some(_) => root.uint("q_lora_rank", 1..=cap::WIDTH)?,
    };
    let latent = LatentSpec {
        query_rank,
        rank: size("kv_lora_rank", cap::HEAD_DIM, 512)?,
        plain: size("qk_nope_head_dim", cap::HEAD_DIM, 128)?,
        rotated: size("qk_rope_head_dim", cap::HEAD_DIM, 64)?,
        value: size("v_head_dim", cap::HEAD_DIM, 128)?,
        // That of the reference implementation, which does not take the other norms'.
        norm: NormSpec { eps: 1e-6 },
    };
    for (key, size) in [("qk_rope_head_dim", latent.rotated), ("kv_lora_rank", latent.rank)] {
        if size % 2 == 1 {
            return Err(root.error(key, "an even number: elements of latents and keys are taken in pairs"));
        }
    }
    Ok(latent)
}

fn experts(root: &Section<'_>, own: &Generation, layers: usize, inner: usize) -> Result<ExpertsSpec> {
    let (count, per_token, most) = own.experts;
    let count = root.uint("n_routed_experts", 1..=most.min(cap::EXPERTS))?.unwrap_or(count);
    let per_token = root.uint("num_experts_per_tok", 1..=cap::EXPERTS)?.unwrap_or(per_token);
    if count * layers > cap::ALL_EXPERTS {
        let expected = format!("at most {} experts over all {layers} layers", cap::ALL_EXPERTS);
        return Err(root.error("n_routed_experts", expected));
    }
    let (name, scoring) = own.scoring;
    if root.text("scoring_func")?.is_some_and(|given| given != name) {
        return Err(root.error("scoring_func", format!("{name}, that of {}", own.family)));
    }
    let renormalise = root.flag("norm_topk_prob")?.unwrap_or(own.renormalise);
    if renormalise && scoring == Scoring::Softmax {
        return Err(root.error("norm_topk_prob", "false: the reference implementation of this family does not divide"));
    }
    let shared = root.uint("n_shared_experts", 0..=64)?.unwrap_or(own.shared);
    let groups = groups(root, own, (count, per_token))?;
    let scale = root.float("routed_scaling_factor", 0.0..=1e6)?.unwrap_or(own.scale) as f32;
    let (biased, names, shared) = (scoring == Scoring::Sigmoid, ExpertNames::Mlp, shared * inner);
    Ok(ExpertsSpec { count, per_token, scoring, renormalise, scale, groups, biased, shared, names })
}

fn groups(root: &Section<'_>, own: &Generation, (experts, per_token): (usize, usize)) -> Result<Option<ExpertGroups>> {
    let ((name, score), (count, kept)) = (own.method, own.groups);
    let is_free = match root.text("topk_method")? {
        Some(given) if given == name => false,
        Some("greedy") => true,
        None => score == GroupScore::Highest,
        Some(_) => return Err(root.error("topk_method", format!("greedy or {name}"))),
    };
    if is_free {
        return if per_token <= experts { Ok(None) } else { Err(too_many(root, experts)) };
    }
    let count = root.uint("n_group", 1..=cap::EXPERTS)?.unwrap_or(count);
    let kept = root.uint("topk_group", 1..=cap::EXPERTS)?.unwrap_or(kept);
    if !experts.is_multiple_of(count) {
        return Err(root.error("n_group", format!("a divisor of n_routed_experts ({experts})")));
    }
    if kept > count {
        return Err(root.error("topk_group", format!("at most n_group ({count})")));
    }
    let reach = kept * (experts / count);
    if per_token > reach {
        return Err(too_many(root, reach));
    }
    Ok((count > 1).then_some(ExpertGroups { count, kept, score }))
}

fn too_many(root: &Section<'_>, most: usize) -> anyfleet_weights::Error {
    root.error("num_experts_per_tok", format!("at most as many experts as a token can choose from ({most})"))
}
