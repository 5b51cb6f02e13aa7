//! Turns checked operations into a [`CpuPlan`].
use crate::CpuBackend;
use crate::ops::act_mul::ActMulOp;
use crate::ops::attention::AttentionOp;
use crate::ops::combine::CombineOp;
use crate::ops::embed::EmbedOp;
use crate::ops::gather::GatherOp;
use crate::ops::grouped_linear::GroupedLinearOp;
use crate::ops::latent_kv::LatentKvOp;
use crate::ops::linear::LinearOp;
use crate::ops::norm::NormOp;
use crate::ops::rope_kv::RopeKvOp;
use crate::ops::route::RouteOp;
use crate::ops::sample::SampleOp;
use crate::ops::softcap::SoftcapOp;
use crate::plan::{CpuPlan, Step};
use crate::view::View;
use anyfleet_tensor::ops::{
    ActMul, Attention, Combine, Embed, Gather, GroupedLinear, GroupedLinearActMul, HeadLinear, LatentAttention,
    LatentKv, Linear, LinearActMul, Norm, RopeKv, Route, Sample, Softcap,
};
use anyfleet_tensor::{DType, Error, Live, Recorder, Result, Tensor};

/// Collects operations; the views in it keep their buffers alive.
#[derive(Default)]
pub struct CpuRecorder {
    steps: Vec<Step>,
    has_header: bool,
    error: Option<Error>,
}

impl CpuRecorder {
    pub(crate) fn finish(self) -> Result<CpuPlan> {
        self.error.map_or(Ok(()), Err)?;
        let mut steps = self.steps;
        let weights: Vec<_> = steps
            .iter()
            .filter_map(|step| if let Step::Linear(op) = step { Some(op.weight().clone()) } else { None })
            .collect();
        let (mut next, mut asked) = (weights.iter().cycle().skip(1), false);
        for step in &mut steps {
            match step {
                Step::Linear(op) => {
                    op.between(asked, next.next().cloned());
                    asked = op.weight().form().is_some();
                }
                // Reads so much that what was asked for before may be gone.
                Step::Attention(_) | Step::GroupedLinear(_) => asked = false,
                _ => {}
            }
        }
        Ok(CpuPlan(steps))
    }

    fn push(&mut self, op: &'static str, live: Live, step: Step) -> Result<()> {
        if live != Live::All && !self.has_header {
            return Err(Error::Shape {
                op,
                what: "no header is bound",
                details: format!("rows are bounded by {live:?}"),
                remedy: "bind one with Encoder::header, or use Live::All",
            });
        }
        self.steps.push(step);
        Ok(())
    }

    fn bind(header: &Tensor<CpuBackend>) -> Result<View> {
        let view = View::new("header", header)?;
        if view.dtype() == DType::U32 && view.rows() * view.cols() >= 4 {
            return Ok(view);
        }
        Err(Error::Shape {
            op: "header",
            what: "header must be 4 u32",
            details: format!("{header:?}"),
            remedy: "see StepHeader",
        })
    }
}

impl Recorder<CpuBackend> for CpuRecorder {
    fn header(&mut self, header: &Tensor<CpuBackend>) {
        match Self::bind(header) {
            Ok(view) => {
                self.steps.push(Step::Header(view));
                self.has_header = true;
            }
            Err(e) => {
                self.error.get_or_insert(e);
            }
        }
    }
    fn embed(&mut self, op: Embed<'_, CpuBackend>) -> Result<()> {
        self.push("embed", op.live, Step::Embed(EmbedOp::new(&op)?))
    }
    fn norm(&mut self, op: Norm<'_, CpuBackend>) -> Result<()> {
        self.push("norm", op.live, Step::Norm(NormOp::new(&op)?))
    }
    fn linear(&mut self, op: Linear<'_, CpuBackend>) -> Result<()> {
        self.push("linear", op.live, Step::Linear(LinearOp::new(&op)?))
    }
    fn linear_act_mul(&mut self, op: LinearActMul<'_, CpuBackend>) -> Result<()> {
        if op.weight.is_gated() {
            return self.push("linear_act_mul", op.live, Step::Linear(LinearOp::gated(&op)?));
        }
        let LinearActMul { out, gate_up, x, weight, bias, activation, live } = op;
        self.linear(Linear { out: gate_up, x, weight, bias, residual: None, live })?;
        self.act_mul(ActMul { out, gate_up, activation, live })
    }
    fn act_mul(&mut self, op: ActMul<'_, CpuBackend>) -> Result<()> {
        self.push("act_mul", op.live, Step::ActMul(ActMulOp::new(&op)?))
    }
    fn rope_kv(&mut self, op: RopeKv<'_, CpuBackend>) -> Result<()> {
        self.push("rope_kv", op.live, Step::RopeKv(RopeKvOp::new(&op)?))
    }
    fn attention(&mut self, op: Attention<'_, CpuBackend>) -> Result<()> {
        self.push("attention", op.live, Step::Attention(AttentionOp::new(&op)?))
    }
    fn gather(&mut self, op: Gather<'_, CpuBackend>) -> Result<()> {
        self.push("gather", op.live, Step::Gather(GatherOp::new(&op)?))
    }
    fn softcap(&mut self, op: Softcap<'_, CpuBackend>) -> Result<()> {
        self.push("softcap", op.live, Step::Softcap(SoftcapOp::new(&op)?))
    }
    fn sample(&mut self, op: Sample<'_, CpuBackend>) -> Result<()> {
        self.push("sample", op.live, Step::Sample(SampleOp::new(&op)?))
    }
    fn route(&mut self, op: Route<'_, CpuBackend>) -> Result<()> {
        self.push("route", op.live, Step::Route(RouteOp::new(&op)?))
    }
    fn grouped_linear(&mut self, op: GroupedLinear<'_, CpuBackend>) -> Result<()> {
        self.push("grouped_linear", Live::All, Step::GroupedLinear(GroupedLinearOp::new(&op)?))
    }
    fn grouped_linear_act_mul(&mut self, op: GroupedLinearActMul<'_, CpuBackend>) -> Result<()> {
        self.push("grouped_linear_act_mul", Live::All, Step::GroupedLinear(GroupedLinearOp::gated(&op)?))
    }
    fn combine(&mut self, op: Combine<'_, CpuBackend>) -> Result<()> {
        self.push("combine", op.live, Step::Combine(CombineOp::new(&op)?))
    }
    fn latent_kv(&mut self, op: LatentKv<'_, CpuBackend>) -> Result<()> {
        self.push("latent_kv", op.live, Step::LatentKv(LatentKvOp::new(&op)?))
    }
    fn latent_attention(&mut self, op: LatentAttention<'_, CpuBackend>) -> Result<()> {
        self.push("latent_attention", op.live, Step::Attention(AttentionOp::latent(&op)?))
    }
    /// A product for each head: its columns, with its matrix.
    fn head_linear(&mut self, op: HeadLinear<'_, CpuBackend>) -> Result<()> {
        let HeadLinear { out, x, weight, live } = op;
        let (x_head, out_head) = op.strides();
        for head in 0..weight.stack() {
            let weight = &weight.matrix(head);
            let (out, x) = (&out.columns(head * out_head, weight.rows()), &x.columns(head * x_head, weight.cols()));
            let product = LinearOp::new(&Linear { out, x, weight, bias: None, residual: None, live })?;
            self.push("head_linear", live, Step::Linear(product))?;
        }
        Ok(())
    }
}
