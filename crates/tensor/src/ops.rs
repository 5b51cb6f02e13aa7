//! The operations, and the shape rules every backend may rely on.
//!
//! Letters in shapes: `T` token rows, `S` sequences, `R` logit rows, `D` model width, `H` query
//! heads, `G` key/value heads, `d` head size, `V` vocabulary, `P` pages, `p` tokens per page.
//! Activations are f32, bf16 or f16 as the backend's [`Caps`](crate::Caps) say; arithmetic and
//! accumulation are in f32, products after the rounding that [`Caps::operands`](crate::Caps::operands)
//! states. A row's result depends on that row's inputs alone, bit for bit.
use crate::sampling::mask_words;
use crate::{Backend, DType, Error, Live, Result, TOP_LOGPROBS, Tensor};

fn shape_error(op: &'static str, what: &'static str, details: String) -> Error {
    Error::Shape { op, what, details, remedy: "this is a mistake in the model's spec or the executor's buffers" }
}

macro_rules! rule {
    ($op:expr, $cond:expr, $what:expr, $($name:ident = $value:expr),+) => {
        if !$cond {
            let details = [$(format!("{} {:?}", stringify!($name), $value)),+].join(", ");
            return Err(shape_error($op, $what, details));
        }
    };
}

mod experts;
pub use experts::{Combine, ExpertGroups, GroupScore, GroupedLinear, GroupedLinearActMul, Route, Routing, Scoring};
mod latent;
pub use latent::{HeadLinear, LatentAttention, LatentKv};

fn activation<B: Backend>(device: &B, op: &'static str, operand: &'static str, t: &Tensor<B>) -> Result<()> {
    one_of(device, op, operand, t, &device.caps().activations)
}

fn one_of<B: Backend>(
    device: &B,
    op: &'static str,
    operand: &'static str,
    t: &Tensor<B>,
    allowed: &[DType],
) -> Result<()> {
    if allowed.contains(&t.dtype()) {
        return Ok(());
    }
    Err(Error::DType {
        op,
        operand,
        dtype: t.dtype(),
        device: device.caps().device.clone(),
        remedy: "choose a dtype from its caps",
    })
}

fn exactly<B: Backend>(device: &B, op: &'static str, operand: &'static str, t: &Tensor<B>, dtype: DType) -> Result<()> {
    one_of(device, op, operand, t, &[dtype])
}

/// Marks an entry of [`Embed::ids`] as a place in [`Embed::sampled`].
pub const SAMPLED: u32 = 1 << 31;

/// `out[t] = scale * weight[ids[t]]`: rows of the packed embedding matrix.
///
/// `out` `[T, D]` activation; `ids` `[T]` u32, each below `V`; `weight` `V x D`. Where there is `sampled`, `[N]` u32 below
/// `V`, an entry of `ids` may be [`SAMPLED`]` | n` instead, and stands for `sampled[n]`: a token that the device chose and
/// the host need not have seen.
pub struct Embed<'a, B: Backend> {
    /// `[T, D]`.
    pub out: &'a Tensor<B>,
    /// `[T]` u32.
    pub ids: &'a Tensor<B>,
    /// `[N]` u32.
    pub sampled: Option<&'a Tensor<B>>,
    /// `V x D`; may be the head's matrix.
    pub weight: &'a B::Weight,
    /// Multiplies the rows, in f32; 1 changes nothing.
    pub scale: f32,
    /// Rows computed.
    pub live: Live,
}

/// RMS normalisation (Zhang and Sennrich 2019): `out = x / sqrt(mean(x^2) + eps) * weight (+ residual)`, in f32.
///
/// `out`, `x`, `residual` `[T, D]` activation; `weight` `[D]` f32. `out` may be `x` or `residual`.
pub struct Norm<'a, B: Backend> {
    /// `[T, D]`.
    pub out: &'a Tensor<B>,
    /// `[T, D]`.
    pub x: &'a Tensor<B>,
    /// `[D]` f32.
    pub weight: &'a Tensor<B>,
    /// Added to the mean square.
    pub eps: f32,
    /// `[T, D]`, added last: models that norm what a layer adds to the residual stream.
    pub residual: Option<&'a Tensor<B>>,
    /// Rows computed.
    pub live: Live,
}

/// `out = x * weight^T (+ bias) (+ residual)`.
///
/// `x` `[T, K]`; `weight` `N x K`; `out` `[T, N]` (activation, or f32 for logits); `bias` `[N]`
/// f32; `residual` `[T, N]`, which may be `out`. Accumulation over K is in an order that does not
/// depend on T.
pub struct Linear<'a, B: Backend> {
    /// `[T, N]`.
    pub out: &'a Tensor<B>,
    /// `[T, K]`.
    pub x: &'a Tensor<B>,
    /// `N x K`.
    pub weight: &'a B::Weight,
    /// `[N]` f32.
    pub bias: Option<&'a Tensor<B>>,
    /// `[T, N]`, added last.
    pub residual: Option<&'a Tensor<B>>,
    /// Rows computed.
    pub live: Live,
}

/// The activation of a gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// Gaussian error linear unit, tanh form (Hendrycks and Gimpel 2016).
    GeluTanh,
}

/// `out = activation(gate) * up`, with `gate_up = [gate | up]` along the columns.
///
/// `out` `[T, F]`, `gate_up` `[T, 2F]`, activation.
pub struct ActMul<'a, B: Backend> {
    /// `[T, F]`.
    pub out: &'a Tensor<B>,
    /// `[T, 2F]`.
    pub gate_up: &'a Tensor<B>,
    /// Applied to the gate half.
    pub activation: Activation,
    /// Rows computed.
    pub live: Live,
}

/// [`Linear`] into `gate_up`, then [`ActMul`] into `out`; `gate_up` is scratch and may be left
/// untouched by a backend that fuses both.
pub struct LinearActMul<'a, B: Backend> {
    /// `[T, F]`.
    pub out: &'a Tensor<B>,
    /// `[T, 2F]` scratch.
    pub gate_up: &'a Tensor<B>,
    /// `[T, K]`.
    pub x: &'a Tensor<B>,
    /// `2F x K`, gate rows before up rows.
    pub weight: &'a B::Weight,
    /// `[2F]` f32.
    pub bias: Option<&'a Tensor<B>>,
    /// Applied to the gate half.
    pub activation: Activation,
    /// Rows computed.
    pub live: Live,
}

/// Rotary position embedding (Su et al. 2021) by table.
pub struct Rope<'a, B: Backend> {
    /// `[positions, r]` f32: `r/2` cosines, then `r/2` sines; `r <= d` even. Elements past `r` in a
    /// head pass unrotated.
    pub table: &'a Tensor<B>,
    /// Pairs are `(2i, 2i+1)` instead of `(i, i + r/2)`.
    pub interleaved: bool,
}

/// Per-head RMS norm of queries and keys before rotation.
pub struct QkNorm<'a, B: Backend> {
    /// `[d]` f32.
    pub q: &'a Tensor<B>,
    /// `[d]` f32.
    pub k: &'a Tensor<B>,
    /// Added to the mean square.
    pub eps: f32,
}

/// The scales of caches of [`DType::I8`], which have them and which alone have them: an element reads as
/// the byte times the scale of its token and head, rounded to bf16 (to nearest, ties to even).
pub struct KvScales<'a, B: Backend> {
    /// `[P, G, p]` f32.
    pub k: &'a Tensor<B>,
    /// `[P, G, p]` f32.
    pub v: &'a Tensor<B>,
}

/// Normalises and rotates queries and keys, writes queries to `q` and stores keys and values.
///
/// `q` `[T, H*d]`; `qkv` `[T, (H + 2G)*d]` as `[q | k | v]`; `positions` `[T]` u32, below the rope
/// table's rows; `slots` `[T]` u32 = page * p + offset, or `u32::MAX` to store nothing; caches
/// `[P, G, p, d]` in a KV dtype. Bytes and scale of a head in caches of i8 are those of
/// [`quant::kv_head`](crate::quant::kv_head); caches of [`DType::F8`] have no scales, and of an element
/// [`f8::encode`](crate::f8::encode).
pub struct RopeKv<'a, B: Backend> {
    /// `[T, H*d]`.
    pub q: &'a Tensor<B>,
    /// `[P, G, p, d]`.
    pub k_cache: &'a Tensor<B>,
    /// `[P, G, p, d]`.
    pub v_cache: &'a Tensor<B>,
    /// Of caches of i8.
    pub scales: Option<KvScales<'a, B>>,
    /// `[T, (H + 2G)*d]`.
    pub qkv: &'a Tensor<B>,
    /// `[T]` u32.
    pub positions: &'a Tensor<B>,
    /// `[T]` u32.
    pub slots: &'a Tensor<B>,
    /// Rotation; none for models without positions.
    pub rope: Option<Rope<'a, B>>,
    /// Per-head norms.
    pub qk_norm: Option<QkNorm<'a, B>>,
    /// Rows computed.
    pub live: Live,
}

/// Causal attention over pages, ragged: prefill, decode and mixed batches alike.
///
/// `out`, `q` `[T, H*d]`; caches `[P, G, p, d]`, H a multiple of G; `seqs` `[S]` rows of
/// [`SeqMeta`](crate::SeqMeta) (`[S, 8]` u32); `table` `[E]` u32 page ids. Token rows that belong to
/// no sequence are left as they were. Keys are combined in an order that depends on their absolute
/// positions only, never on page size, chunking or the other rows. An element of a cache of [`DType::F8`] reads as
/// [`f8::decode`](crate::f8::decode), a number of bf16, and from there on attention has the bits that it has over bf16.
///
/// With scores `s` over the keys that a query sees, its head is `sum(exp(s) * v) / sum(exp(s))`. A score is
/// `scale * (q . k)`, and with a `softcap` `softcap * tanh(scale * (q . k) / softcap)`. With `sinks` the denominator is
/// `sum(exp(s)) + exp(sinks[h])`: it is joined once, after all keys, so that a row's bits do not depend on how its keys
/// are taken.
pub struct Attention<'a, B: Backend> {
    /// `[T, H*d]`.
    pub out: &'a Tensor<B>,
    /// `[T, H*d]`.
    pub q: &'a Tensor<B>,
    /// `[P, G, p, d]`.
    pub k_cache: &'a Tensor<B>,
    /// `[P, G, p, d]`.
    pub v_cache: &'a Tensor<B>,
    /// Of caches of i8.
    pub scales: Option<KvScales<'a, B>>,
    /// `[S, 8]` u32.
    pub seqs: &'a Tensor<B>,
    /// `[E]` u32.
    pub table: &'a Tensor<B>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Bounds the scores, finite and above 0 (Gemma 2, arXiv 2408.00118).
    pub softcap: Option<f32>,
    /// `[H]` f32, finite: of each query head a logit that takes part in the softmax and has no value (gpt-oss,
    /// arXiv 2508.10925; StreamingLLM, arXiv 2309.17453). No model family uses it yet.
    pub sinks: Option<&'a Tensor<B>>,
    /// A query at position `t` sees keys `t - window + 1 ..= t`.
    pub window: Option<u32>,
    /// Tokens: no sequence's context is longer.
    pub longest: usize,
    /// Which entries of `seqs` count: [`Live::Sequences`] or [`Live::All`]. Entries with no rows
    /// are skipped either way.
    pub live: Live,
}

/// `out[r] = x[rows[r]]`.
///
/// `out` `[R, D]`, `x` `[T, D]`, `rows` `[R]` u32 below T.
pub struct Gather<'a, B: Backend> {
    /// `[R, D]`.
    pub out: &'a Tensor<B>,
    /// `[T, D]`.
    pub x: &'a Tensor<B>,
    /// `[R]` u32.
    pub rows: &'a Tensor<B>,
    /// Rows computed.
    pub live: Live,
}

/// `x = cap * tanh(x / cap)`, in place: a soft bound of logits (Gemma 2, arXiv 2408.00118).
///
/// `x` `[R, V]` f32.
pub struct Softcap<'a, B: Backend> {
    /// `[R, V]` f32.
    pub x: &'a Tensor<B>,
    /// The bound, finite and above 0.
    pub cap: f32,
    /// Rows computed.
    pub live: Live,
}

/// Adjusts logits, chooses a token per row and reports log-probabilities.
///
/// `logits` `[R, V]` f32, not changed; `params` `[R]` rows of
/// [`SampleParams`](crate::SampleParams) (`[R, 16]` u32); `adjust` `[E, 4]` u32
/// ([`Adjust`](crate::Adjust)); `masks` `[M, ceil(V/32)]` u32: bit `t % 32` of word `t / 32` allows token `t`, as
/// llguidance and xgrammar lay them out, and [`SampleParams::mask`](crate::SampleParams::mask), 0 where there are no
/// masks, says which is a row's. In score mode a mask changes nothing. Outputs: `ids` `[R]` u32 (the target in score mode); `logprobs`
/// `[R]` f32 of that id; `top_ids` `[R, 20]` u32 and `top_logprobs` `[R, 20]` f32, highest first,
/// lowest id first among equals, padded with `u32::MAX` and minus infinity where V < 20. Log-probabilities are
/// the log-softmax of the unadjusted logits.
pub struct Sample<'a, B: Backend> {
    /// `[R]` u32.
    pub ids: &'a Tensor<B>,
    /// `[R]` f32.
    pub logprobs: &'a Tensor<B>,
    /// `[R, 20]` u32.
    pub top_ids: &'a Tensor<B>,
    /// `[R, 20]` f32.
    pub top_logprobs: &'a Tensor<B>,
    /// `[R, V]` f32.
    pub logits: &'a Tensor<B>,
    /// `[R, 16]` u32.
    pub params: &'a Tensor<B>,
    /// `[E, 4]` u32.
    pub adjust: &'a Tensor<B>,
    /// `[M, ceil(V/32)]` u32.
    pub masks: Option<&'a Tensor<B>>,
    /// Rows computed.
    pub live: Live,
}

impl<B: Backend> Embed<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        let (rows, width) = B::weight_shape(self.weight);
        let stack = B::weight_stack(self.weight);
        rule!("embed", stack == 1, "weight must be one matrix", weight = (rows, width), stack = stack);
        rule!(
            "embed",
            self.out.shape() == [self.ids.len(), width],
            "out must be [ids, width]",
            out = self.out,
            ids = self.ids,
            width = width
        );
        exactly(device, "embed", "ids", self.ids, DType::U32)?;
        if let Some(sampled) = self.sampled {
            rule!("embed", sampled.shape().len() == 1, "sampled must be [N]", sampled = sampled);
            exactly(device, "embed", "sampled", sampled, DType::U32)?;
        }
        activation(device, "embed", "out", self.out)
    }
}

impl<B: Backend> Norm<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        rule!("norm", self.out.shape() == self.x.shape(), "out and x differ", out = self.out, x = self.x);
        rule!(
            "norm",
            self.weight.shape() == [self.x.cols()],
            "weight must have x's columns",
            weight = self.weight,
            x = self.x
        );
        exactly(device, "norm", "weight", self.weight, DType::F32)?;
        if let Some(residual) = self.residual {
            rule!("norm", residual.shape() == self.x.shape(), "residual and x differ", residual = residual, x = self.x);
            activation(device, "norm", "residual", residual)?;
        }
        activation(device, "norm", "out", self.out)?;
        activation(device, "norm", "x", self.x)
    }
}

impl<B: Backend> Linear<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        let (n, k) = B::weight_shape(self.weight);
        let stack = B::weight_stack(self.weight);
        rule!("linear", stack == 1, "weight must be one matrix", weight = (n, k), stack = stack);
        rule!(
            "linear",
            self.x.shape() == [self.out.rows(), k],
            "x must be [rows, K]",
            x = self.x,
            out = self.out,
            weight = (n, k)
        );
        rule!(
            "linear",
            self.out.shape() == [self.x.rows(), n],
            "out must be [rows, N]",
            out = self.out,
            weight = (n, k)
        );
        if let Some(bias) = self.bias {
            rule!("linear", bias.shape() == [n], "bias must be [N]", bias = bias, weight = (n, k));
            exactly(device, "linear", "bias", bias, DType::F32)?;
        }
        if let Some(residual) = self.residual {
            rule!(
                "linear",
                residual.shape() == self.out.shape(),
                "residual and out differ",
                residual = residual,
                out = self.out
            );
            activation(device, "linear", "residual", residual)?;
        }
        activation(device, "linear", "x", self.x)?;
        if self.out.dtype() == DType::F32 { Ok(()) } else { activation(device, "linear", "out", self.out) }
    }
}

impl<B: Backend> ActMul<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        let want = [self.out.rows(), 2 * self.out.cols()];
        rule!(
            "act_mul",
            self.gate_up.shape() == want,
            "gate_up must be [rows, 2F]",
            gate_up = self.gate_up,
            out = self.out
        );
        activation(device, "act_mul", "out", self.out)?;
        activation(device, "act_mul", "gate_up", self.gate_up)
    }
}

impl<B: Backend> LinearActMul<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        Linear { out: self.gate_up, x: self.x, weight: self.weight, bias: self.bias, residual: None, live: self.live }
            .check(device)?;
        ActMul { out: self.out, gate_up: self.gate_up, activation: self.activation, live: self.live }.check(device)
    }
}

fn check_cache<B: Backend>(
    device: &B,
    op: &'static str,
    (k, v): (&Tensor<B>, &Tensor<B>),
    scales: Option<&KvScales<'_, B>>,
) -> Result<()> {
    rule!(
        op,
        k.shape().len() == 4 && k.shape() == v.shape(),
        "caches must be [P, G, p, d] and equal",
        k_cache = k,
        v_cache = v
    );
    rule!(op, k.is_contiguous() && v.is_contiguous(), "caches must be contiguous", k_cache = k, v_cache = v);
    one_of(device, op, "k_cache", k, &device.caps().kv)?;
    exactly(device, op, "v_cache", v, k.dtype())?;
    rule!(
        op,
        k.dtype().is_scaled() == scales.is_some(),
        "caches of i8, and no others, have scales",
        k_cache = k,
        scales = scales.map(|scales| scales.k)
    );
    let Some(KvScales { k: k_scale, v: v_scale }) = scales else { return Ok(()) };
    rule!(
        op,
        k_scale.shape() == &k.shape()[..3] && v_scale.shape() == k_scale.shape(),
        "scales must be [P, G, p]",
        k_scale = k_scale,
        v_scale = v_scale,
        k_cache = k
    );
    rule!(
        op,
        k_scale.is_contiguous() && v_scale.is_contiguous(),
        "scales must be contiguous",
        k_scale = k_scale,
        v_scale = v_scale
    );
    exactly(device, op, "k_scale", k_scale, DType::F32)?;
    exactly(device, op, "v_scale", v_scale, DType::F32)
}

impl<B: Backend> RopeKv<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "rope_kv";
        check_cache(device, OP, (self.k_cache, self.v_cache), self.scales.as_ref())?;
        let (groups, size) = (self.k_cache.dim(1), self.k_cache.dim(3));
        let rows = self.q.rows();
        rule!(OP, size > 0 && self.q.cols().is_multiple_of(size), "q must be [T, H*d]", q = self.q, d = size);
        let width = self.q.cols() + 2 * groups * size;
        rule!(
            OP,
            self.qkv.shape() == [rows, width],
            "qkv must be [T, (H + 2G)*d]",
            qkv = self.qkv,
            q = self.q,
            k_cache = self.k_cache
        );
        rule!(
            OP,
            self.positions.shape() == [rows] && self.slots.shape() == [rows],
            "positions and slots must be [T]",
            positions = self.positions,
            slots = self.slots,
            q = self.q
        );
        exactly(device, OP, "positions", self.positions, DType::U32)?;
        exactly(device, OP, "slots", self.slots, DType::U32)?;
        if let Some(rope) = &self.rope {
            let r = rope.table.cols();
            rule!(
                OP,
                rope.table.shape().len() == 2 && r % 2 == 0 && r <= size,
                "rope table must be [positions, r], r even and at most d",
                table = rope.table,
                d = size
            );
            exactly(device, OP, "rope table", rope.table, DType::F32)?;
        }
        if let Some(norm) = &self.qk_norm {
            rule!(
                OP,
                norm.q.shape() == [size] && norm.k.shape() == [size],
                "QK norms must be [d]",
                q_norm = norm.q,
                k_norm = norm.k,
                d = size
            );
            exactly(device, OP, "q_norm", norm.q, DType::F32)?;
            exactly(device, OP, "k_norm", norm.k, DType::F32)?;
        }
        activation(device, OP, "q", self.q)?;
        activation(device, OP, "qkv", self.qkv)
    }
}

fn is_cap(cap: f32) -> bool {
    cap > 0.0 && cap.is_finite()
}

impl<B: Backend> Attention<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "attention";
        check_cache(device, OP, (self.k_cache, self.v_cache), self.scales.as_ref())?;
        let width = self.k_cache.dim(1) * self.k_cache.dim(3);
        rule!(OP, self.out.shape() == self.q.shape(), "out and q differ", out = self.out, q = self.q);
        rule!(
            OP,
            self.q.shape().len() == 2 && width > 0 && self.q.cols().is_multiple_of(width),
            "q must be [T, H*d], H a multiple of G",
            q = self.q,
            k_cache = self.k_cache
        );
        rule!(OP, self.seqs.shape() == [self.seqs.rows(), 8], "seqs must be [S, 8]", seqs = self.seqs);
        rule!(OP, self.window != Some(0), "window must be above 0", window = self.window);
        rule!(OP, self.softcap.is_none_or(is_cap), "softcap must be finite and above 0", softcap = self.softcap);
        if let Some(sinks) = self.sinks {
            let heads = self.q.cols() / self.k_cache.dim(3);
            rule!(OP, sinks.shape() == [heads], "sinks must be [H]", sinks = sinks, q = self.q, k_cache = self.k_cache);
            exactly(device, OP, "sinks", sinks, DType::F32)?;
        }
        exactly(device, OP, "seqs", self.seqs, DType::U32)?;
        exactly(device, OP, "table", self.table, DType::U32)?;
        activation(device, OP, "out", self.out)?;
        activation(device, OP, "q", self.q)
    }
}

impl<B: Backend> Gather<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        rule!(
            "gather",
            self.out.shape() == [self.rows.len(), self.x.cols()],
            "out must be [rows, x's columns]",
            out = self.out,
            rows = self.rows,
            x = self.x
        );
        rule!("gather", self.out.dtype() == self.x.dtype(), "out and x differ in dtype", out = self.out, x = self.x);
        exactly(device, "gather", "rows", self.rows, DType::U32)?;
        activation(device, "gather", "x", self.x)
    }
}

impl<B: Backend> Softcap<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        rule!("softcap", self.x.shape().len() == 2, "x must be [R, V]", x = self.x);
        rule!("softcap", is_cap(self.cap), "cap must be finite and above 0", cap = self.cap);
        exactly(device, "softcap", "x", self.x, DType::F32)
    }
}

impl<B: Backend> Sample<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`].
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "sample";
        let rows = self.logits.rows();
        rule!(
            OP,
            self.logits.shape().len() == 2 && !self.logits.is_empty(),
            "logits must be [R, V]",
            logits = self.logits
        );
        rule!(
            OP,
            self.ids.shape() == [rows] && self.logprobs.shape() == [rows],
            "ids and logprobs must be [R]",
            ids = self.ids,
            logprobs = self.logprobs,
            logits = self.logits
        );
        let top = [rows, TOP_LOGPROBS];
        rule!(
            OP,
            self.top_ids.shape() == top && self.top_logprobs.shape() == top,
            "top outputs must be [R, 20]",
            top_ids = self.top_ids,
            top_logprobs = self.top_logprobs
        );
        rule!(
            OP,
            self.params.shape() == [rows, 16],
            "params must be [R, 16]",
            params = self.params,
            logits = self.logits
        );
        rule!(OP, self.adjust.shape() == [self.adjust.rows(), 4], "adjust must be [E, 4]", adjust = self.adjust);
        if let Some(masks) = self.masks {
            rule!(
                OP,
                masks.shape() == [masks.rows(), mask_words(self.logits.cols())],
                "masks must be [M, ceil(V/32)]",
                masks = masks,
                logits = self.logits
            );
            exactly(device, OP, "masks", masks, DType::U32)?;
        }
        for (name, t, dtype) in [
            ("ids", self.ids, DType::U32),
            ("logprobs", self.logprobs, DType::F32),
            ("top_ids", self.top_ids, DType::U32),
            ("top_logprobs", self.top_logprobs, DType::F32),
            ("logits", self.logits, DType::F32),
            ("params", self.params, DType::U32),
            ("adjust", self.adjust, DType::U32),
        ] {
            exactly(device, OP, name, t, dtype)?;
        }
        Ok(())
    }
}
