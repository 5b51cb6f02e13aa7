//! `grouped_linear` and `grouped_linear_act_mul`: `linear`'s f32 kernel, whose workgroups look up their expert.
use super::linear::{Product, ROWS, TILE, product};
use super::{act_mul, check_apart};
use crate::encoder::{Call, WgpuRecorder};
use crate::weight::Part;
use crate::{WgpuBackend, WgpuWeight};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::ops::{ActMul, GroupedLinear, GroupedLinearActMul};
use anyfleet_tensor::{Live, Result, Tensor};

/// Rows of an average expert from which on workgroups share tiles: half of a tile's.
const TILED: usize = TILE.0 / 2;

/// Where the rows of each expert are.
pub(super) struct Experts<'a> {
    /// Rows of `out`.
    pairs: usize,
    stack: usize,
    rows: Option<&'a Tensor<WgpuBackend>>,
    offsets: &'a Tensor<WgpuBackend>,
    hits: &'a Tensor<WgpuBackend>,
}

impl Experts<'_> {
    /// Rows of a workgroup. A workgroup computes as many whether it has them or not, and a matrix is read once for each:
    /// twice an average expert's rows, up to what the kernels take, leave most experts one workgroup a panel.
    pub(super) fn rows_together(&self) -> usize {
        if self.pairs >= TILED * self.stack {
            return TILE.0;
        }
        (2 * self.pairs).div_ceil(self.stack).next_power_of_two().clamp(1, ROWS)
    }

    /// Runs of `together` rows that all experts of a part may have: what `experts.wgsl` counts for the most hits.
    pub(super) fn runs(&self, part: &Part, together: usize) -> usize {
        let hits = part.matrices().len().min(self.pairs);
        (self.pairs + (together - 1) * hits) / together
    }

    /// Tells the kernel.
    pub(super) fn state(&self, recorder: &WgpuRecorder, call: &mut Call, op: &Product<'_>, part: &Part) -> Result<()> {
        call.parts.push(wgsl::EXPERTS);
        call.flags.push("EXPERTS");
        for list in [Some(self.offsets), Some(self.hits), self.rows].into_iter().flatten() {
            check_apart(op.name, op.out, list)?;
        }
        let offsets = recorder.bind(call, 7, false, self.offsets)?;
        let hits = recorder.bind(call, 8, false, self.hits)?;
        let mut index = 0;
        if let Some(rows) = self.rows {
            call.flags.push("X_ROWS");
            index = recorder.bind(call, 9, false, rows)?;
        }
        let (matrices, most_hits) = (part.matrices(), self.hits.len() - 1);
        call.params.extend([
            matrices.start as u32,
            matrices.len() as u32,
            self.stack as u32,
            offsets,
            hits,
            most_hits as u32,
            index,
            op.x.rows() as u32,
        ]);
        Ok(())
    }
}

fn grouped<'a>(name: &'static str, op: &GroupedLinear<'a, WgpuBackend>) -> Product<'a> {
    let GroupedLinear { out, x, rows, weight, offsets, hits } = *op;
    let weight: &WgpuWeight = weight;
    let experts = Some(Experts { pairs: out.rows(), stack: weight.stack(), rows, offsets, hits });
    let (bias, residual, activation, heads, live) = (None, None, None, None, Live::All);
    Product { name, out, x, weight, bias, residual, activation, experts, heads, live }
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &GroupedLinear<'_, WgpuBackend>) -> Result<()> {
    product(recorder, &grouped("grouped_linear", op))
}

/// Fused where gates lie beside what they gate; otherwise over as many rows as the experts have together.
pub(crate) fn record_gated(recorder: &mut WgpuRecorder, op: &GroupedLinearActMul<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "grouped_linear_act_mul";
    let GroupedLinearActMul { out, gate_up, activation, offsets, .. } = *op;
    let plain = op.product();
    if op.weight.gated() {
        let product = grouped(OP, &GroupedLinear { out, ..plain });
        return self::product(recorder, &Product { activation: Some(activation), ..product });
    }
    product(recorder, &grouped(OP, &plain))?;
    let pairs = (offsets.len() - 1) as u32;
    let op = ActMul { out, gate_up, activation, live: Live::All };
    act_mul::record_live(recorder, &op, |recorder, call| recorder.live_word(call, offsets, pairs))
}
