//! Operations of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), in the form that keeps a latent in the cache.
//!
//! More letters in shapes: `r` elements of a latent, `s` rotated elements that all heads share, `n` elements of a query head
//! that meet no position. A token's keys and values are linear in its latent `c`, so the matrix that would make keys of it is
//! multiplied into queries ([`HeadLinear`]), and the one that would make values is left for what attention returns. The cache
//! has `[c | k]` of each token, where `k` is the rotated part: all heads have this one key, whose first `r` elements are the
//! value ([`LatentAttention`]).
use super::{Rope, activation, exactly, one_of, shape_error};
use crate::{Backend, DType, Live, Result, Tensor};

/// Normalises latents, rotates what keys and queries have beside them, stores latents and keys, and completes queries.
///
/// `q` `[T, H*(r + s)]`, of each head of which the last `s` elements are written; `queries` `[T, H*(n + s)]`, of each head
/// of which the last `s` are read; `kv` `[T, r + s]` as `[latent | key]`; `positions` `[T]` u32, below the rope table's rows;
/// `slots` `[T]` u32 = page * p + offset, or `u32::MAX` to store nothing; `cache` `[P, 1, p, r + s]` in one of
/// [`Caps::latent`](crate::Caps::latent). The latent is normalised as [`Norm`](super::Norm) does, key and queries are rotated.
pub struct LatentKv<'a, B: Backend> {
    /// `[T, H*(r + s)]`.
    pub q: &'a Tensor<B>,
    /// `[P, 1, p, r + s]`.
    pub cache: &'a Tensor<B>,
    /// `[T, H*(n + s)]`.
    pub queries: &'a Tensor<B>,
    /// `[T, r + s]`.
    pub kv: &'a Tensor<B>,
    /// `[r]` f32: the weight of the latent's norm.
    pub norm: &'a Tensor<B>,
    /// Added to the mean square.
    pub eps: f32,
    /// Its table is `[positions, s]`.
    pub rope: Rope<'a, B>,
    /// `[T]` u32.
    pub positions: &'a Tensor<B>,
    /// `[T]` u32.
    pub slots: &'a Tensor<B>,
    /// Rows computed.
    pub live: Live,
}

/// [`Attention`](super::Attention) whose heads share one key a token, the first `r` elements of which are its value.
///
/// `out` `[T, H*r]`; `q` `[T, H*d]`; `cache` `[P, 1, p, d]`, `r` at most `d`. Scores are `scale * (q . k)`. Rows, pages, order
/// of keys and bits are as for attention.
pub struct LatentAttention<'a, B: Backend> {
    /// `[T, H*r]`.
    pub out: &'a Tensor<B>,
    /// `[T, H*d]`.
    pub q: &'a Tensor<B>,
    /// `[P, 1, p, d]`.
    pub cache: &'a Tensor<B>,
    /// `[S, 8]` u32.
    pub seqs: &'a Tensor<B>,
    /// `[E]` u32.
    pub table: &'a Tensor<B>,
    /// Multiplies the scores.
    pub scale: f32,
    /// Tokens: no sequence's context is longer.
    pub longest: usize,
    /// As [`Attention::live`](super::Attention::live).
    pub live: Live,
}

/// `out[t, h] = x[t, h] * weight[h]^T`: a product for each head, of the first elements of each.
///
/// `weight` a stack of `H` matrices `N x K`; `x` `[T, H*a]`, `a` at least `K`, of each head of which the first `K` elements
/// are read; `out` `[T, H*b]`, `b` at least `N`, of each head of which the first `N` are written. Sums are those of
/// [`GroupedLinear`](super::GroupedLinear).
pub struct HeadLinear<'a, B: Backend> {
    /// `[T, H*b]`.
    pub out: &'a Tensor<B>,
    /// `[T, H*a]`.
    pub x: &'a Tensor<B>,
    /// `H` times `N x K`.
    pub weight: &'a B::Weight,
    /// Rows computed.
    pub live: Live,
}

fn check_cache<B: Backend>(device: &B, op: &'static str, cache: &Tensor<B>) -> Result<()> {
    rule!(
        op,
        cache.shape().len() == 4 && cache.dim(1) == 1 && cache.is_contiguous(),
        "cache must be [P, 1, p, r + s] without gaps",
        cache = cache
    );
    one_of(device, op, "cache", cache, &device.caps().latent)
}

impl<B: Backend> LatentKv<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "latent_kv";
        check_cache(device, OP, self.cache)?;
        let (rows, size, rotated) = (self.q.rows(), self.cache.dim(3), self.rope.table.cols());
        rule!(
            OP,
            self.q.shape().len() == 2 && size > 0 && self.q.cols().is_multiple_of(size),
            "q must be [T, H*(r + s)]",
            q = self.q,
            cache = self.cache
        );
        rule!(
            OP,
            self.rope.table.shape().len() == 2 && rotated % 2 == 0 && rotated < size,
            "rope table must be [positions, s], s even and less than r + s",
            table = self.rope.table,
            cache = self.cache
        );
        let heads = (self.q.cols() / size).max(1);
        rule!(
            OP,
            self.queries.shape() == [rows, self.queries.cols()]
                && self.queries.cols().is_multiple_of(heads)
                && self.queries.cols() / heads >= rotated,
            "queries must be [T, H*(n + s)]",
            queries = self.queries,
            q = self.q,
            table = self.rope.table
        );
        rule!(OP, self.kv.shape() == [rows, size], "kv must be [T, r + s]", kv = self.kv, cache = self.cache);
        rule!(OP, self.norm.shape() == [size - rotated], "norm must be [r]", norm = self.norm, cache = self.cache);
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
        exactly(device, OP, "rope table", self.rope.table, DType::F32)?;
        exactly(device, OP, "norm", self.norm, DType::F32)?;
        for (name, tensor) in [("q", self.q), ("queries", self.queries), ("kv", self.kv)] {
            activation(device, OP, name, tensor)?;
        }
        Ok(())
    }
}

impl<B: Backend> LatentAttention<'_, B> {
    /// Query heads.
    pub fn heads(&self) -> usize {
        self.q.cols() / self.cache.dim(3)
    }

    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "latent_attention";
        check_cache(device, OP, self.cache)?;
        let size = self.cache.dim(3);
        rule!(
            OP,
            self.q.shape().len() == 2 && size > 0 && self.q.cols() >= size && self.q.cols().is_multiple_of(size),
            "q must be [T, H*d]",
            q = self.q,
            cache = self.cache
        );
        let (heads, width) = (self.heads(), self.out.cols());
        rule!(
            OP,
            self.out.shape() == [self.q.rows(), width] && width.is_multiple_of(heads) && width / heads <= size,
            "out must be [T, H*r], r at most d",
            out = self.out,
            q = self.q,
            cache = self.cache
        );
        rule!(OP, self.seqs.shape() == [self.seqs.rows(), 8], "seqs must be [S, 8]", seqs = self.seqs);
        exactly(device, OP, "seqs", self.seqs, DType::U32)?;
        exactly(device, OP, "table", self.table, DType::U32)?;
        activation(device, OP, "out", self.out)?;
        activation(device, OP, "q", self.q)
    }
}

impl<B: Backend> HeadLinear<'_, B> {
    /// Elements from the beginning of one head to that of the next, of `x` and of `out`.
    pub fn strides(&self) -> (usize, usize) {
        let heads = B::weight_stack(self.weight);
        (self.x.cols() / heads, self.out.cols() / heads)
    }

    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "head_linear";
        let ((n, k), heads) = (B::weight_shape(self.weight), B::weight_stack(self.weight));
        let fits = |t: &Tensor<B>, rows: usize, least: usize| {
            t.shape() == [rows, t.cols()] && t.cols().is_multiple_of(heads) && t.cols() / heads >= least
        };
        rule!(
            OP,
            fits(self.x, self.out.rows(), k),
            "x must be [T, H*a], a at least K",
            x = self.x,
            out = self.out,
            weight = (heads, n, k)
        );
        rule!(
            OP,
            fits(self.out, self.x.rows(), n),
            "out must be [T, H*b], b at least N",
            out = self.out,
            weight = (heads, n, k)
        );
        activation(device, OP, "x", self.x)?;
        activation(device, OP, "out", self.out)
    }
}
