//! Operations that keep and read keys and values.
use super::{activation, exactly, is_cap, one_of, shape_error};
use crate::{Backend, DType, Live, Result, Tensor};

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
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
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

impl<B: Backend> Attention<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
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
