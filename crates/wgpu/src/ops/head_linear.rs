//! `head_linear`: `linear`'s f32 kernel, whose workgroups have a head each.
use super::linear::{Product, product};
use crate::encoder::{Call, WgpuRecorder};
use crate::weight::Part;
use crate::{WgpuBackend, WgpuWeight};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::Result;
use anyfleet_tensor::ops::HeadLinear;

/// Elements from one head to the next.
pub(super) struct Heads {
    pub(super) x: usize,
    pub(super) out: usize,
}

impl Heads {
    /// Runs of `together` of `rows` rows, of the heads of a part.
    pub(super) fn runs(&self, part: &Part, rows: usize, together: usize) -> usize {
        part.matrices().len() * rows.div_ceil(together)
    }

    /// Tells the kernel.
    pub(super) fn state(&self, call: &mut Call, part: &Part, rows: usize, together: usize) {
        call.parts.push(wgsl::HEADS);
        call.flags.push("HEADS");
        let first = part.matrices().start;
        call.params.extend([first, self.x, self.out, rows.div_ceil(together)].map(|n| n as u32));
    }
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &HeadLinear<'_, WgpuBackend>) -> Result<()> {
    let HeadLinear { out, x, weight, live } = *op;
    let weight: &WgpuWeight = weight;
    let (x_head, out_head) = op.strides();
    if out.rows() == 0 {
        return Ok(());
    }
    let heads = Some(Heads { x: x_head, out: out_head });
    let (bias, residual, activation, experts) = (None, None, None, None);
    product(
        recorder,
        &Product { name: "head_linear", out, x, weight, bias, residual, activation, experts, heads, live },
    )
}
