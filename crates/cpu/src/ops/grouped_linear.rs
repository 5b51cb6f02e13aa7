//! `grouped_linear` and `grouped_linear_act_mul`: one product after the other, each with the rows of one expert.
use super::act_mul::ActMulOp;
use super::linear::LinearOp;
use crate::CpuBackend;
use crate::panels::pack::Rows;
use crate::plan::Context;
use crate::view::View;
use anyfleet_tensor::ops::{ActMul, GroupedLinear, GroupedLinearActMul};
use anyfleet_tensor::{Live, Result};

pub(crate) struct GroupedLinearOp {
    product: LinearOp,
    offsets: View,
    hits: View,
    /// Of weights that keep no gates beside what they gate.
    act_mul: Option<ActMulOp>,
}

impl GroupedLinearOp {
    pub(crate) fn new(op: &GroupedLinear<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("grouped_linear", tensor);
        let (offsets, hits) = (view(op.offsets)?, view(op.hits)?);
        Ok(GroupedLinearOp { product: LinearOp::of_expert(op, None)?, offsets, hits, act_mul: None })
    }

    pub(crate) fn gated(op: &GroupedLinearActMul<'_, CpuBackend>) -> Result<Self> {
        let GroupedLinearActMul { out, gate_up, activation, .. } = *op;
        let plain = op.product();
        let act_mul = ActMulOp::new(&ActMul { out, gate_up, activation, live: Live::All })?;
        if op.weight.is_gated() {
            let product = LinearOp::of_expert(&GroupedLinear { out, ..plain }, Some(activation))?;
            return Ok(GroupedLinearOp { product, act_mul: None, ..GroupedLinearOp::new(&plain)? });
        }
        Ok(GroupedLinearOp { act_mul: Some(act_mul), ..GroupedLinearOp::new(&plain)? })
    }

    pub(crate) fn execute(&self, ctx: &Context, packed: &mut Rows) {
        let hits = self.hits.u32_at(0) as usize;
        let expert = |hit: usize| self.hits.u32_at(1 + hit) as usize;
        let mut end = 0;
        for hit in 0..hits {
            let member = expert(hit);
            let rows = self.offsets.u32_at(member) as usize..self.offsets.u32_at(member + 1) as usize;
            end = rows.end;
            let next = (hit + 1 < hits).then(|| expert(hit + 1));
            self.product.with_matrix(member, next).multiply(ctx, packed, rows);
        }
        if let Some(act_mul) = &self.act_mul {
            act_mul.activate(ctx, end);
        }
    }
}
