//! `config.json` to [`DecoderSpec`]: which family a model is of, and what the families share.
//!
//! Defaults for keys a config does not have are those of transformers 5 (`configuration_*.py`),
//! because published configs leave out what equals them.
pub(crate) mod rope;

use crate::{
    AttentionSpec, DecoderSpec, ExpertNames, ExpertsSpec, LayerSpec, MlpSpec, NormSpec, RopeSpec, deepseek, gemma2,
    gemma3, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe,
};
use anyfleet_tensor::ops::{Activation, Scoring};
use anyfleet_weights::{Config, Result, Section, quote};

/// A family's name in `model_type` and `architectures`, and its mapping.
struct Family {
    model_type: &'static str,
    architecture: &'static str,
    /// The architecture of exports without a head.
    base: &'static str,
    spec: fn(&Section<'_>) -> Result<DecoderSpec>,
}

const FAMILIES: &[Family] = &[
    Family {
        model_type: "deepseek_v2",
        architecture: "DeepseekV2ForCausalLM",
        base: "DeepseekV2Model",
        spec: deepseek::v2,
    },
    Family {
        model_type: "deepseek_v3",
        architecture: "DeepseekV3ForCausalLM",
        base: "DeepseekV3Model",
        spec: deepseek::v3,
    },
    Family { model_type: "gemma2", architecture: "Gemma2ForCausalLM", base: "Gemma2Model", spec: gemma2::spec },
    Family {
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        base: "Gemma3TextModel",
        spec: gemma3::spec,
    },
    Family { model_type: "llama", architecture: "LlamaForCausalLM", base: "LlamaModel", spec: llama::spec },
    Family { model_type: "mistral", architecture: "MistralForCausalLM", base: "MistralModel", spec: mistral::spec },
    Family { model_type: "mixtral", architecture: "MixtralForCausalLM", base: "MixtralModel", spec: mixtral::spec },
    Family { model_type: "qwen2", architecture: "Qwen2ForCausalLM", base: "Qwen2Model", spec: qwen2::spec },
    Family { model_type: "qwen3", architecture: "Qwen3ForCausalLM", base: "Qwen3Model", spec: qwen3::spec },
    Family {
        model_type: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        base: "Qwen3MoeModel",
        spec: qwen3_moe::spec,
    },
];

/// Architectures that [`spec_from_config`] maps, as `architectures` in `config.json` names them.
pub fn supported_architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|f| f.architecture)
}

/// Maps `config.json` to the decoder it describes.
///
/// # Errors
/// [`Error::Unsupported`](anyfleet_weights::Error::Unsupported) for another architecture (the
/// supported ones are listed) or a feature that is not implemented,
/// [`Error::Config`](anyfleet_weights::Error::Config) for a value no model can have.
pub fn spec_from_config(config: &Config) -> Result<DecoderSpec> {
    let root = config.root();
    let family = find(&root)?;
    crate::quantization::check(&root)?;
    (family.spec)(&root)
}

fn find(root: &Section<'_>) -> Result<&'static Family> {
    let architectures = root.texts("architectures")?.unwrap_or_default();
    if architectures.first() == Some(&"Gemma3ForConditionalGeneration") {
        return Err(root.unsupported(format!(
            "architecture Gemma3ForConditionalGeneration is not supported: it has a vision tower, and its weights other \
             names; use a checkpoint of text alone; supported are {}",
            supported_list()
        )));
    }
    let (family, named) = match architectures.first() {
        Some(&name) => (
            FAMILIES.iter().find(|f| f.architecture == name || f.base == name),
            format!("architecture {}", quote(name)),
        ),
        None => match root.text("model_type")? {
            Some(name) => (FAMILIES.iter().find(|f| f.model_type == name), format!("model_type {}", quote(name))),
            None => return Err(root.error("architectures", format!("one of {}", supported_list()))),
        },
    };
    family.ok_or_else(|| root.unsupported(format!("{named} is not supported; supported are {}", supported_list())))
}

fn supported_list() -> String {
    supported_architectures().collect::<Vec<_>>().join(", ")
}

/// What families do not share where a config leaves it out.
pub(crate) struct Defaults {
    /// `num_key_value_heads` when the key is missing; `None` is as many as query heads.
    pub kv_heads: Option<usize>,
    /// `head_dim` when the key is missing; `None` is width / heads.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings` when the key is missing.
    pub max_positions: usize,
}

/// What differs between the layers of dense decoders.
#[derive(Default)]
pub(crate) struct Variant {
    pub qkv_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    pub qk_norm: bool,
    /// By layer; empty where no layer has a window.
    pub windows: Vec<Option<usize>>,
    /// Experts and their inner width by layer; empty where no layer has any.
    pub experts: Vec<Option<(usize, ExpertsSpec)>>,
}

/// The keys dense decoders of attention and gated MLP have in common.
pub(crate) struct Dense {
    pub layers: usize,
    vocab_size: usize,
    hidden_size: usize,
    max_positions: usize,
    pub intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    norm: NormSpec,
    activation: Activation,
    tied_head: bool,
    rope: RopeSpec,
}

/// Caps, several times the largest published models. They keep a hostile config from asking for
/// more memory than its weights could justify, and products of two from overflowing.
pub(crate) mod cap {
    use std::ops::RangeInclusive;

    pub(crate) const SOFTCAP: RangeInclusive<f64> = 1e-3..=1e6;
    pub(crate) const LAYERS: usize = 1024;
    pub(crate) const WIDTH: usize = 1 << 17;
    pub(crate) const INNER: usize = 1 << 20;
    pub(crate) const HEADS: usize = 2048;
    pub(crate) const HEAD_DIM: usize = 1024;
    pub(crate) const EXPERTS: usize = 2048;
    /// Over all layers.
    pub(crate) const ALL_EXPERTS: usize = 1 << 17;
    pub(crate) const VOCAB: usize = 1 << 22;
    pub(crate) const POSITIONS: usize = 1 << 24;
}

/// What a family names in its own way, or has another default for.
pub(crate) struct Habits {
    /// The key of the activation, and what it is when the key is missing.
    pub activation: (&'static str, &'static str),
    /// `tie_word_embeddings` when the key is missing.
    pub tied_head: bool,
    /// Layers with a window rotate differently: what [`Dense::read_as`] reads are the others.
    pub rope_by_layer_type: bool,
}

/// Those of most.
const COMMON: Habits = Habits { activation: ("hidden_act", "silu"), tied_head: false, rope_by_layer_type: false };

impl Dense {
    pub(crate) fn read(root: &Section<'_>, defaults: &Defaults) -> Result<Self> {
        Dense::read_as(root, defaults, &COMMON)
    }

    pub(crate) fn read_as(root: &Section<'_>, defaults: &Defaults, habits: &Habits) -> Result<Self> {
        let hidden_size = root.required_uint("hidden_size", 1..=cap::WIDTH)?;
        let heads = root.required_uint("num_attention_heads", 1..=cap::HEADS)?;
        let max_positions = root.uint("max_position_embeddings", 1..=cap::POSITIONS)?.unwrap_or(defaults.max_positions);
        let head_dim = head_dim(root, hidden_size, heads, defaults.head_dim)?;
        let vocab_size = root.required_uint("vocab_size", 1..=cap::VOCAB)?;
        Ok(Dense {
            layers: root.required_uint("num_hidden_layers", 1..=cap::LAYERS)?,
            vocab_size,
            hidden_size,
            max_positions,
            intermediate_size: root.required_uint("intermediate_size", 1..=cap::INNER)?,
            heads,
            kv_heads: kv_heads(root, heads, defaults.kv_heads)?,
            head_dim,
            norm: NormSpec { eps: root.float("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6) as f32 },
            activation: activation(root, habits.activation)?,
            tied_head: root.flag("tie_word_embeddings")?.unwrap_or(habits.tied_head),
            rope: match habits.rope_by_layer_type {
                false => rope::read(root, head_dim, max_positions)?,
                true => rope::read_by_layer_type(root, head_dim, max_positions)?.full,
            },
        })
    }

    pub(crate) fn decoder(self, family: &'static str, variant: &Variant) -> DecoderSpec {
        let layer = |index: usize| LayerSpec {
            input_norm: self.norm,
            attention: AttentionSpec {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                scale: (self.head_dim as f64).powf(-0.5) as f32,
                softcap: None,
                window: variant.windows.get(index).copied().flatten(),
                qkv_bias: variant.qkv_bias,
                output_bias: variant.output_bias,
                qk_norm: variant.qk_norm.then_some(self.norm),
                rope: Some(self.rope.clone()),
                latent: None,
            },
            mlp_norm: self.norm,
            mlp: match variant.experts.get(index).copied().flatten() {
                Some((intermediate_size, experts)) => {
                    MlpSpec { intermediate_size, activation: self.activation, bias: false, experts: Some(experts) }
                }
                None => MlpSpec {
                    intermediate_size: self.intermediate_size,
                    activation: self.activation,
                    bias: variant.mlp_bias,
                    experts: None,
                },
            },
            post_norm: None,
        };
        DecoderSpec {
            family,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            max_position_embeddings: self.max_positions,
            layers: (0..self.layers).map(layer).collect(),
            final_norm: self.norm,
            tied_head: self.tied_head,
            embed_scale: None,
            logit_softcap: None,
            norms_less_one: false,
        }
    }
}

/// Experts whose weights are the softmax over all experts: how many there are (under one of `keys`), and how many a token
/// has.
pub(crate) fn experts(
    root: &Section<'_>,
    keys: &[&str],
    layers: usize,
    (count, per_token): (usize, usize),
    (renormalise, names): (bool, ExpertNames),
) -> Result<ExpertsSpec> {
    const KEY: &str = "num_experts_per_tok";
    let found = keys.iter().find(|key| root.has(key));
    let count = found.map_or(Ok(None), |key| root.uint(key, 1..=cap::EXPERTS))?.unwrap_or(count);
    let per_token = root.uint(KEY, 1..=cap::EXPERTS)?.unwrap_or(per_token);
    if count * layers > cap::ALL_EXPERTS {
        let key = found.copied().unwrap_or(keys[0]);
        return Err(root.error(key, format!("at most {} experts over all {layers} layers", cap::ALL_EXPERTS)));
    }
    if per_token > count {
        return Err(root.error(KEY, format!("at most as many as there are experts ({count})")));
    }
    let (scoring, groups) = (Scoring::Softmax, None);
    Ok(ExpertsSpec { count, per_token, scoring, renormalise, scale: 1.0, groups, biased: false, shared: 0, names })
}

fn head_dim(root: &Section<'_>, hidden_size: usize, heads: usize, default: Option<usize>) -> Result<usize> {
    // A null head_dim means width / heads in every family; only a missing one takes the default.
    let default = if root.get("head_dim").is_some() { None } else { default };
    let size = match root.uint("head_dim", 1..=cap::HEAD_DIM)?.or(default) {
        Some(size) => size,
        None if !hidden_size.is_multiple_of(heads) => {
            return Err(root.error("hidden_size", format!("a multiple of num_attention_heads ({heads})")));
        }
        None => hidden_size / heads,
    };
    if size % 2 == 1 {
        let key = if root.has("head_dim") { "head_dim" } else { "hidden_size" };
        return Err(root.error(key, format!("an even head size, not {size}: rotary embedding turns pairs")));
    }
    if size > cap::HEAD_DIM {
        return Err(root.error("hidden_size", format!("heads of at most {} elements, not {size}", cap::HEAD_DIM)));
    }
    Ok(size)
}

fn kv_heads(root: &Section<'_>, heads: usize, default: Option<usize>) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    let missing = if root.get(KEY).is_some() { None } else { default };
    let groups = root.uint(KEY, 1..=cap::HEADS)?.or(missing).unwrap_or(heads);
    if heads.is_multiple_of(groups) {
        return Ok(groups);
    }
    Err(root.error(KEY, format!("a divisor of num_attention_heads ({heads})")))
}

fn activation(root: &Section<'_>, (key, default): (&str, &str)) -> Result<Activation> {
    match root.text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        _ => Err(root.error(key, "silu or gelu_pytorch_tanh, the activations supported")),
    }
}

/// Window per layer of families with `use_sliding_window`: the layers from `max_window_layers` on,
/// or those that `layer_types` names.
pub(crate) fn windows_by_layer(root: &Section<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match root.flag("use_sliding_window")?.unwrap_or(false) {
        true => window(root)?,
        false => None,
    };
    let Some(types) = root.texts("layer_types")? else {
        let first = root.uint("max_window_layers", 0..=cap::POSITIONS)?.unwrap_or(28);
        return Ok((0..layers).map(|i| window.filter(|_| i >= first)).collect());
    };
    if types.len() != layers {
        return Err(root.error("layer_types", format!("one entry for each of the {layers} layers")));
    }
    types
        .into_iter()
        .map(|kind| match kind {
            "full_attention" | "attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => Err(root.error(
                "layer_types",
                "only full_attention, since use_sliding_window is off or sliding_window missing",
            )),
            _ => Err(root.error("layer_types", "full_attention and sliding_attention, the types supported")),
        })
        .collect()
}

/// `sliding_window`, 4096 where the key is missing and none where it is null.
pub(crate) fn window(root: &Section<'_>) -> Result<Option<usize>> {
    window_or(root, Some(4096))
}

/// `sliding_window`, `default` where the key is missing and none where it is null.
pub(crate) fn window_or(root: &Section<'_>, default: Option<usize>) -> Result<Option<usize>> {
    const KEY: &str = "sliding_window";
    let window = root.uint(KEY, 1..=cap::POSITIONS)?;
    Ok(if root.get(KEY).is_none() { default } else { window })
}
