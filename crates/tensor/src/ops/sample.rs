//! Operations on logits.
use super::{exactly, is_cap, shape_error};
use crate::sampling::mask_words;
use crate::{Backend, DType, Live, Result, TOP_LOGPROBS, Tensor};

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

impl<B: Backend> Softcap<'_, B> {
    /// Shape rules.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
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
    /// [`Error::Shape`](crate::Error::Shape) or [`Error::DType`](crate::Error::DType).
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
