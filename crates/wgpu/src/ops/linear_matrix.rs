//! `linear` on matrix units: what `linear.rs` leaves to it.
use super::linear::Product;
use crate::encoder::{Call, Range, WgpuRecorder};
use crate::matrices::Matrices;
use anyfleet_kernels::wgsl;
use anyfleet_tensor::{Result, StepSizes};

/// Input features of a tile: `DEPTH` of `linear_matrix.wgsl`.
const DEPTH: usize = 32;
/// Halves that a kernel reads at once.
const HALVES: usize = 4;

/// Activations of a product as halves.
pub(super) struct Halves {
    range: Range,
    /// From a row to the next, as the kernel counts.
    pub(super) stride: usize,
}

/// Halves of a row, and bytes of all rows with their exponents.
fn sizes(rows: usize, cols: usize) -> (usize, usize) {
    let halves = cols.next_multiple_of(DEPTH);
    (halves, rows * halves * 2 + rows * 4)
}

/// The most that [`Halves::record`] asks of scratch memory.
pub(crate) fn scratch_bytes(steps: &StepSizes) -> usize {
    sizes(steps.tokens, steps.widest).1
}

impl Halves {
    /// Records what makes them.
    pub(super) fn record(recorder: &mut WgpuRecorder, op: &Product<'_>) -> Result<Halves> {
        let rows = op.x.rows();
        let (cols, bytes) = sizes(rows, op.x.cols());
        let range = recorder.context.scratch(bytes)?;
        let mut call = Call::new("linear_halves", &[wgsl::COMMON, wgsl::LINEAR_HALVES]);
        let live = recorder.live(&mut call, op.live)?;
        let x = recorder.bind(&mut call, 2, false, op.x)?;
        call.bind_range(3, true, range.clone());
        let (width, stride) = (op.x.cols() as u32, op.x.row_stride() as u32);
        call.params = vec![rows as u32, live, width, x, stride, (cols / 2) as u32];
        call.grid(rows, 1);
        recorder.push(call);
        Ok(Halves { range, stride: cols / HALVES })
    }

    /// Gives them to the product.
    pub(super) fn bind(&self, call: &mut Call) {
        call.bind_range(3, false, self.range.clone());
    }
}

/// States to the kernel what it runs on.
pub(super) fn state(call: &mut Call, matrices: Matrices) {
    call.constants.extend([("FRAGMENT", matrices.fragment), ("SUBGROUP", matrices.subgroup)]);
    if matrices.fragment == 16 {
        call.flags.push("FRAGMENT_16");
    }
}
