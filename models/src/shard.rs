//! Parts of a decoder for several devices: consecutive layers, and of each layer the share of one rank.
//!
//! A rank has whole heads and inner features, so that what it computes between two sums is what a smaller decoder
//! computes (Shoeybi et al. 2019):
//!
//! | weight | a rank takes |
//! |---|---|
//! | q, k, v, and their biases | rows of its heads; a key/value head that several ranks need is on each |
//! | gate and up, and their biases | rows of its inner features |
//! | output and down projection | the columns that belong to these, so that products are parts of a sum |
//! | biases of output and down projection | all on rank 0, nothing elsewhere: they are added once |
//! | experts | as gate, up and down above, of each expert |
//! | norms, and the router of experts | all |
//! | embedding | all, on every rank of the first stage: a lookup needs no arithmetic to share |
//! | head | all, on rank 0 of the last stage: the other ranks' logits would be the same |
use crate::{AttentionSpec, DecoderSpec, LayerSpec, LayerWeights, WeightMap};
use anyfleet_weights::{MatrixSpec, VectorSpec};
use std::ops::Range;

/// Inner features are shared out in runs of so many: q4 weights have one scale for as many input features.
const RUN: usize = 32;

/// Why a decoder cannot be split as asked; one line that says what would work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ShardError(String);

/// Which part of a decoder a device has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Layers of the whole decoder.
    pub layers: Range<usize>,
    /// The device's number among those that share these layers.
    pub rank: usize,
    /// How many do.
    pub ranks: usize,
}

/// One device's part of a decoder: itself a decoder, of fewer layers, heads and inner features.
#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    /// What remains to be executed.
    pub spec: DecoderSpec,
    /// The weights of these layers. Tables and final norm are those of the whole decoder: see
    /// [`Shard::matrices`] for what is loaded.
    pub weights: WeightMap,
    /// Where it is in the whole.
    pub place: Place,
    /// Layers of the whole.
    of: usize,
}

impl Shard {
    /// All of a decoder.
    pub fn whole(spec: &DecoderSpec, weights: &WeightMap) -> Shard {
        let of = spec.layers.len();
        let place = Place { layers: 0..of, rank: 0, ranks: 1 };
        Shard { spec: spec.clone(), weights: weights.clone(), place, of }
    }

    /// The part of a decoder at `place`.
    ///
    /// # Errors
    /// Heads or inner features that cannot be shared out among so many ranks.
    ///
    /// # Panics
    /// When `place` is not in the decoder: a bug of the caller.
    pub fn new(spec: &DecoderSpec, weights: &WeightMap, place: Place) -> Result<Shard, ShardError> {
        let Shard { spec: whole, weights: names, of, .. } = Shard::whole(spec, weights);
        let Place { layers, rank, ranks } = &place;
        assert!(rank < ranks && !layers.is_empty() && layers.end <= of, "shard: {place:?} of {of} layers");
        let shares = spec.layers[layers.clone()].iter().map(|layer| Share::of(layer, *rank, *ranks));
        let shares = shares.collect::<Result<Vec<_>, _>>()?;
        let spec = spec.layers[layers.clone()].iter().zip(&shares).map(|(layer, share)| share.spec(layer)).collect();
        let layers = names.layers[layers.clone()].iter().zip(&shares).map(|(layer, share)| share.weights(layer));
        let weights = WeightMap { layers: layers.collect(), ..names };
        Ok(Shard { spec: DecoderSpec { layers: spec, ..whole }, weights, place, of })
    }

    /// It looks up token ids; otherwise it begins with the residual stream of the layers before.
    pub fn embeds(&self) -> bool {
        self.place.layers.start == 0
    }

    /// It ends with logits.
    pub fn has_head(&self) -> bool {
        self.place.layers.end == self.of && self.place.rank == 0
    }

    /// Embedding and head, as far as they are loaded: a tied matrix once, where one device needs it twice.
    pub fn tables(&self) -> impl Iterator<Item = &MatrixSpec> {
        let WeightMap { embed, head, .. } = &self.weights;
        let tied = self.has_head() && head.is_none();
        let head = head.as_ref().filter(|_| self.has_head());
        (self.embeds() || tied).then_some(embed).into_iter().chain(head)
    }

    /// All matrices that are loaded, embedding and head first.
    pub fn matrices(&self) -> impl Iterator<Item = &MatrixSpec> {
        let layers = self.weights.layers.iter().flat_map(LayerWeights::matrices);
        self.tables().chain(layers)
    }

    /// Elements of all vectors that are loaded: four bytes each in the memory plan.
    pub fn vector_elements(&self) -> usize {
        let layers = self.weights.layers.iter().flat_map(LayerWeights::vectors);
        let head = self.has_head().then_some(&self.weights.final_norm);
        layers.chain(head).map(VectorSpec::len).sum()
    }
}

/// What one rank takes of a layer.
struct Share {
    /// Query heads, key/value heads and inner features.
    heads: Range<usize>,
    kv_heads: Range<usize>,
    inner: Range<usize>,
    head_dim: usize,
    /// It adds the biases of projections into the residual stream.
    adds: bool,
}

impl Share {
    fn of(layer: &LayerSpec, rank: usize, ranks: usize) -> Result<Share, ShardError> {
        let AttentionSpec { heads, kv_heads, head_dim, .. } = layer.attention;
        let inner = layer.mlp.intermediate_size;
        if ranks > 1 && layer.post_norm.is_some() {
            return Err(ShardError(
                "this model norms what a layer adds to the residual stream, and the norm of a sum is not the sum of norms: \
                 its layers cannot be shared out; give devices whole layers, with commas"
                    .into(),
            ));
        }
        if ranks > 1 && layer.attention.latent.is_some() {
            return Err(ShardError(
                "the latents of its layers (multi-head latent attention) cannot be shared out; give devices whole layers, with \
                 commas"
                    .into(),
            ));
        }
        let works = |n: usize| heads.is_multiple_of(n) && (kv_heads.is_multiple_of(n) || n.is_multiple_of(kv_heads));
        if !works(ranks) || ranks > inner {
            let others: Vec<String> = (2..=heads.min(inner)).filter(|&n| works(n)).map(|n| n.to_string()).collect();
            let remedy = match others.last() {
                Some(_) => format!("join one of these numbers of devices with +: {}", others.join(", ")),
                None => "give devices whole layers, with commas".into(),
            };
            return Err(ShardError(format!(
                "{heads} query heads over {kv_heads} key/value heads cannot be shared out among {ranks} devices; {remedy}"
            )));
        }
        let run = if inner >= RUN * ranks { RUN } else { 1 };
        let runs = inner.div_ceil(run);
        let edge = |rank: usize| (runs * rank / ranks * run).min(inner);
        let queries = heads / ranks;
        // The key/value heads its queries look at.
        let first = rank * queries * kv_heads / heads;
        let last = ((rank + 1) * queries * kv_heads).div_ceil(heads);
        Ok(Share {
            heads: rank * queries..(rank + 1) * queries,
            kv_heads: first..last,
            inner: edge(rank)..edge(rank + 1),
            head_dim,
            adds: rank == 0,
        })
    }

    fn spec(&self, layer: &LayerSpec) -> LayerSpec {
        let mut part = layer.clone();
        if layer.attention.latent.is_some() {
            return part;
        }
        part.attention.heads = self.heads.len();
        part.attention.kv_heads = self.kv_heads.len();
        part.attention.output_bias &= self.adds;
        part.mlp.intermediate_size = self.inner.len();
        part
    }

    fn weights(&self, layer: &LayerWeights) -> LayerWeights {
        // These have one rank.
        if layer.latent.is_some() {
            return layer.clone();
        }
        let elements = |heads: &Range<usize>| heads.start * self.head_dim..heads.end * self.head_dim;
        let (q, kv) = (elements(&self.heads), elements(&self.kv_heads));
        let qkv = [q.clone(), kv.clone(), kv];
        // Of each expert, where there are some.
        let gate_up = vec![self.inner.clone(); 2 * layer.gate_up.stack];
        LayerWeights {
            qkv: layer.qkv.take_rows(&qkv),
            qkv_bias: layer.qkv_bias.as_ref().map(|bias| bias.take(&qkv)),
            output: layer.output.take_cols(q),
            output_bias: layer.output_bias.clone().filter(|_| self.adds),
            gate_up: layer.gate_up.take_rows(&gate_up),
            gate_up_bias: layer.gate_up_bias.as_ref().map(|bias| bias.take(&gate_up)),
            down: layer.down.take_cols(self.inner.clone()),
            down_bias: layer.down_bias.clone().filter(|_| self.adds),
            ..layer.clone()
        }
    }
}

/// Divides `layers` layers into consecutive stages, one for each entry of `sizes` and in proportion to it, each at
/// least one layer.
///
/// # Errors
/// More stages than layers.
pub fn divide_layers(layers: usize, sizes: &[u64]) -> Result<Vec<Range<usize>>, ShardError> {
    let stages = sizes.len();
    if stages > layers {
        return Err(ShardError(format!(
            "{stages} stages are more than the {layers} layers of this model; name at most {layers} devices with commas"
        )));
    }
    let all = sizes.iter().map(|&size| u128::from(size)).sum::<u128>().max(1);
    let (mut start, mut before) = (0, 0u128);
    let ranges = sizes.iter().enumerate().map(|(i, &size)| {
        before += u128::from(size);
        let wanted = ((2 * before * layers as u128 + all) / (2 * all)) as usize;
        // The stages after this one have at least a layer each.
        let end = if i + 1 == stages { layers } else { wanted.clamp(start + 1, layers - (stages - 1 - i)) };
        let range = start..end;
        start = end;
        range
    });
    Ok(ranges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MlpSpec, NormSpec};
    use anyfleet_tensor::ops::Activation;

    fn spec(heads: usize, kv_heads: usize, inner: usize, layers: usize) -> DecoderSpec {
        let norm = NormSpec { eps: 1e-6 };
        let layer = LayerSpec {
            input_norm: norm,
            attention: AttentionSpec {
                heads,
                kv_heads,
                head_dim: 4,
                scale: 0.5,
                softcap: None,
                window: None,
                qkv_bias: true,
                output_bias: true,
                qk_norm: Some(norm),
                rope: None,
                latent: None,
            },
            mlp_norm: norm,
            mlp: MlpSpec { intermediate_size: inner, activation: Activation::Silu, bias: true, experts: None },
            post_norm: None,
        };
        DecoderSpec {
            family: "test",
            vocab_size: 50,
            hidden_size: 10,
            max_position_embeddings: 100,
            layers: vec![layer; layers],
            final_norm: norm,
            tied_head: true,
            embed_scale: None,
            logit_softcap: None,
            norms_less_one: false,
        }
    }

    fn shards(spec: &DecoderSpec, layers: Range<usize>, ranks: usize) -> Result<Vec<Shard>, ShardError> {
        let map = WeightMap::new(spec);
        (0..ranks).map(|rank| Shard::new(spec, &map, Place { layers: layers.clone(), rank, ranks })).collect()
    }

    #[test]
    fn the_weights_of_a_shard_are_those_of_its_spec() {
        for (heads, kv, inner, ranks) in [(6, 2, 70, 2), (6, 3, 70, 3), (6, 3, 200, 6), (4, 4, 64, 2), (6, 3, 7, 6)] {
            let whole = spec(heads, kv, inner, 3);
            let parts = shards(&whole, 0..3, ranks).unwrap();
            for shard in &parts {
                let own = WeightMap::new(&shard.spec);
                for (found, want) in shard.weights.layers.iter().zip(&own.layers) {
                    let shape = |m: &MatrixSpec| (m.rows(), m.cols, m.name());
                    let matrices = |l: &LayerWeights| [&l.qkv, &l.output, &l.gate_up, &l.down].map(shape);
                    assert_eq!(matrices(found), matrices(want));
                    let lens =
                        |l: &LayerWeights| [&l.qkv_bias, &l.gate_up_bias].map(|b| b.as_ref().map(VectorSpec::len));
                    assert_eq!(lens(found), lens(want));
                    let adds = shard.place.rank == 0;
                    assert_eq!((found.output_bias.is_some(), found.down_bias.is_some()), (adds, adds));
                }
            }
            let sum = |f: &dyn Fn(&LayerSpec) -> usize| parts.iter().map(|s| f(&s.spec.layers[0])).sum::<usize>();
            assert_eq!(sum(&|l| l.attention.heads), heads);
            assert_eq!(sum(&|l| l.attention.kv_heads), kv.max(ranks));
            assert_eq!(sum(&|l| l.mlp.intermediate_size), inner);
        }
    }

    #[test]
    fn each_query_head_is_with_the_keys_it_looks_at() {
        let share = |heads, kv, rank, ranks| {
            let share = Share::of(&spec(heads, kv, 64, 1).layers[0], rank, ranks).unwrap();
            (share.heads, share.kv_heads)
        };
        assert_eq!(share(8, 4, 1, 2), (4..8, 2..4));
        assert_eq!(share(8, 2, 1, 4), (2..4, 0..1));
        assert_eq!(share(8, 2, 2, 4), (4..6, 1..2));
        assert_eq!(share(8, 1, 7, 8), (7..8, 0..1));
    }

    #[test]
    fn inner_features_are_cut_between_scales_of_q4() {
        let edges = |inner, ranks| -> Vec<Range<usize>> {
            (0..ranks).map(|rank| Share::of(&spec(8, 8, inner, 1).layers[0], rank, ranks).unwrap().inner).collect()
        };
        assert_eq!(edges(128, 2), [0..64, 64..128]);
        assert_eq!(edges(90, 2), [0..32, 32..90]);
        assert_eq!(edges(30, 4), [0..7, 7..15, 15..22, 22..30]);
    }

    #[test]
    fn what_cannot_be_shared_out_says_what_can() {
        let error = shards(&spec(6, 3, 64, 1), 0..1, 2).unwrap_err().to_string();
        assert!(error.contains("6 query heads over 3 key/value heads") && error.ends_with(": 3, 6"), "{error}");
        assert!(!error.contains('\n'));
        assert!(shards(&spec(6, 3, 64, 1), 0..1, 12).is_err());
        assert!(shards(&spec(8, 8, 4, 1), 0..1, 8).is_err());
    }

    #[test]
    fn layers_with_norms_of_what_they_add_stay_whole() {
        let mut whole = spec(8, 4, 64, 2);
        whole.layers[1].post_norm = Some(NormSpec { eps: 1e-6 });
        let error = shards(&whole, 0..2, 2).unwrap_err().to_string();
        assert!(error.contains("cannot be shared out") && !error.contains('\n'), "{error}");
        let weights = &shards(&whole, 1..2, 1).unwrap()[0].weights.layers[0];
        assert!(weights.attention_post_norm.is_some() && weights.mlp_post_norm.is_some());
    }

    #[test]
    fn heads_over_latents_stay_together() {
        let mut whole = spec(4, 1, 64, 2);
        let norm = NormSpec { eps: 1e-6 };
        let latent = crate::LatentSpec { query_rank: None, rank: 2, plain: 3, rotated: 2, value: 3, norm };
        for layer in &mut whole.layers {
            (layer.attention.latent, layer.attention.qk_norm, layer.attention.qkv_bias) = (Some(latent), None, false);
        }
        let error = shards(&whole, 0..2, 2).unwrap_err().to_string();
        assert!(error.contains("cannot be shared out") && !error.contains('\n'), "{error}");
        let part = &shards(&whole, 1..2, 1).unwrap()[0];
        assert_eq!(part.weights.layers[0], WeightMap::new(&whole).layers[1]);
        assert_eq!(part.spec.layers[0], whole.layers[1]);
    }

    #[test]
    fn stages_have_the_tables_they_need() {
        let mut whole = spec(4, 2, 64, 4);
        let names = |shards: &[Shard]| -> Vec<Vec<String>> {
            shards.iter().map(|s| s.tables().map(MatrixSpec::name).collect()).collect()
        };
        let (embed, head) = ("model.embed_tokens.weight".to_owned(), "lm_head.weight".to_owned());
        let [first, middle, last] = [0..1, 1..3, 3..4];
        assert_eq!(names(&shards(&whole, first.clone(), 2).unwrap()), [[embed.clone()], [embed.clone()]]);
        assert_eq!(names(&shards(&whole, middle, 2).unwrap()), [[""; 0]; 2]);
        assert_eq!(names(&shards(&whole, last.clone(), 2).unwrap()), [vec![embed.clone()], vec![]]);
        assert_eq!(names(&shards(&whole, 0..4, 1).unwrap()), [[embed.clone()]]);
        whole.tied_head = false;
        assert_eq!(names(&shards(&whole, first, 1).unwrap()), [[embed.clone()]]);
        assert_eq!(names(&shards(&whole, last, 1).unwrap()), [[head.clone()]]);
        assert_eq!(names(&shards(&whole, 0..4, 1).unwrap()), [[embed, head]]);
        let (one, all) = (shards(&whole, 1..3, 1).unwrap(), WeightMap::new(&whole));
        assert_eq!(one[0].weights.layers[0].qkv.name(), all.layers[1].qkv.name());
    }

    #[test]
    fn layers_are_divided_in_proportion() {
        assert_eq!(divide_layers(4, &[1, 1]).unwrap(), [0..2, 2..4]);
        assert_eq!(divide_layers(32, &[24 << 30, 8 << 30]).unwrap(), [0..24, 24..32]);
        assert_eq!(divide_layers(3, &[1, 1]).unwrap(), [0..2, 2..3]);
        assert_eq!(divide_layers(3, &[1, 1000, 1]).unwrap(), [0..1, 1..2, 2..3]);
        assert_eq!(divide_layers(5, &[0, 0]).unwrap(), [0..1, 1..5]);
        let error = divide_layers(2, &[1, 1, 1]).unwrap_err().to_string();
        assert!(error.contains("3 stages are more than the 2 layers"), "{error}");
    }
}
