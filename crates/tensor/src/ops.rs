//! The operations, and the shape rules every backend may rely on.
//!
//! Letters in shapes: `T` token rows, `S` sequences, `R` logit rows, `D` model width, `H` query
//! heads, `G` key/value heads, `d` head size, `V` vocabulary, `P` pages, `p` tokens per page.
//! Activations are f32, bf16 or f16 as the backend's [`Caps`](crate::Caps) say; arithmetic and
//! accumulation are in f32, products after the rounding that [`Caps::operands`](crate::Caps::operands)
//! states. A row's result depends on that row's inputs alone, bit for bit.
use crate::{Backend, DType, Error, Live, Result, Tensor};

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

mod attention;
pub use attention::{Attention, KvScales, QkNorm, Rope, RopeKv};
mod experts;
pub use experts::{Combine, ExpertGroups, GroupScore, GroupedLinear, GroupedLinearActMul, Route, Routing, Scoring};
mod latent;
pub use latent::{HeadLinear, LatentAttention, LatentKv};
mod sample;
pub use sample::{Sample, Softcap};

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

fn is_cap(cap: f32) -> bool {
    cap > 0.0 && cap.is_finite()
}
