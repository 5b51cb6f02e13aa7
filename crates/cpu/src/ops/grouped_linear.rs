//! `grouped_linear` and `grouped_linear_act_mul`: one product after the other, each with the rows of one expert; where
//! experts have a row or two, as when answers are decoded, the threads share out all of these experts' panels at once.
use super::act_mul::ActMulOp;
use super::linear::LinearOp;
use super::linear::few::{FewRows, stream_experts};
use crate::CpuBackend;
use crate::panels::pack::Rows;
use crate::panels::stream;
use crate::plan::Context;
use crate::view::View;
use anyfleet_tensor::ops::{ActMul, GroupedLinear, GroupedLinearActMul};
use anyfleet_tensor::{Live, Result};
use std::ops::Range;

/// Most rows in all of which experts with few are looked for.
const STREAMED: usize = 512;

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
        let rows = |member: usize| self.offsets.u32_at(member) as usize..self.offsets.u32_at(member + 1) as usize;
        let end = hits.checked_sub(1).map_or(0, |last| rows(expert(last)).end);
        let mut left: Vec<usize> = (0..hits).map(expert).collect();
        if end <= STREAMED && hits > 1 {
            self.stream(ctx, packed, end, &mut left, rows);
        }
        for (i, &member) in left.iter().enumerate() {
            self.product.with_matrix(member, left.get(i + 1).copied()).multiply(ctx, packed, rows(member));
        }
        if let Some(act_mul) = &self.act_mul {
            act_mul.activate(ctx, end);
        }
    }

    /// Computes the experts that have a row or two, of `end` rows in all, and leaves the others.
    fn stream(
        &self,
        ctx: &Context,
        packed: &mut Rows,
        end: usize,
        left: &mut Vec<usize>,
        rows: impl Fn(usize) -> Range<usize>,
    ) {
        let Some((form, x)) = self.product.packed_for_streams(ctx, packed, 0..end) else { return };
        let mut few = Vec::with_capacity(left.len());
        left.retain(|&member| {
            let (rows, packed) = (rows(member), x.packed(rows(member)));
            let is_few = packed.len() <= stream::ROWS && x.together(&packed);
            if is_few {
                few.push(FewRows { op: self.product.with_matrix(member, None), rows, packed });
            }
            !is_few
        });
        stream_experts(ctx, form, &x, &few);
    }
}
