//! One decoder that executes any [`DecoderSpec`] on any backend: eight operations a layer, eleven where there are experts.
use crate::latent::LatentLayer;
use crate::{AttentionSpec, DecoderSpec, ExpertsSpec, LayerSpec, MlpSpec, NormSpec, Place, RopeSpec};
use anyfleet_tensor::ops::{
    Attention, Combine, Embed, Gather, GroupedLinear, GroupedLinearActMul, KvScales, Linear, LinearActMul, Norm,
    QkNorm, Rope, RopeKv, Route, Routing, Softcap,
};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result, Tensor};

/// The weights of a decoder, or of a [`Shard`](crate::Shard) of one, on a device, and the way through them.
pub struct Decoder<B: Backend> {
    pub(crate) spec: DecoderSpec,
    pub(crate) place: Place,
    /// `None` where the layers before are on another device.
    pub(crate) embed: Option<B::Weight>,
    /// Multiplies its rows.
    pub(crate) embed_scale: f32,
    /// `None` where the layers after are, or the logits are computed.
    pub(crate) head: Option<Head<B>>,
    pub(crate) layers: Vec<Layer<B>>,
    /// One table per distinct [`RopeSpec`].
    pub(crate) ropes: Vec<(RopeSpec, Tensor<B>)>,
}

pub(crate) struct Head<B: Backend> {
    pub(crate) norm: Tensor<B>,
    /// The embedding matrix, where the two are tied.
    pub(crate) weight: B::Weight,
}

pub(crate) struct Layer<B: Backend> {
    pub(crate) input_norm: Tensor<B>,
    /// q, k and v stacked: `[(H + 2G)*d, D]`; with latents, what makes them.
    pub(crate) qkv: Projection<B>,
    pub(crate) latent: Option<LatentLayer<B>>,
    pub(crate) qk_norm: Option<(Tensor<B>, Tensor<B>)>,
    /// Index into [`Decoder::ropes`].
    pub(crate) rope: Option<usize>,
    /// `[D, H*d]`.
    pub(crate) output: Projection<B>,
    pub(crate) mlp_norm: Tensor<B>,
    /// `[E, D]`, where there are experts; gate and up, and down, are stacks then.
    pub(crate) router: Option<B::Weight>,
    /// `[E]`.
    pub(crate) router_bias: Option<Tensor<B>>,
    /// Gate and up, and down, of the MLP beside experts.
    pub(crate) shared: Option<(B::Weight, B::Weight)>,
    /// gate and up stacked: `[2F, D]`.
    pub(crate) gate_up: Projection<B>,
    /// `[D, F]`.
    pub(crate) down: Projection<B>,
    /// Norms of what attention and MLP add to the residual stream.
    pub(crate) attention_post_norm: Option<Tensor<B>>,
    pub(crate) mlp_post_norm: Option<Tensor<B>>,
}

pub(crate) struct Projection<B: Backend> {
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<Tensor<B>>,
}

/// Inputs of a step in device memory, refreshed before each replay.
pub struct StepTensors<B: Backend> {
    /// [`StepHeader`](anyfleet_tensor::StepHeader).
    pub header: Tensor<B>,
    /// `[T]` u32 token ids, or places in `sampled`: [`Embed::ids`].
    pub ids: Tensor<B>,
    /// `[N]` u32 ids that the device chose in the step before, where it has them.
    pub sampled: Option<Tensor<B>>,
    /// `[T]` u32 absolute positions.
    pub positions: Tensor<B>,
    /// Per cache group.
    pub groups: Vec<GroupTensors<B>>,
    /// Tokens of the longest sequence there can be.
    pub longest: usize,
}

/// One cache group's step inputs.
pub struct GroupTensors<B: Backend> {
    /// `[T]` u32 cache slots.
    pub slots: Tensor<B>,
    /// `[S, 8]` u32 [`SeqMeta`](anyfleet_tensor::SeqMeta).
    pub seqs: Tensor<B>,
    /// `[E]` u32 page ids.
    pub table: Tensor<B>,
}

/// Keys and values of one layer: `[P, G, p, d]` each; latents are both at once.
pub struct LayerCache<B: Backend> {
    /// Keys.
    pub k: Tensor<B>,
    /// Values.
    pub v: Tensor<B>,
    /// Scales of keys and of values, `[P, G, p]` f32 each, where both are i8.
    pub scales: Option<(Tensor<B>, Tensor<B>)>,
    /// The layer's cache group.
    pub group: usize,
}

impl<B: Backend> LayerCache<B> {
    fn scales(&self) -> Option<KvScales<'_, B>> {
        self.scales.as_ref().map(|(k, v)| KvScales { k, v })
    }
}

/// Activation buffers, shared by all layers.
pub struct Scratch<B: Backend> {
    /// The residual stream, `[T, D]`.
    pub x: Tensor<B>,
    pub(crate) normed: B::Buffer,
    qkv: B::Buffer,
    pub(crate) q: B::Buffer,
    pub(crate) attention: B::Buffer,
    pub(crate) gate_up: B::Buffer,
    act: B::Buffer,
    experts: Option<ExpertScratch<B>>,
    dtype: DType,
}

/// What layers of experts need besides.
struct ExpertScratch<B: Backend> {
    /// `[T, E]` f32.
    logits: B::Buffer,
    /// `[T*k, D]`: what experts make of rows.
    outputs: B::Buffer,
    /// Of each number of experts, and of experts a token has, in the order of layers.
    routings: Vec<((usize, usize), Routing<B>)>,
}

/// Widest inner shapes over all layers, in elements per token row.
struct Widths {
    /// Of the residual stream after a norm, or of latents of queries.
    normed: usize,
    qkv: usize,
    q: usize,
    intermediate: usize,
    /// Of gates and what they gate, or of queries and results of heads over latents.
    gate_up: usize,
    /// Experts, and experts of a token; 0 where no layer has any.
    experts: usize,
    per_token: usize,
    /// Distinct pairs of these.
    mixtures: Vec<(usize, usize)>,
}

impl Widths {
    fn of(spec: &DecoderSpec) -> Self {
        let max = |f: &dyn Fn(&LayerSpec) -> usize| spec.layers.iter().map(f).max().unwrap_or(0);
        // A token is in as many rows as it has experts.
        let inner = |mlp: &MlpSpec| match mlp.experts {
            Some(experts) => (mlp.intermediate_size * experts.per_token).max(experts.shared),
            None => mlp.intermediate_size,
        };
        let heads = |a: &AttentionSpec| a.latent.map_or(0, |latent| a.heads * latent.query().max(latent.value));
        Widths {
            normed: max(&|l| l.attention.latent.and_then(|latent| latent.query_rank).unwrap_or(0))
                .max(spec.hidden_size),
            qkv: max(&|l| l.attention.qkv_width()),
            q: max(&|l| l.attention.q_width()),
            intermediate: max(&|l| inner(&l.mlp)),
            gate_up: max(&|l| heads(&l.attention).max(2 * inner(&l.mlp))),
            experts: max(&|l| l.mlp.experts.map_or(0, |experts| experts.count)),
            per_token: max(&|l| l.mlp.experts.map_or(0, |experts| experts.per_token)),
            mixtures: mixtures(spec),
        }
    }
}

/// The distinct numbers of experts and experts of a token.
fn mixtures(spec: &DecoderSpec) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for experts in spec.layers.iter().filter_map(|layer| layer.mlp.experts) {
        let mixture = (experts.count, experts.per_token);
        if !found.contains(&mixture) {
            found.push(mixture);
        }
    }
    found
}

impl AttentionSpec {
    /// Width of the queries: `H * d`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of q, k and v together: `(H + 2G) * d`; with latents, of what makes queries and of the token's own.
    pub fn qkv_width(&self) -> usize {
        match &self.latent {
            Some(latent) => latent.query_rank.unwrap_or(self.heads * latent.query()) + self.head_dim,
            None => (self.heads + 2 * self.kv_heads) * self.head_dim,
        }
    }
    /// Width of what the output projection takes.
    pub fn output_width(&self) -> usize {
        self.latent.map_or(self.q_width(), |latent| self.heads * latent.value)
    }
    /// Elements of a token in the cache, keys and values.
    pub fn cached_width(&self) -> usize {
        if self.latent.is_some() { self.head_dim } else { 2 * self.kv_heads * self.head_dim }
    }
}

impl<B: Backend> Scratch<B> {
    /// Bytes [`Scratch::new`] allocates for `tokens` rows of activations of type `dtype`.
    pub fn bytes(spec: &DecoderSpec, dtype: DType, tokens: usize) -> usize {
        let w = Widths::of(spec);
        let routings = w.mixtures.iter().map(|&(experts, per_token)| Routing::<B>::bytes(tokens, experts, per_token));
        let logits = tokens * w.experts * DType::F32.size();
        let elements = (1 + w.per_token) * spec.hidden_size + w.normed + w.qkv + 2 * w.q + w.gate_up + w.intermediate;
        tokens * dtype.size() * elements + logits + routings.sum::<usize>()
    }

    /// Allocates activations for `tokens` rows.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(device: &B, spec: &DecoderSpec, dtype: DType, tokens: usize) -> Result<Self> {
        let w = Widths::of(spec);
        let alloc = |cols: usize| device.alloc(tokens * cols * dtype.size());
        let routing = |&(experts, per_token): &(usize, usize)| {
            Ok(((experts, per_token), Routing::new(device, tokens, experts, per_token)?))
        };
        let experts = match w.mixtures.is_empty() {
            true => None,
            false => Some(ExpertScratch {
                logits: device.alloc(tokens * w.experts * DType::F32.size())?,
                outputs: alloc(w.per_token * spec.hidden_size)?,
                routings: w.mixtures.iter().map(routing).collect::<Result<_>>()?,
            }),
        };
        Ok(Scratch {
            x: Tensor::new(device, dtype, &[tokens, spec.hidden_size])?,
            normed: alloc(w.normed)?,
            qkv: alloc(w.qkv)?,
            q: alloc(w.q)?,
            attention: alloc(w.q)?,
            gate_up: alloc(w.gate_up)?,
            act: alloc(w.intermediate)?,
            experts,
            dtype,
        })
    }

    pub(crate) fn view(&self, buffer: &B::Buffer, rows: usize, cols: usize) -> Tensor<B> {
        Tensor::from_buffer(buffer.clone(), self.dtype, &[rows, cols])
    }
}

impl<B: Backend> Decoder<B> {
    /// The spec being executed.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Where it is in the whole decoder.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// It begins with token ids; otherwise with the residual stream, which the caller puts into `scratch.x`.
    pub fn embeds(&self) -> bool {
        self.embed.is_some()
    }

    /// [`Decoder::head`] can be recorded.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Runs of operations between points where ranks meet: one where there is one rank, otherwise two a layer. After
    /// each, `scratch.x` must be summed over ranks: it has the residual stream on rank 0, and on all the rank's part of
    /// what comes to it.
    pub fn segments(&self) -> usize {
        if self.place.ranks == 1 { 1 } else { 2 * self.layers.len() }
    }

    /// Records segment `segment` over the rows of `step` (the bucket; live counts come from the header): the residual
    /// stream goes from `scratch.x`, or in the first segment from token ids, to `scratch.x`.
    pub fn segment(
        &self,
        enc: &mut Encoder<'_, B>,
        segment: usize,
        step: &StepTensors<B>,
        caches: &[LayerCache<B>],
        scratch: &Scratch<B>,
    ) {
        enc.header(&step.header);
        let tokens = step.ids.rows();
        let x = scratch.x.narrow(0, tokens);
        if let Some(weight) = self.embed.as_ref().filter(|_| segment == 0) {
            let (sampled, scale) = (step.sampled.as_ref(), self.embed_scale);
            enc.embed(Embed { out: &x, ids: &step.ids, sampled, weight, scale, live: Live::Tokens });
        }
        // Of a layer, the first half mixes tokens, the second channels.
        let halves = if self.place.ranks == 1 { 0..2 * self.layers.len() } else { segment..segment + 1 };
        for half in halves {
            let layer = (&self.layers[half / 2], &self.spec.layers[half / 2]);
            match half % 2 {
                0 => self.attention(enc, layer, step, &caches[half / 2], scratch, &x),
                _ => self.mlp(enc, layer, scratch, &x),
            }
        }
    }

    /// What a projection into the residual stream adds to: of several ranks, one has the stream.
    fn residual<'a>(&self, x: &'a Tensor<B>) -> Option<&'a Tensor<B>> {
        (self.place.rank == 0).then_some(x)
    }

    /// Where a projection into the residual stream goes, and what it adds to: with a norm of what is added, to `apart`
    /// first.
    fn target<'a>(
        &self,
        norm: Option<&Tensor<B>>,
        x: &'a Tensor<B>,
        apart: &'a Tensor<B>,
    ) -> (&'a Tensor<B>, Option<&'a Tensor<B>>) {
        if norm.is_some() { (apart, None) } else { (x, self.residual(x)) }
    }

    /// Adds the norm of what [`Decoder::target`] kept apart.
    fn join(enc: &mut Encoder<'_, B>, norm: (Option<&Tensor<B>>, Option<NormSpec>), x: &Tensor<B>, apart: &Tensor<B>) {
        if let (Some(weight), Some(NormSpec { eps })) = norm {
            enc.norm(Norm { out: x, x: apart, weight, eps, residual: Some(x), live: Live::Tokens });
        }
    }

    fn attention(
        &self,
        enc: &mut Encoder<'_, B>,
        (layer, spec): (&Layer<B>, &LayerSpec),
        step: &StepTensors<B>,
        cache: &LayerCache<B>,
        scratch: &Scratch<B>,
        x: &Tensor<B>,
    ) {
        let (tokens, live) = (x.rows(), Live::Tokens);
        let attn = &spec.attention;
        let normed = scratch.view(&scratch.normed, tokens, x.cols());
        let qkv = scratch.view(&scratch.qkv, tokens, attn.qkv_width());
        enc.norm(Norm { out: &normed, x, weight: &layer.input_norm, eps: spec.input_norm.eps, residual: None, live });
        let Projection { weight, bias } = &layer.qkv;
        enc.linear(Linear { out: &qkv, x: &normed, weight, bias: bias.as_ref(), residual: None, live });
        let mixed = match layer.latent.as_ref().zip(attn.latent.as_ref()) {
            Some(latent) => self.mix_latents(enc, (layer, spec), latent, (step, cache), scratch, &qkv),
            None => self.mix(enc, (layer, spec), step, cache, scratch, &qkv),
        };
        let Projection { weight, bias } = &layer.output;
        let post_norm = layer.attention_post_norm.as_ref();
        let (out, residual) = self.target(post_norm, x, &normed);
        enc.linear(Linear { out, x: &mixed, weight, bias: bias.as_ref(), residual, live });
        Self::join(enc, (post_norm, spec.post_norm), x, &normed);
    }

    /// From queries, keys and values to what the output projection takes.
    fn mix(
        &self,
        enc: &mut Encoder<'_, B>,
        (layer, spec): (&Layer<B>, &LayerSpec),
        step: &StepTensors<B>,
        cache: &LayerCache<B>,
        scratch: &Scratch<B>,
        qkv: &Tensor<B>,
    ) -> Tensor<B> {
        let (tokens, live) = (qkv.rows(), Live::Tokens);
        let (group, attn) = (&step.groups[cache.group], &spec.attention);
        let q = scratch.view(&scratch.q, tokens, attn.q_width());
        let mixed = scratch.view(&scratch.attention, tokens, attn.q_width());
        enc.rope_kv(RopeKv {
            q: &q,
            k_cache: &cache.k,
            v_cache: &cache.v,
            scales: cache.scales(),
            qkv,
            positions: &step.positions,
            slots: &group.slots,
            rope: layer.rope.map(|i| Rope { table: &self.ropes[i].1, interleaved: self.ropes[i].0.interleaved }),
            qk_norm: layer.qk_norm.as_ref().zip(attn.qk_norm).map(|((q, k), norm)| QkNorm { q, k, eps: norm.eps }),
            live,
        });
        enc.attention(Attention {
            out: &mixed,
            q: &q,
            k_cache: &cache.k,
            v_cache: &cache.v,
            scales: cache.scales(),
            seqs: &group.seqs,
            table: &group.table,
            scale: attn.scale,
            softcap: attn.softcap,
            sinks: None,
            window: attn.window.map(|w| u32::try_from(w).unwrap_or(u32::MAX)),
            longest: step.longest,
            live: Live::Sequences,
        });
        mixed
    }

    fn mlp(
        &self,
        enc: &mut Encoder<'_, B>,
        (layer, spec): (&Layer<B>, &LayerSpec),
        scratch: &Scratch<B>,
        x: &Tensor<B>,
    ) {
        let (tokens, live) = (x.rows(), Live::Tokens);
        let MlpSpec { intermediate_size, activation, .. } = spec.mlp;
        let normed = scratch.view(&scratch.normed, tokens, x.cols());
        enc.norm(Norm { out: &normed, x, weight: &layer.mlp_norm, eps: spec.mlp_norm.eps, residual: None, live });
        if let Some((router, experts)) = layer.router.as_ref().zip(spec.mlp.experts) {
            return self.experts(enc, (layer, spec), (router, &experts), scratch, x);
        }
        let gate_up = scratch.view(&scratch.gate_up, tokens, 2 * intermediate_size);
        let act = scratch.view(&scratch.act, tokens, intermediate_size);
        let Projection { weight, bias } = &layer.gate_up;
        enc.linear_act_mul(LinearActMul {
            out: &act,
            gate_up: &gate_up,
            x: &normed,
            weight,
            bias: bias.as_ref(),
            activation,
            live,
        });
        let Projection { weight, bias } = &layer.down;
        let post_norm = layer.mlp_post_norm.as_ref();
        let (out, residual) = self.target(post_norm, x, &normed);
        enc.linear(Linear { out, x: &act, weight, bias: bias.as_ref(), residual, live });
        Self::join(enc, (post_norm, spec.post_norm), x, &normed);
    }

    /// A mixture of experts over the normed rows: each expert's rows lie together, and are multiplied together.
    fn experts(
        &self,
        enc: &mut Encoder<'_, B>,
        (layer, spec): (&Layer<B>, &LayerSpec),
        (router, experts): (&B::Weight, &ExpertsSpec),
        scratch: &Scratch<B>,
        x: &Tensor<B>,
    ) {
        let (tokens, live, inner) = (x.rows(), Live::Tokens, spec.mlp.intermediate_size);
        let &ExpertsSpec { count, per_token, scoring, groups, renormalise, scale, .. } = experts;
        let own = scratch.experts.as_ref();
        let routing = own.and_then(|own| own.routings.iter().find(|(mixture, _)| *mixture == (count, per_token)));
        let Some((own, (_, routing))) = own.zip(routing) else { panic!("decoder: the scratch is of another spec") };
        let (routing, pairs) = (routing.narrow(tokens), tokens * per_token);
        let normed = scratch.view(&scratch.normed, tokens, x.cols());
        let logits = Tensor::from_buffer(own.logits.clone(), DType::F32, &[tokens, count]);
        let gate_up = scratch.view(&scratch.gate_up, pairs, 2 * inner);
        let act = scratch.view(&scratch.act, pairs, inner);
        let outputs = scratch.view(&own.outputs, pairs, x.cols());
        enc.linear(Linear { out: &logits, x: &normed, weight: router, bias: None, residual: None, live });
        let bias = layer.router_bias.as_ref();
        enc.route(Route { routing: &routing, logits: &logits, bias, scoring, groups, renormalise, scale, live });
        let (rows, offsets, hits) = (&routing.rows, &routing.offsets, &routing.hits);
        enc.grouped_linear_act_mul(GroupedLinearActMul {
            out: &act,
            gate_up: &gate_up,
            x: &normed,
            rows: Some(rows),
            weight: &layer.gate_up.weight,
            activation: spec.mlp.activation,
            offsets,
            hits,
        });
        let weight = &layer.down.weight;
        enc.grouped_linear(GroupedLinear { out: &outputs, x: &act, rows: None, weight, offsets, hits });
        let post_norm = layer.mlp_post_norm.as_ref();
        let (out, mut residual) = self.target(post_norm, x, &normed);
        if let Some((gate_up, down)) = &layer.shared {
            self.shared(enc, (gate_up, down), spec, scratch, (x, &normed));
            // The stream is in it.
            residual = Some(x);
        }
        let (weights, places) = (&routing.weights, &routing.places);
        enc.combine(Combine { out, x: &outputs, weights, places, residual, live });
        Self::join(enc, (post_norm, spec.post_norm), x, &normed);
    }

    /// The MLP that every token has beside its experts, added to the residual stream.
    fn shared(
        &self,
        enc: &mut Encoder<'_, B>,
        (gate_up_weight, down): (&B::Weight, &B::Weight),
        spec: &LayerSpec,
        scratch: &Scratch<B>,
        (x, normed): (&Tensor<B>, &Tensor<B>),
    ) {
        let (rows, live, inner) = (x.rows(), Live::Tokens, spec.mlp.experts.map_or(0, |experts| experts.shared));
        let (gate_up, act) = (scratch.view(&scratch.gate_up, rows, 2 * inner), scratch.view(&scratch.act, rows, inner));
        let (weight, activation) = (gate_up_weight, spec.mlp.activation);
        enc.linear_act_mul(LinearActMul {
            out: &act,
            gate_up: &gate_up,
            x: normed,
            weight,
            bias: None,
            activation,
            live,
        });
        enc.linear(Linear { out: x, x: &act, weight: down, bias: None, residual: self.residual(x), live });
    }

    /// Records the head for up to `logits.rows()` rows of `x`: gather, final norm, projection, soft cap.
    ///
    /// `x` `[T, D]` is the residual stream, `rows` `[R]` u32, `hidden` `[R, D]` scratch, `logits`
    /// `[R, V]` f32. The bound header must hold the chunk's row count.
    ///
    /// # Panics
    /// Without [`Decoder::has_head`]: a bug of the caller.
    pub fn head(&self, enc: &mut Encoder<'_, B>, head: HeadTensors<'_, B>) {
        let live = Live::LogitRows;
        let Some(Head { norm, weight }) = &self.head else { panic!("decoder: the head is on another device") };
        enc.header(head.header);
        enc.gather(Gather { out: head.hidden, x: head.x, rows: head.rows, live });
        let eps = self.spec.final_norm.eps;
        enc.norm(Norm { out: head.hidden, x: head.hidden, weight: norm, eps, residual: None, live });
        enc.linear(Linear { out: head.logits, x: head.hidden, weight, bias: None, residual: None, live });
        if let Some(cap) = self.spec.logit_softcap {
            enc.softcap(Softcap { x: head.logits, cap, live });
        }
    }
}

/// Operands of [`Decoder::head`].
pub struct HeadTensors<'a, B: Backend> {
    /// [`StepHeader`](anyfleet_tensor::StepHeader) of this chunk of logit rows.
    pub header: &'a Tensor<B>,
    /// `[T, D]`.
    pub x: &'a Tensor<B>,
    /// `[R]` u32.
    pub rows: &'a Tensor<B>,
    /// `[R, D]`.
    pub hidden: &'a Tensor<B>,
    /// `[R, V]` f32.
    pub logits: &'a Tensor<B>,
}
