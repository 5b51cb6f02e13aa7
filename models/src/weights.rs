//! Which tensors of a checkpoint make up a decoder, in the names of the Hugging Face hub.
use crate::latent::LatentWeights;
use crate::{AttentionSpec, DecoderSpec, ExpertNames, ExpertsSpec, LayerSpec};
use anyfleet_weights::{Config, MatrixSpec, ModelDir, ModelFiles, Result, VectorSpec};
use std::collections::HashSet;

/// Every weight of a decoder: what to load, merge and count.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightMap {
    /// `[V, D]`.
    pub embed: MatrixSpec,
    /// Layers from the first to the last.
    pub layers: Vec<LayerWeights>,
    /// `[D]`.
    pub final_norm: VectorSpec,
    /// `[V, D]`; `None` where the head is the embedding matrix.
    pub head: Option<MatrixSpec>,
}

/// The weights of one layer: `H` query heads, `G` key/value heads, head size `d`, inner width `F`.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// `[D]`.
    pub input_norm: VectorSpec,
    /// `[(H + 2G) * d, D]`, rows of q, k and v; with latents, of what makes them.
    pub qkv: MatrixSpec,
    /// `[(H + 2G) * d]`.
    pub qkv_bias: Option<VectorSpec>,
    /// `[d]`.
    pub q_norm: Option<VectorSpec>,
    /// `[d]`.
    pub k_norm: Option<VectorSpec>,
    /// Of layers with latents.
    pub latent: Option<LatentWeights>,
    /// `[D, H * d]`.
    pub output: MatrixSpec,
    /// `[D]`.
    pub output_bias: Option<VectorSpec>,
    /// `[D]`.
    pub mlp_norm: VectorSpec,
    /// `[E, D]`, where there are experts.
    pub router: Option<MatrixSpec>,
    /// `[E]`.
    pub router_bias: Option<VectorSpec>,
    /// `[2F, D]`, rows of gate and up; of experts a stack.
    pub gate_up: MatrixSpec,
    /// `[2F]`.
    pub gate_up_bias: Option<VectorSpec>,
    /// `[D, F]`; of experts a stack.
    pub down: MatrixSpec,
    /// `[D]`.
    pub down_bias: Option<VectorSpec>,
    /// Beside experts, as `gate_up` and `down` of an MLP.
    pub shared: Option<(MatrixSpec, MatrixSpec)>,
    /// `[D]`.
    pub attention_post_norm: Option<VectorSpec>,
    /// `[D]`.
    pub mlp_post_norm: Option<VectorSpec>,
}

const HEAD: &str = "lm_head.weight";
const EMBED: &str = "embed_tokens.weight";
/// What published checkpoints put before the names of everything but the head.
const PREFIX: &str = "model.";

impl WeightMap {
    /// The weights of `spec` under the hub's names.
    pub fn new(spec: &DecoderSpec) -> Self {
        Self::with_prefix(spec, PREFIX)
    }

    /// The weights of `spec` where `prefix` comes before every name but the head's: `model.` in
    /// published checkpoints, nothing in exports of the base model.
    pub fn with_prefix(spec: &DecoderSpec, prefix: &str) -> Self {
        let width = spec.hidden_size;
        let less_one = spec.norms_less_one;
        let layer = |(i, layer)| LayerWeights::new(&format!("{prefix}layers.{i}."), layer, width, less_one);
        WeightMap {
            embed: matrix(&[(format!("{prefix}{EMBED}"), spec.vocab_size)], width),
            layers: spec.layers.iter().enumerate().map(layer).collect(),
            final_norm: norm(format!("{prefix}norm.weight"), width, less_one),
            head: (!spec.tied_head).then(|| matrix(&[(HEAD.into(), spec.vocab_size)], width)),
        }
    }

    /// All matrices: embedding, layers, head.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixSpec> {
        let layers = self.layers.iter().flat_map(LayerWeights::matrices);
        [&self.embed].into_iter().chain(layers).chain(&self.head)
    }

    /// Notes which matrices `dir` has as floats though others have eight bits.
    fn note_floats(&mut self, dir: &ModelDir) {
        if !dir.has_f8() {
            return;
        }
        let layers = self.layers.iter_mut().flat_map(LayerWeights::matrices_mut);
        for matrix in [&mut self.embed].into_iter().chain(layers).chain(&mut self.head) {
            matrix.floats = !matrix.parts.iter().all(|(name, _)| dir.is_f8(name));
        }
    }

    /// All vectors, which are kept as f32.
    pub fn vectors(&self) -> impl Iterator<Item = &VectorSpec> {
        self.layers.iter().flat_map(LayerWeights::vectors).chain([&self.final_norm])
    }

    /// Elements of all vectors: four bytes each in the memory plan.
    pub fn vector_elements(&self) -> usize {
        self.vectors().map(VectorSpec::len).sum()
    }

    /// Every tensor of the checkpoint this needs, once, with its shape.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let matrices = self.matrices().flat_map(|m| m.tensors()).map(|(name, shape)| (name.to_owned(), shape.to_vec()));
        let vectors = self.vectors().flat_map(VectorSpec::tensors).map(|(name, len)| (name.to_owned(), vec![len]));
        // Heads over latents have theirs in one.
        let mut seen = HashSet::new();
        matrices.chain(vectors).filter(move |(name, _)| seen.insert(name.clone()))
    }

    /// Tensors of the checkpoint that nothing here reads and that are not known to be redundant.
    pub fn unused<'a>(&self, dir: &'a ModelDir) -> Vec<&'a str> {
        let mut names = dir.unused(self.tensors().map(|(name, _)| name));
        // Frequencies are computed; a tied head repeats the embedding.
        names.retain(|name| !name.ends_with("rotary_emb.inv_freq") && *name != HEAD);
        // Layers that guess further tokens (DeepSeek-V3) come after the last.
        let guesses = dir.config().root().uint("num_nextn_predict_layers", 0..=16).ok().flatten().unwrap_or(0);
        let first = self.layers.len();
        let layer = |name: &str| name.split_once("layers.")?.1.split_once('.')?.0.parse::<usize>().ok();
        names.retain(|name| !layer(name).is_some_and(|layer| (first..first + guesses).contains(&layer)));
        names
    }
}

impl LayerWeights {
    fn new(prefix: &str, layer: &LayerSpec, width: usize, less_one: bool) -> Self {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = layer.attention;
        let inner = layer.mlp.intermediate_size;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let parts = |group: &str, kind: &str, list: &[(&str, usize)]| -> Vec<(String, usize)> {
            list.iter().map(|(name, rows)| (format!("{prefix}{group}.{name}.{kind}"), *rows)).collect()
        };
        let norm = |name: &str, len: usize| norm(format!("{prefix}{name}.weight"), len, less_one);
        // With norms of what is added, the one after attention is one of them.
        let (before_mlp, after) = match layer.post_norm {
            None => ("post_attention_layernorm", [None, None]),
            Some(_) => {
                let after = ["post_attention_layernorm", "post_feedforward_layernorm"];
                ("pre_feedforward_layernorm", after.map(|name| Some(norm(name, width))))
            }
        };
        let [attention_post_norm, mlp_post_norm] = after;
        let attention = |kind, list: &[_]| parts("self_attn", kind, list);
        let mlp = |kind, list: &[_]| parts("mlp", kind, list);
        let bias = |on: bool, parts: Vec<(String, usize)>| on.then(|| VectorSpec::new(parts));

        let qkv = match &layer.attention.latent {
            Some(latent) => LatentWeights::first(&layer.attention, latent).to_vec(),
            None => vec![("q_proj", q), ("k_proj", kv), ("v_proj", kv)],
        };
        let gate_up = [("gate_proj", inner), ("up_proj", inner)];
        let (output, down) = ([("o_proj", width)], [("down_proj", width)]);
        let (router, gate_up_rows, down_rows, router_bias, shared) = match &layer.mlp.experts {
            Some(experts) => {
                let ExpertWeights { router, gate_up, down, bias, shared } =
                    ExpertWeights::new(prefix, experts, inner, width);
                (Some(router), gate_up, down, bias, shared)
            }
            None => {
                let (gate_up, down) = (matrix(&mlp("weight", &gate_up), width), matrix(&mlp("weight", &down), inner));
                (None, gate_up, down, None, None)
            }
        };
        let qk_norm = |name| layer.attention.qk_norm.map(|_| norm(name, head_dim));
        LayerWeights {
            input_norm: norm("input_layernorm", width),
            qkv: matrix(&attention("weight", &qkv), width),
            qkv_bias: bias(layer.attention.qkv_bias, attention("bias", &qkv)),
            q_norm: qk_norm("self_attn.q_norm"),
            k_norm: qk_norm("self_attn.k_norm"),
            latent: layer.attention.latent.map(|latent| LatentWeights::new(prefix, &layer.attention, &latent)),
            output: matrix(&attention("weight", &output), layer.attention.output_width()),
            output_bias: bias(layer.attention.output_bias, attention("bias", &output)),
            mlp_norm: norm(before_mlp, width),
            router,
            router_bias,
            gate_up: gate_up_rows,
            gate_up_bias: bias(layer.mlp.bias, mlp("bias", &gate_up)),
            down: down_rows,
            down_bias: bias(layer.mlp.bias, mlp("bias", &down)),
            shared,
            attention_post_norm,
            mlp_post_norm,
        }
    }

    /// Matrices of the layer.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixSpec> {
        let latent = self.latent.iter().flat_map(LatentWeights::matrices);
        let shared = self.shared.iter().flat_map(|(gate_up, down)| [gate_up, down]);
        let attention = [&self.qkv].into_iter().chain(latent).chain([&self.output]);
        attention.chain(&self.router).chain([&self.gate_up, &self.down]).chain(shared)
    }

    /// The same, to be changed; in another order.
    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut MatrixSpec> {
        let latent = self.latent.iter_mut().flat_map(LatentWeights::matrices_mut);
        let shared = self.shared.iter_mut().flat_map(|(gate_up, down)| [gate_up, down]);
        let own = [&mut self.qkv, &mut self.output, &mut self.gate_up, &mut self.down];
        own.into_iter().chain(&mut self.router).chain(latent).chain(shared)
    }

    /// Norms and biases of the layer.
    pub fn vectors(&self) -> impl Iterator<Item = &VectorSpec> {
        let optional =
            [&self.qkv_bias, &self.q_norm, &self.k_norm, &self.output_bias, &self.gate_up_bias, &self.down_bias];
        let after = self.attention_post_norm.iter().chain(&self.mlp_post_norm).chain(&self.router_bias);
        let after = after.chain(self.latent.iter().flat_map(LatentWeights::vectors));
        [&self.input_norm, &self.mlp_norm].into_iter().chain(optional.into_iter().flatten()).chain(after)
    }
}

/// The matrices of a layer's experts.
struct ExpertWeights {
    router: MatrixSpec,
    gate_up: MatrixSpec,
    down: MatrixSpec,
    bias: Option<VectorSpec>,
    shared: Option<(MatrixSpec, MatrixSpec)>,
}

impl ExpertWeights {
    fn new(prefix: &str, experts: &ExpertsSpec, inner: usize, width: usize) -> Self {
        let (group, [gate, up, down]) = match experts.names {
            ExpertNames::Mlp => ("mlp", ["gate_proj", "up_proj", "down_proj"]),
            ExpertNames::BlockSparse => ("block_sparse_moe", ["w1", "w3", "w2"]),
        };
        let stack = |names: &[&str], rows: usize, cols: usize| {
            let of = |expert: usize| {
                names.iter().map(move |name| (format!("{prefix}{group}.experts.{expert}.{name}.weight"), rows))
            };
            MatrixSpec::new((0..experts.count).flat_map(of).collect(), cols).stacked(experts.count)
        };
        let shared = |inner: usize| {
            let part = |name: &str, rows: usize| (format!("{prefix}{group}.shared_experts.{name}.weight"), rows);
            (matrix(&[part(gate, inner), part(up, inner)], width), matrix(&[part(down, width)], inner))
        };
        let bias = || VectorSpec::new(vec![(format!("{prefix}{group}.gate.e_score_correction_bias"), experts.count)]);
        ExpertWeights {
            bias: experts.biased.then(bias),
            shared: (experts.shared > 0).then(|| shared(experts.shared)),
            router: matrix(&[(format!("{prefix}{group}.gate.weight"), experts.count)], width),
            gate_up: stack(&[gate, up], inner, width),
            down: stack(&[down], width, inner),
        }
    }
}

fn matrix(parts: &[(String, usize)], cols: usize) -> MatrixSpec {
    MatrixSpec::new(parts.to_vec(), cols)
}

fn norm(name: String, len: usize, less_one: bool) -> VectorSpec {
    let weight = VectorSpec::new(vec![(name, len)]);
    if less_one { weight.stored_less_one() } else { weight }
}

/// A model directory whose config is supported and whose checkpoint has everything it needs.
#[derive(Debug)]
pub struct Model {
    /// Configuration and weights.
    pub dir: ModelDir,
    /// The decoder.
    pub spec: DecoderSpec,
    /// Where its weights are.
    pub weights: WeightMap,
}

/// Opens a model directory or a model that is part of the program, maps its config and checks its weights, in this order: a model that is
/// not supported is refused before its weights are looked at.
///
/// # Errors
/// Those of [`Config::open`], [`spec_from_config`](crate::spec_from_config),
/// [`ModelDir::with_config`] and [`check_weights`].
pub fn open_model(model: impl Into<ModelFiles>) -> Result<Model> {
    let files = model.into();
    let config = Config::open(files.clone())?;
    let mut spec = crate::spec_from_config(&config)?;
    let dir = ModelDir::with_config(files, config)?;
    if spec.tied_head && differs_from_embedding(&dir)? {
        spec.tied_head = false;
    }
    let weights = check_weights(&dir, &spec)?;
    Ok(Model { dir, spec, weights })
}

/// Checks that a checkpoint has every weight of `spec`, in the right shape and a supported dtype,
/// and returns where they are.
///
/// # Errors
/// [`Error::File`](anyfleet_weights::Error::File) for missing tensors (their count and the first
/// few), [`Error::Tensor`](anyfleet_weights::Error::Tensor) for the first that does not fit.
pub fn check_weights(dir: &ModelDir, spec: &DecoderSpec) -> Result<WeightMap> {
    let mut map = WeightMap::with_prefix(spec, prefix(dir));
    if spec.tied_head && !dir.contains(&map.embed.parts[0].0) && dir.contains(HEAD) {
        // The pair was saved under its other name.
        map.embed.parts[0].0 = HEAD.into();
    }
    dir.check(map.tensors())?;
    map.note_floats(dir);
    Ok(map)
}

fn prefix(dir: &ModelDir) -> &'static str {
    let published = dir.contains(&format!("{PREFIX}{EMBED}"));
    if !published && dir.contains(EMBED) { "" } else { PREFIX }
}

/// A config may say that the head is tied where the checkpoint has a head of its own. The reference
/// implementation believes the checkpoint, and so do we.
fn differs_from_embedding(dir: &ModelDir) -> Result<bool> {
    let embed = format!("{}{EMBED}", prefix(dir));
    if !dir.contains(HEAD) || !dir.contains(&embed) {
        return Ok(false);
    }
    let (head, embed) = (dir.tensor(HEAD)?, dir.tensor(&embed)?);
    Ok(head.dtype != embed.dtype || head.shape != embed.shape || head.bytes != embed.bytes)
}
