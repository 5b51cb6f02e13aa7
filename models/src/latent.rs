//! Layers with multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): their weights, and what is executed between the
//! projections from and to the residual stream. The cache has latents; the matrix that makes keys of them is multiplied into
//! queries, that which makes values into what attention returns.
use crate::decoder::{Decoder, Layer, LayerCache, Scratch, StepTensors};
use crate::{AttentionSpec, LatentSpec, LayerSpec};
use anyfleet_tensor::ops::{HeadLinear, LatentAttention, LatentKv, Linear, Norm, Rope};
use anyfleet_tensor::{Backend, Encoder, Live, Tensor};
use anyfleet_weights::{MatrixSpec, VectorSpec};

/// The weights that layers of other kinds do not have: `H` heads, latents of `r` elements, query heads of `n` and `s`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentWeights {
    /// Where queries have a latent of their own: the weight of its norm, and `[H * (n + s), rank]`.
    pub queries: Option<(VectorSpec, MatrixSpec)>,
    /// `[r]`.
    pub norm: VectorSpec,
    /// `H` times `[r, n]`: the matrices that make keys of latents, turned.
    pub keys: MatrixSpec,
    /// `H` times `[v, r]`.
    pub values: MatrixSpec,
}

impl LatentWeights {
    /// The weights under `prefix` of the hub's names.
    pub(crate) fn new(prefix: &str, attention: &AttentionSpec, latent: &LatentSpec) -> Self {
        let AttentionSpec { heads, .. } = *attention;
        let LatentSpec { query_rank, rank, plain, value, .. } = *latent;
        let name = |part: &str| format!("{prefix}self_attn.{part}.weight");
        let vector = |part, len| VectorSpec::new(vec![(name(part), len)]);
        let queries = |query_rank| {
            let matrix = MatrixSpec::new(vec![(name("q_b_proj"), heads * latent.query())], query_rank);
            (vector("q_a_layernorm", query_rank), matrix)
        };
        let of_heads = |taken| MatrixSpec::of_heads(&name("kv_b_proj"), heads, plain + value, taken, rank);
        LatentWeights {
            queries: query_rank.map(queries),
            norm: vector("kv_a_layernorm", rank),
            keys: of_heads(0..plain).turned(),
            values: of_heads(plain..plain + value),
        }
    }

    /// Names of what the residual stream is multiplied with first, with their rows.
    pub(crate) fn first(attention: &AttentionSpec, latent: &LatentSpec) -> [(&'static str, usize); 2] {
        let (name, rows) = match latent.query_rank {
            Some(rank) => ("q_a_proj", rank),
            None => ("q_proj", attention.heads * latent.query()),
        };
        [(name, rows), ("kv_a_proj_with_mqa", latent.rank + latent.rotated)]
    }

    /// In the order in which they are loaded.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = &MatrixSpec> {
        self.queries.iter().map(|(_, matrix)| matrix).chain([&self.keys, &self.values])
    }

    pub(crate) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut MatrixSpec> {
        self.queries.iter_mut().map(|(_, matrix)| matrix).chain([&mut self.keys, &mut self.values])
    }

    pub(crate) fn vectors(&self) -> impl Iterator<Item = &VectorSpec> {
        self.queries.iter().map(|(norm, _)| norm).chain([&self.norm])
    }
}

/// [`LatentWeights`] on a device.
pub(crate) struct LatentLayer<B: Backend> {
    pub(crate) queries: Option<(Tensor<B>, B::Weight)>,
    pub(crate) norm: Tensor<B>,
    pub(crate) keys: B::Weight,
    pub(crate) values: B::Weight,
}

impl<B: Backend> Decoder<B> {
    /// From what the first projection made of the rows, `qkv`, to what the output projection takes.
    pub(crate) fn mix_latents(
        &self,
        enc: &mut Encoder<'_, B>,
        (layer, spec): (&Layer<B>, &LayerSpec),
        (weights, latent): (&LatentLayer<B>, &LatentSpec),
        (step, cache): (&StepTensors<B>, &LayerCache<B>),
        scratch: &Scratch<B>,
        qkv: &Tensor<B>,
    ) -> Tensor<B> {
        let (rows, live, attention) = (qkv.rows(), Live::Tokens, &spec.attention);
        let (heads, eps, width) = (attention.heads, latent.norm.eps, latent.rank + latent.rotated);
        let group = &step.groups[cache.group];
        let front = qkv.cols() - width;
        let (mut queries, kv) = (qkv.columns(0, front), qkv.columns(front, width));
        if let Some((weight, matrix)) = &weights.queries {
            let low = scratch.view(&scratch.normed, rows, front);
            enc.norm(Norm { out: &low, x: &queries, weight, eps, residual: None, live });
            queries = scratch.view(&scratch.gate_up, rows, heads * latent.query());
            enc.linear(Linear { out: &queries, x: &low, weight: matrix, bias: None, residual: None, live });
        }
        let q = scratch.view(&scratch.q, rows, attention.q_width());
        enc.head_linear(HeadLinear { out: &q, x: &queries, weight: &weights.keys, live });
        let Some((rope, table)) = layer.rope.map(|i| &self.ropes[i]) else {
            panic!("decoder: latent attention without rotation")
        };
        enc.latent_kv(LatentKv {
            q: &q,
            cache: &cache.k,
            queries: &queries,
            kv: &kv,
            norm: &weights.norm,
            eps,
            rope: Rope { table, interleaved: rope.interleaved },
            positions: &step.positions,
            slots: &group.slots,
            live,
        });
        let mixed = scratch.view(&scratch.attention, rows, heads * latent.rank);
        enc.latent_attention(LatentAttention {
            out: &mixed,
            q: &q,
            cache: &cache.k,
            seqs: &group.seqs,
            table: &group.table,
            scale: attention.scale,
            longest: step.longest,
            live: Live::Sequences,
        });
        // Queries are not needed any more.
        let out = scratch.view(&scratch.gate_up, rows, attention.output_width());
        enc.head_linear(HeadLinear { out: &out, x: &mixed, weight: &weights.values, live });
        out
    }
}
