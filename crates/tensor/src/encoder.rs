//! The recording front: every operation is checked here before a backend sees it.
use crate::ops::*;
use crate::{Backend, Error, Result, Tensor};

/// What a backend implements: one method per operation, called with arguments that passed
/// [`ops`](crate::ops)' shape rules. Outputs come first and are preallocated; no method allocates
/// device memory, synchronises or returns data.
///
/// Methods with a body are compositions; a backend overrides one where a single kernel does it.
pub trait Recorder<B: Backend> {
    /// Binds the live counts ([`StepHeader`](crate::StepHeader), u32 x 4) for what follows.
    fn header(&mut self, header: &Tensor<B>);
    /// See [`Embed`].
    fn embed(&mut self, op: Embed<'_, B>) -> Result<()>;
    /// See [`Norm`].
    fn norm(&mut self, op: Norm<'_, B>) -> Result<()>;
    /// See [`Linear`].
    fn linear(&mut self, op: Linear<'_, B>) -> Result<()>;
    /// See [`ActMul`].
    fn act_mul(&mut self, op: ActMul<'_, B>) -> Result<()>;
    /// See [`RopeKv`].
    fn rope_kv(&mut self, op: RopeKv<'_, B>) -> Result<()>;
    /// See [`Attention`].
    fn attention(&mut self, op: Attention<'_, B>) -> Result<()>;
    /// See [`Gather`].
    fn gather(&mut self, op: Gather<'_, B>) -> Result<()>;
    /// See [`Softcap`].
    fn softcap(&mut self, op: Softcap<'_, B>) -> Result<()>;
    /// See [`Sample`].
    fn sample(&mut self, op: Sample<'_, B>) -> Result<()>;
    /// See [`LinearActMul`].
    fn linear_act_mul(&mut self, op: LinearActMul<'_, B>) -> Result<()> {
        self.linear(Linear {
            out: op.gate_up,
            x: op.x,
            weight: op.weight,
            bias: op.bias,
            residual: None,
            live: op.live,
        })?;
        self.act_mul(ActMul { out: op.out, gate_up: op.gate_up, activation: op.activation, live: op.live })
    }
    /// See [`Route`].
    fn route(&mut self, op: Route<'_, B>) -> Result<()>;
    /// See [`GroupedLinear`].
    fn grouped_linear(&mut self, op: GroupedLinear<'_, B>) -> Result<()>;
    /// See [`GroupedLinearActMul`].
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, B>) -> Result<()>;
    /// See [`Combine`].
    fn combine(&mut self, op: Combine<'_, B>) -> Result<()>;
    /// See [`LatentKv`].
    fn latent_kv(&mut self, op: LatentKv<'_, B>) -> Result<()>;
    /// See [`LatentAttention`].
    fn latent_attention(&mut self, op: LatentAttention<'_, B>) -> Result<()>;
    /// See [`HeadLinear`].
    fn head_linear(&mut self, op: HeadLinear<'_, B>) -> Result<()>;
}

/// Checks operations and hands them to a backend's [`Recorder`]. The first failure is kept,
/// everything after it is skipped, and [`Backend::run`] or [`Backend::record`] returns it.
pub struct Encoder<'a, B: Backend> {
    recorder: &'a mut B::Recorder,
    device: &'a B,
    error: Option<Error>,
}

macro_rules! checked {
    ($($(#[$doc:meta])* $name:ident: $op:ident;)*) => {
        $($(#[$doc])*
        pub fn $name(&mut self, op: $op<'_, B>) {
            if self.error.is_none() {
                let done = op.check(self.device).and_then(|()| self.recorder.$name(op));
                self.error = done.err();
            }
        })*
    };
}

impl<'a, B: Backend> Encoder<'a, B> {
    /// Wraps a backend's recorder; called by backends in `run` and `record`.
    pub fn new(device: &'a B, recorder: &'a mut B::Recorder) -> Self {
        Encoder { recorder, device, error: None }
    }

    /// The first failure, if there was one; called by backends when recording ended.
    ///
    /// # Errors
    /// That failure.
    pub fn finish(self) -> Result<()> {
        self.error.map_or(Ok(()), Err)
    }

    /// Binds the live counts for the operations that follow.
    pub fn header(&mut self, header: &Tensor<B>) {
        self.recorder.header(header);
    }

    checked! {
        /// Looks up embedding rows: see [`Embed`].
        embed: Embed;
        /// RMS normalisation: see [`Norm`].
        norm: Norm;
        /// Matrix product with epilogue: see [`Linear`].
        linear: Linear;
        /// Gated activation: see [`ActMul`].
        act_mul: ActMul;
        /// QK-norm, rotary embedding and KV store: see [`RopeKv`].
        rope_kv: RopeKv;
        /// Paged attention: see [`Attention`].
        attention: Attention;
        /// Copies chosen rows: see [`Gather`].
        gather: Gather;
        /// Bounds logits: see [`Softcap`].
        softcap: Softcap;
        /// Log-probabilities and the next token: see [`Sample`].
        sample: Sample;
        /// [`Linear`] followed by [`ActMul`]: see [`LinearActMul`].
        linear_act_mul: LinearActMul;
        /// Chooses experts and sorts pairs: see [`Route`].
        route: Route;
        /// A product for each expert: see [`GroupedLinear`].
        grouped_linear: GroupedLinear;
        /// [`GroupedLinear`] with gated activation: see [`GroupedLinearActMul`].
        grouped_linear_act_mul: GroupedLinearActMul;
        /// Adds up what experts made of each row: see [`Combine`].
        combine: Combine;
        /// Norm of latents, rotation and store: see [`LatentKv`].
        latent_kv: LatentKv;
        /// Attention over latents: see [`LatentAttention`].
        latent_attention: LatentAttention;
        /// A product for each head: see [`HeadLinear`].
        head_linear: HeadLinear;
    }
}
