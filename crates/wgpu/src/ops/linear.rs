//! `linear` and `linear_act_mul`.
use super::grouped_linear::Experts;
use super::head_linear::Heads;
use super::linear_matrix::{self, Halves};
use super::{check_apart, function, same_place};
use crate::encoder::{Call, WgpuRecorder};
use crate::matrices::Matrices;
use crate::{WgpuBackend, WgpuWeight};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::ops::{Activation, Linear, LinearActMul};
use anyfleet_tensor::{Live, Result, Tensor, quant};

/// Rows a workgroup computes at most where there are few; fewer where there are fewer.
pub(super) const ROWS: usize = 8;
/// Rows and panels of a workgroup that shares tiles: `PANELS` of the kernels, and `SHARE` times `THREAD_ROWS`;
/// those of `linear_matrix.wgsl` are the same.
pub(crate) const TILE: (usize, usize) = (64, 4);

/// What a product is computed from.
enum Factors {
    /// Activations as they are, and weights widened to them.
    Floats,
    /// Bytes, which the kernel makes of activations.
    Bytes,
    /// f16, on matrix units.
    Halves(Matrices, Halves),
}

impl Factors {
    fn choose(recorder: &mut WgpuRecorder, op: &Product<'_>, tiled: bool) -> Result<Factors> {
        if op.experts.is_some() || op.heads.is_some() {
            return Ok(Factors::Floats);
        }
        if let Some(matrices) = recorder.context.matrices.filter(|_| tiled) {
            return Ok(Factors::Halves(matrices, Halves::record(recorder, op)?));
        }
        let bytes = recorder.context.variant.packed() && op.weight.quantized() && op.weight.cols() <= quant::FEATURES;
        Ok(if bytes { Factors::Bytes } else { Factors::Floats })
    }

    /// The kernel, with what it is to be told of rows and tiles.
    fn call(&self, name: &'static str, tiled: bool) -> Call {
        let own: &[&str] = match self {
            Factors::Floats => &[wgsl::LINEAR_X, wgsl::LINEAR],
            Factors::Bytes => &[wgsl::LINEAR_X, wgsl::LINEAR_PACKED],
            Factors::Halves(..) => &[wgsl::LINEAR_MATRIX],
        };
        let shared = [wgsl::COMMON, wgsl::EXACT, wgsl::WEIGHT, wgsl::ACTIVATION, wgsl::LINEAR_COMMON];
        let mut call = Call::new(name, &[&shared[..], own].concat());
        match self {
            Factors::Halves(matrices, _) => linear_matrix::state(&mut call, *matrices),
            Factors::Bytes => call.flags.push("PACKED"),
            Factors::Floats => {}
        }
        if tiled && !matches!(self, Factors::Halves(..)) {
            call.flags.push("TILED");
        }
        call
    }
}

pub(super) struct Product<'a> {
    pub(super) name: &'static str,
    pub(super) out: &'a Tensor<WgpuBackend>,
    pub(super) x: &'a Tensor<WgpuBackend>,
    pub(super) weight: &'a WgpuWeight,
    pub(super) bias: Option<&'a Tensor<WgpuBackend>>,
    pub(super) residual: Option<&'a Tensor<WgpuBackend>>,
    pub(super) activation: Option<Activation>,
    /// Which rows each matrix of a stack has.
    pub(super) experts: Option<Experts<'a>>,
    /// Of a stack of which each matrix has its own columns.
    pub(super) heads: Option<Heads>,
    pub(super) live: Live,
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Linear<'_, WgpuBackend>) -> Result<()> {
    let Linear { out, x, weight, bias, residual, live } = *op;
    let (activation, experts, heads) = (None, None, None);
    product(recorder, &Product { name: "linear", out, x, weight, bias, residual, activation, experts, heads, live })
}

/// The fused form; false where the weight is not kept so.
pub(crate) fn record_gated(recorder: &mut WgpuRecorder, op: &LinearActMul<'_, WgpuBackend>) -> Result<bool> {
    if !op.weight.gated() {
        return Ok(false);
    }
    let LinearActMul { out, x, weight, bias, activation, live, .. } = *op;
    let (name, activation, residual, experts, heads) = ("linear_act_mul", Some(activation), None, None, None);
    product(recorder, &Product { name, out, x, weight, bias, residual, activation, experts, heads, live })?;
    Ok(true)
}

pub(super) fn product(recorder: &mut WgpuRecorder, op: &Product<'_>) -> Result<()> {
    check_apart(op.name, op.out, op.x)?;
    let rows = match &op.experts {
        Some(experts) => experts.rows_together(),
        None if op.out.rows() >= TILE.0 => TILE.0,
        None => ROWS.min(op.out.rows().max(1).next_power_of_two()),
    };
    let tiled = rows == TILE.0;
    let factors = Factors::choose(recorder, op, tiled)?;
    for part in op.weight.parts() {
        let mut call = factors.call(op.name, tiled);
        call.flags.push(op.weight.flag());
        call.constants.push(("ROWS", rows as u32));
        let live = recorder.live(&mut call, op.live)?;
        call.bind_range(2, false, part.range());
        let (mut x, mut x_stride) = (0, op.x.row_stride());
        if let Factors::Halves(_, halves) = &factors {
            halves.bind(&mut call);
            x_stride = halves.stride;
        } else {
            x = recorder.bind(&mut call, 3, false, op.x)?;
            let whole = |n: usize| n.is_multiple_of(4);
            let head = op.heads.as_ref().map_or(0, |heads| heads.x);
            if whole(x as usize) && whole(x_stride) && whole(op.x.cols()) && whole(head) {
                call.flags.push("X_VECTORS");
            }
        }
        let out = recorder.bind(&mut call, 4, true, op.out)?;
        let (mut bias, mut residual, mut residual_stride) = (0, 0, 0);
        if let Some(tensor) = op.bias {
            check_apart(op.name, op.out, tensor)?;
            call.flags.push("BIAS");
            bias = recorder.bind(&mut call, 5, false, tensor)?;
        }
        if let Some(tensor) = op.residual {
            if same_place(op.out, tensor) {
                call.flags.push("IN_PLACE");
            } else {
                check_apart(op.name, op.out, tensor)?;
                call.flags.push("RESIDUAL");
                residual = recorder.bind(&mut call, 6, false, tensor)?;
                residual_stride = tensor.row_stride() as u32;
            }
        }
        let mut activation = 0;
        if let Some(wanted) = op.activation {
            call.flags.push("ACTIVATION");
            activation = function(op.name, wanted)?;
        }
        call.params = vec![
            op.out.rows() as u32,
            live,
            op.weight.cols() as u32,
            op.weight.steps() as u32,
            part.first_lane() as u32,
            op.weight.rows() as u32,
            u32::from(op.weight.gated()),
            activation,
            part.multipliers() as u32,
            part.scales() as u32,
            x,
            x_stride as u32,
            out,
            op.out.row_stride() as u32,
            bias,
            residual,
            residual_stride,
            part.panels() as u32,
        ];
        let mut runs = op.out.rows().div_ceil(rows);
        if let Some(experts) = &op.experts {
            experts.state(recorder, &mut call, op, part)?;
            runs = experts.runs(part, rows);
        }
        if let Some(heads) = &op.heads {
            heads.state(&mut call, part, op.out.rows(), rows);
            runs = heads.runs(part, op.out.rows(), rows);
        }
        let panels = if tiled { part.panels().div_ceil(TILE.1) } else { part.panels() };
        call.grid(panels, runs);
        recorder.push(call);
    }
    Ok(())
}
