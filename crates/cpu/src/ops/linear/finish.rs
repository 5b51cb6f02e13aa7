//! The epilogue of products with panels: scales, bias, residual, gated activation, and the store.
use super::{Done, LinearOp};
use crate::ops::act_mul::activated;
use crate::panels::{Form, PANEL};
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, store_up_to};
use std::ops::Range;

impl LinearOp {
    /// Turns the sums of `panels` in `acc` (`[packed rows][panels][32]`) into rows of the output.
    pub(super) fn finish(&self, ctx: &Context, done: Done<'_>, panels: Range<usize>, acc: &[f32]) {
        let form = self.weight.form().unwrap_or(Form::Pairs);
        let end = done.rows.end.checked_sub(1).map_or(0, |last| done.x.row(last).0 + 1);
        assert!(acc.len() >= end.saturating_sub(done.first) * panels.len() * PANEL, "linear: sums up to row {end}");
        ctx.kernels.run(Finish { op: self, form, done, panels, acc: acc.as_ptr() });
    }
}

/// All rows and panels of a task. Whoever makes the value promises the sums.
struct Finish<'a> {
    op: &'a LinearOp,
    form: Form,
    done: Done<'a>,
    panels: Range<usize>,
    acc: *const f32,
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (op, stride) = (self.op, self.panels.len() * PANEL);
        let bias = op.bias.as_ref().map(|bias| bias.flat::<f32>());
        for i in self.done.rows.clone() {
            let (row, (packed, scale, rest)) = (self.done.start + i, self.done.x.row(i));
            let packed = packed - self.done.first;
            let out = op.out.row::<f32>(row);
            let residual = op.residual.as_ref().map(|r| r.row::<f32>(row).cast_const());
            for (column, panel) in self.panels.clone().enumerate() {
                let tile = |t: usize| {
                    let (first, end) = op.weight.tile_rows(panel, t);
                    let sums = self.acc.wrapping_add(packed * stride + column * PANEL + t * LANES);
                    let tile = Tile {
                        form: self.form,
                        sums,
                        scale,
                        rest: rest.map(|scale| (sums.wrapping_add(stride), scale)),
                        scales: op.weight.scales(panel).wrapping_add(t * LANES),
                        bias: bias.map(|bias| bias.wrapping_add(first)),
                        len: end.saturating_sub(first),
                    };
                    (tile, first)
                };
                let ((low, first), (high, second)) = (tile(0), tile(1));
                // SAFETY: the sums are promised; a row's columns of these panels belong to this task.
                unsafe {
                    if let Some(activation) = op.activation {
                        // A gated weight's first half is as wide as the output.
                        let v = s.mul(activated(s, activation, low.load(s)), high.load(s));
                        store_up_to(s, out.wrapping_add(first), v, low.len);
                    } else {
                        low.store(s, residual.map(|r| r.wrapping_add(first)), out.wrapping_add(first));
                        high.store(s, residual.map(|r| r.wrapping_add(second)), out.wrapping_add(second));
                    }
                }
            }
        }
    }
}

/// Sixteen sums of one row, and what makes them outputs. Whoever makes the value promises sixteen sums and
/// scales, and `len` elements of the bias.
struct Tile {
    form: Form,
    /// f32, for bytes i32.
    sums: *const f32,
    /// The row's.
    scale: f32,
    /// Sums and scale of the row's rest.
    rest: Option<(*const f32, f32)>,
    /// Those of the output features, for bytes.
    scales: *const f32,
    bias: Option<*const f32>,
    /// Output features that exist.
    len: usize,
}

impl Tile {
    /// # Safety
    /// The promise of [`Tile`].
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, s: S) -> S::V {
        // SAFETY: the promise.
        unsafe {
            let sums = |p: *const f32| if self.form == Form::Bytes { s.load_i32(p.cast()) } else { s.load(p) };
            let mut v = sums(self.sums);
            if self.form != Form::Pairs {
                v = s.mul(v, s.splat(self.scale));
                if let Some((rest, scale)) = self.rest {
                    v = s.fma(sums(rest), s.splat(scale), v);
                }
            }
            if self.form == Form::Bytes {
                v = s.mul(v, s.load(self.scales));
            }
            self.bias.map_or(v, |bias| s.add(v, load_up_to(s, bias, self.len)))
        }
    }

    /// # Safety
    /// The promise of [`Tile`], and `len` elements at the pointers, which belong to the caller.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, residual: Option<*const f32>, out: *mut f32) {
        // SAFETY: the promise.
        unsafe {
            let v = self.load(s);
            let v = residual.map_or(v, |residual| s.add(v, load_up_to(s, residual, self.len)));
            store_up_to(s, out, v, self.len);
        }
    }
}
