//! Operations of a mixture of experts (Shazeer et al. 2017): some of many small MLPs for each token.
//!
//! More letters in shapes: `E` experts, `k` experts of a token, `F` their inner width. A token and one of its experts are
//! a **pair**; pairs are sorted by expert and then by token row, so that the rows of an expert lie together: [`Route`]
//! makes the order, [`GroupedLinear`] and [`GroupedLinearActMul`] multiply each run of rows with the matrix of its
//! expert, [`Combine`] adds up what belongs to a token. A row's result depends on the row and its expert alone, bit for bit.
use super::{Activation, activation, exactly, shape_error};
use crate::{Backend, DType, Live, Result, Tensor};

/// How scores become the weights of chosen experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scoring {
    /// Probabilities over all experts: the softmax of the logits.
    Softmax,
    /// Each expert by itself: the logistic function of its logit.
    Sigmoid,
}

/// Experts in groups of as many, one after the other (DeepSeek-V2, arXiv 2405.04434): a row's experts are those of its best
/// groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExpertGroups {
    /// Groups; divides the number of experts.
    pub count: usize,
    /// Groups a row takes experts from: the lowest number first among equals.
    pub kept: usize,
    /// What makes a group better.
    pub score: GroupScore,
}

/// What a group of experts is chosen by, of what its experts are chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupScore {
    /// The highest.
    Highest,
    /// The sum of the two highest (DeepSeek-V3, arXiv 2412.19437), of scores also without a bias; of the one there is in
    /// groups of one expert.
    TwoHighest,
}

/// Where pairs are: what [`Route`] writes and the operations on experts read. Of `rows` and `hits`, entries past the last
/// are left as they were.
#[derive(Clone)]
pub struct Routing<B: Backend> {
    /// `[T, k]` f32: what an expert's output is multiplied with, the highest score first.
    pub weights: Tensor<B>,
    /// `[T, k]` u32: the place of the pair in the sorted order.
    pub places: Tensor<B>,
    /// `[T*k]` u32: the token row of each place.
    pub rows: Tensor<B>,
    /// `[E + 1]` u32: expert `e` has places `offsets[e]..offsets[e + 1]`.
    pub offsets: Tensor<B>,
    /// `[1 + min(E, T*k)]` u32: how many experts have a place, then which, ascending.
    pub hits: Tensor<B>,
}

/// Chooses `k` experts for each row and sorts the pairs.
///
/// Experts are chosen by score plus `bias` (the lowest number first among equals; softmax is monotonic, so without a bias
/// by logit); with `groups` only those of the best groups, which together are at least `k`. A pair's weight is its score
/// without the bias, divided by the sum of the chosen ones' (at least 1e-20) where `renormalise`, times `scale`. Only live rows
/// have pairs. A row with a logit that is not a number gets some `k` experts.
pub struct Route<'a, B: Backend> {
    /// `k` is that of `weights`.
    pub routing: &'a Routing<B>,
    /// `[T, E]` f32.
    pub logits: &'a Tensor<B>,
    /// `[E]` f32 (Wang et al. 2024, balancing without an auxiliary loss).
    pub bias: Option<&'a Tensor<B>>,
    /// What a score is.
    pub scoring: Scoring,
    /// Where experts are in groups.
    pub groups: Option<ExpertGroups>,
    /// Weights of a row sum to `scale`.
    pub renormalise: bool,
    /// Multiplies the weights.
    pub scale: f32,
    /// Rows routed.
    pub live: Live,
}

/// `out[i] = x[rows[i]] * weight[e]^T` for the places `i` of expert `e`: a product for each expert.
///
/// `out` `[T*k, N]`; `weight` a stack of `E` matrices `N x K`; `x` `[T, K]` with `rows`, or `[T*k, K]` in sorted order
/// without. Rows of `out` past the last place are left as they were. Sums are those of [`Linear`](super::Linear).
pub struct GroupedLinear<'a, B: Backend> {
    /// `[T*k, N]`.
    pub out: &'a Tensor<B>,
    /// `[T, K]` or `[T*k, K]`.
    pub x: &'a Tensor<B>,
    /// Which row of `x` a place has: [`Routing::rows`].
    pub rows: Option<&'a Tensor<B>>,
    /// `E` times `N x K`.
    pub weight: &'a B::Weight,
    /// [`Routing::offsets`].
    pub offsets: &'a Tensor<B>,
    /// [`Routing::hits`].
    pub hits: &'a Tensor<B>,
}

/// [`GroupedLinear`] into `gate_up`, then [`ActMul`](super::ActMul) into `out`; `gate_up` is scratch and may be left
/// untouched by a backend that fuses both.
pub struct GroupedLinearActMul<'a, B: Backend> {
    /// `[T*k, F]`.
    pub out: &'a Tensor<B>,
    /// `[T*k, 2F]` scratch.
    pub gate_up: &'a Tensor<B>,
    /// `[T, K]` or `[T*k, K]`.
    pub x: &'a Tensor<B>,
    /// Which row of `x` a place has: [`Routing::rows`].
    pub rows: Option<&'a Tensor<B>>,
    /// `E` times `2F x K`, each with gate rows before up rows.
    pub weight: &'a B::Weight,
    /// Applied to the gate half.
    pub activation: Activation,
    /// [`Routing::offsets`].
    pub offsets: &'a Tensor<B>,
    /// [`Routing::hits`].
    pub hits: &'a Tensor<B>,
}

/// `out[t] = sum over j of weights[t, j] * x[places[t, j]] (+ residual[t])`: `j` ascends, each term one fused
/// multiply-add on a sum that begins at zero, and the residual is added last.
///
/// `out`, `residual` `[T, D]`, which may be the same; `x` `[T*k, D]`.
pub struct Combine<'a, B: Backend> {
    /// `[T, D]`.
    pub out: &'a Tensor<B>,
    /// `[T*k, D]` in sorted order.
    pub x: &'a Tensor<B>,
    /// [`Routing::weights`].
    pub weights: &'a Tensor<B>,
    /// [`Routing::places`].
    pub places: &'a Tensor<B>,
    /// `[T, D]`, added last.
    pub residual: Option<&'a Tensor<B>>,
    /// Rows computed.
    pub live: Live,
}

impl<B: Backend> Routing<B> {
    /// Bytes [`Routing::new`] allocates for `rows` rows and `per_token` of `experts` experts.
    pub fn bytes(rows: usize, experts: usize, per_token: usize) -> usize {
        let pairs = rows * per_token;
        (3 * pairs + experts + 1 + 1 + experts.min(pairs)) * DType::U32.size()
    }

    /// Allocates it for `rows` rows.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(device: &B, rows: usize, experts: usize, per_token: usize) -> Result<Self> {
        let pairs = rows * per_token;
        Ok(Routing {
            weights: Tensor::new(device, DType::F32, &[rows, per_token])?,
            places: Tensor::new(device, DType::U32, &[rows, per_token])?,
            rows: Tensor::new(device, DType::U32, &[pairs])?,
            offsets: Tensor::new(device, DType::U32, &[experts + 1])?,
            hits: Tensor::new(device, DType::U32, &[1 + experts.min(pairs)])?,
        })
    }

    /// That of its first `rows` rows.
    ///
    /// # Panics
    /// When it has fewer: a bug of the caller.
    #[must_use]
    pub fn narrow(&self, rows: usize) -> Self {
        let (pairs, experts) = (rows * self.weights.cols(), self.offsets.len() - 1);
        Routing {
            weights: self.weights.narrow(0, rows),
            places: self.places.narrow(0, rows),
            rows: self.rows.narrow(0, pairs),
            offsets: self.offsets.clone(),
            hits: self.hits.narrow(0, 1 + experts.min(pairs)),
        }
    }
}

impl<B: Backend> Route<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "route";
        let Routing { weights, places, rows, offsets, hits } = self.routing;
        let (tokens, experts) = (self.logits.rows(), self.logits.cols());
        let per_token = weights.cols();
        rule!(
            OP,
            self.logits.shape().len() == 2 && per_token >= 1 && per_token <= experts,
            "logits must be [T, E], and k from 1 to E",
            logits = self.logits,
            weights = weights
        );
        rule!(
            OP,
            weights.shape() == [tokens, per_token] && places.shape() == weights.shape(),
            "weights and places must be [T, k]",
            weights = weights,
            places = places,
            logits = self.logits
        );
        rule!(OP, rows.shape() == [tokens * per_token], "rows must be [T*k]", rows = rows, weights = weights);
        rule!(OP, offsets.shape() == [experts + 1], "offsets must be [E + 1]", offsets = offsets, logits = self.logits);
        check_hits(device, OP, hits, experts, tokens * per_token)?;
        rule!(
            OP,
            weights.is_contiguous() && places.is_contiguous(),
            "weights and places must be contiguous",
            weights = weights,
            places = places
        );
        if let Some(bias) = self.bias {
            rule!(OP, bias.shape() == [experts], "bias must be [E]", bias = bias, logits = self.logits);
            exactly(device, OP, "bias", bias, DType::F32)?;
        }
        if let Some(ExpertGroups { count, kept, .. }) = self.groups {
            rule!(
                OP,
                count >= 1 && experts.is_multiple_of(count) && kept <= count && kept * (experts / count) >= per_token,
                "groups must share out the experts evenly, and those kept have k or more",
                groups = self.groups,
                logits = self.logits,
                weights = weights
            );
        }
        exactly(device, OP, "logits", self.logits, DType::F32)?;
        exactly(device, OP, "weights", weights, DType::F32)?;
        exactly(device, OP, "places", places, DType::U32)?;
        exactly(device, OP, "rows", rows, DType::U32)?;
        exactly(device, OP, "offsets", offsets, DType::U32)
    }
}

fn check_hits<B: Backend>(device: &B, op: &'static str, hits: &Tensor<B>, experts: usize, pairs: usize) -> Result<()> {
    let want = 1 + experts.min(pairs);
    rule!(op, hits.shape() == [want], "hits must be [1 + min(E, T*k)]", hits = hits, want = want);
    exactly(device, op, "hits", hits, DType::U32)
}

impl<B: Backend> GroupedLinear<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        self.check_as("grouped_linear", device)?;
        if self.out.dtype() == DType::F32 { Ok(()) } else { activation(device, "grouped_linear", "out", self.out) }
    }

    fn check_as(&self, op: &'static str, device: &B) -> Result<()> {
        let (n, k) = B::weight_shape(self.weight);
        let (experts, pairs) = (B::weight_stack(self.weight), self.out.rows());
        rule!(op, self.out.shape() == [pairs, n], "out must be [T*k, N]", out = self.out, weight = (n, k));
        rule!(
            op,
            self.x.shape() == [self.x.rows(), k] && (self.rows.is_some() || self.x.rows() == pairs),
            "x must be [T, K] with rows, or [T*k, K] without",
            x = self.x,
            out = self.out,
            weight = (n, k)
        );
        if let Some(rows) = self.rows {
            rule!(op, rows.shape() == [pairs], "rows must be [T*k]", rows = rows, out = self.out);
            exactly(device, op, "rows", rows, DType::U32)?;
        }
        rule!(
            op,
            self.offsets.shape() == [experts + 1],
            "offsets must be [E + 1]",
            offsets = self.offsets,
            experts = experts
        );
        check_hits(device, op, self.hits, experts, pairs)?;
        exactly(device, op, "offsets", self.offsets, DType::U32)?;
        activation(device, op, "x", self.x)
    }
}

impl<B: Backend> GroupedLinearActMul<'_, B> {
    /// The product.
    pub fn product(&self) -> GroupedLinear<'_, B> {
        let GroupedLinearActMul { gate_up, x, rows, weight, offsets, hits, .. } = *self;
        GroupedLinear { out: gate_up, x, rows, weight, offsets, hits }
    }

    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "grouped_linear_act_mul";
        self.product().check_as(OP, device)?;
        let want = [self.out.rows(), 2 * self.out.cols()];
        rule!(OP, self.gate_up.shape() == want, "gate_up must be [T*k, 2F]", gate_up = self.gate_up, out = self.out);
        activation(device, OP, "gate_up", self.gate_up)?;
        activation(device, OP, "out", self.out)
    }
}

impl<B: Backend> Combine<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
    pub fn check(&self, device: &B) -> Result<()> {
        const OP: &str = "combine";
        let (tokens, width, per_token) = (self.out.rows(), self.out.cols(), self.weights.cols());
        rule!(
            OP,
            self.x.shape() == [tokens * per_token, width],
            "x must be [T*k, D]",
            x = self.x,
            out = self.out,
            weights = self.weights
        );
        rule!(
            OP,
            self.weights.shape() == [tokens, per_token] && self.places.shape() == self.weights.shape(),
            "weights and places must be [T, k]",
            weights = self.weights,
            places = self.places,
            out = self.out
        );
        rule!(
            OP,
            self.weights.is_contiguous() && self.places.is_contiguous(),
            "weights and places must be contiguous",
            weights = self.weights,
            places = self.places
        );
        if let Some(residual) = self.residual {
            rule!(
                OP,
                residual.shape() == self.out.shape(),
                "residual and out differ",
                residual = residual,
                out = self.out
            );
            activation(device, OP, "residual", residual)?;
        }
        exactly(device, OP, "weights", self.weights, DType::F32)?;
        exactly(device, OP, "places", self.places, DType::U32)?;
        activation(device, OP, "x", self.x)?;
        activation(device, OP, "out", self.out)
    }
}
