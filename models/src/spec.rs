//! `DecoderSpec`: what a decoder is, as plain data. A family maps `config.json` to it; one decoder
//! executes any of them.

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Family name, e.g. `llama`.
    pub family: &'static str,
    /// Rows of the embedding matrix and of the head.
    pub vocab_size: usize,
    /// Model width D.
    pub hidden_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Layers from the first to the last.
    pub layers: Vec<LayerSpec>,
    /// Norm before the head.
    pub final_norm: NormSpec,
    /// The head shares the embedding matrix.
    pub tied_head: bool,
    /// Multiplies embedding rows, after rounding to the float type that the embedding matrix is kept in.
    pub embed_scale: Option<f64>,
    /// Bounds the logits: `softcap * tanh(logit / softcap)` (Gemma 2, arXiv 2408.00118).
    pub logit_softcap: Option<f32>,
    /// The checkpoint has the weights of all norms less 1.
    pub norms_less_one: bool,
}

/// One pre-norm block: `x += mixer(norm(x)); x += mlp(norm(x))`, with norms of what is added where there are any.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Norm before attention.
    pub input_norm: NormSpec,
    /// Token mixing.
    pub attention: AttentionSpec,
    /// Norm before the MLP.
    pub mlp_norm: NormSpec,
    /// Channel mixing.
    pub mlp: MlpSpec,
    /// Norms of what attention and what the MLP add to the residual stream.
    pub post_norm: Option<NormSpec>,
}

/// RMS norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Added to the mean square.
    pub eps: f32,
}

/// Multi-head, grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads H.
    pub heads: usize,
    /// Key/value heads G; divides H.
    pub kv_heads: usize,
    /// Head size d.
    pub head_dim: usize,
    /// Multiplies the scores; usually `1 / sqrt(d)`.
    pub scale: f32,
    /// Bounds the scores: `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118).
    pub softcap: Option<f32>,
    /// Sliding window in tokens, the query's own position included.
    pub window: Option<usize>,
    /// Biases on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub output_bias: bool,
    /// RMS norm of each query and key head before rotation.
    pub qk_norm: Option<NormSpec>,
    /// Rotary embedding.
    pub rope: Option<RopeSpec>,
    /// Keys and values are made of latents, which the cache has in their place: all heads then share one key of latent and
    /// rotated elements, so that `kv_heads` is 1 and `head_dim` the size of both.
    pub latent: Option<LatentSpec>,
}

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentSpec {
    /// Elements of the latent that queries are made of; `None` where they are made of the residual stream.
    pub query_rank: Option<usize>,
    /// Elements r of a token's latent.
    pub rank: usize,
    /// Elements n of a query head that no position turns.
    pub plain: usize,
    /// Elements s of a query head that are rotated, and of the key that all heads share.
    pub rotated: usize,
    /// Elements of a head's value.
    pub value: usize,
    /// Norms of latents.
    pub norm: NormSpec,
}

impl LatentSpec {
    /// Elements of a query head: `n + s`.
    pub fn query(&self) -> usize {
        self.plain + self.rotated
    }
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading elements of a head that are rotated; even, at most d.
    pub rotary_dim: usize,
    /// Pairs are `(2i, 2i+1)` instead of `(i, i + rotary_dim/2)`.
    pub interleaved: bool,
    /// Frequency scaling for long contexts.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's band-wise scaling.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high` are kept.
        high_freq_factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// The divisor of interpolated frequencies.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Context length before scaling, in tokens.
        original_max_position_embeddings: usize,
        /// Round the correction range to whole dimensions.
        truncate: bool,
    },
}

/// Gated MLP: `down(activation(gate(x)) * up(x))`; or the weighted sum of some of many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpSpec {
    /// Inner width F, of each expert where there are some.
    pub intermediate_size: usize,
    /// Activation of the gate.
    pub activation: anyfleet_tensor::ops::Activation,
    /// Biases on all three projections.
    pub bias: bool,
    /// A mixture of experts.
    pub experts: Option<ExpertsSpec>,
}

/// A mixture of experts (Shazeer et al. 2017): a linear router without bias chooses some of them for each token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Experts E.
    pub count: usize,
    /// Experts k of a token.
    pub per_token: usize,
    /// What a score is.
    pub scoring: anyfleet_tensor::ops::Scoring,
    /// A token's weights sum to `scale`.
    pub renormalise: bool,
    /// Multiplies a token's weights.
    pub scale: f32,
    /// Experts are those of a token's best groups.
    pub groups: Option<anyfleet_tensor::ops::ExpertGroups>,
    /// Experts are chosen by score plus a bias that the checkpoint has.
    pub biased: bool,
    /// Inner width of a gated MLP beside the experts, which every token has; 0 where there is none.
    pub shared: usize,
    /// What the checkpoint calls their tensors.
    pub names: ExpertNames,
}

/// Names of experts' tensors in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertNames {
    /// `mlp.gate`, `mlp.experts.0.gate_proj`, `up_proj` and `down_proj`: Qwen.
    Mlp,
    /// `block_sparse_moe.gate`, `block_sparse_moe.experts.0.w1`, `w3` and `w2`: Mixtral.
    BlockSparse,
}
