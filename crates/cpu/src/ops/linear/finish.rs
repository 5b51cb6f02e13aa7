//! The epilogue of products with panels: scales, bias, residual, gated activation, and the store.
use super::{Done, LinearOp};
use crate::ops::act_mul::activated;
use crate::panels::{Form, PANEL};
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd, load_up_to, store_up_to};
use crate::view::View;
use std::ops::Range;

impl LinearOp {
    /// Turns the sums of `panels` in `acc` (`[packed rows][panels][32]`) into rows of the output.
    pub(super) fn finish(&self, ctx: &Context, done: Done<'_>, panels: Range<usize>, acc: &[f32]) {
        let form = self.weight.form().map_or(Form::Pairs, Form::rows);
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
        if self.done.rows.is_empty() {
            return;
        }
        // SAFETY: the sums are promised; a row's columns of these panels belong to this task.
        unsafe {
            match (self.form, self.op.activation.is_some()) {
                (Form::Pairs, false) => self.rows::<S, FLOATS, false>(s),
                (Form::Pairs, true) => self.rows::<S, FLOATS, true>(s),
                (_, false) => self.rows::<S, INTEGERS, false>(s),
                (_, true) => self.rows::<S, INTEGERS, true>(s),
            }
        }
    }
}

/// What sums are: those of floats are whole, those of integers are i32 that the scales of row and output
/// feature belong to.
const FLOATS: bool = false;
const INTEGERS: bool = true;

/// Sixteen output features of a panel.
struct Tile<S: Simd> {
    /// Column of the output, and how many there are.
    first: usize,
    len: usize,
    scales: S::V,
    bias: Option<S::V>,
}

/// Sums of one row, and what makes them its outputs.
struct Sums {
    row: *const f32,
    scale: f32,
    /// The row's rest.
    rest: Option<(*const f32, f32)>,
}

impl Finish<'_> {
    /// # Safety
    /// The promise of [`Finish`], and that nobody else uses the outputs.
    #[inline(always)]
    unsafe fn rows<S: Simd, const KIND: bool, const GATED: bool>(&self, s: S) {
        let Finish { op, done, .. } = self;
        let stride = self.panels.len() * PANEL;
        let rows = done.start + done.rows.start..done.start + done.rows.end;
        let place = |view: &View| {
            // There are all rows.
            view.row::<f32>(rows.end - 1);
            (view.row::<f32>(rows.start).cast::<u8>(), view.row_bytes())
        };
        let (out, residual) = (place(&op.out), op.residual.as_ref().map(place));
        for (column, panel) in self.panels.clone().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let tiles = [self.tile::<S, KIND>(s, panel, 0), self.tile::<S, KIND>(s, panel, 1)];
                for i in 0..rows.len() {
                    let (packed, scale, rest) = match KIND {
                        FLOATS => (done.rows.start + i, 1.0, None),
                        _ => done.x.row(done.rows.start + i),
                    };
                    let row = self.acc.add((packed - done.first) * stride + column * PANEL);
                    let sums = Sums { row, scale, rest: rest.map(|scale| (row.add(stride), scale)) };
                    let out = out.0.add(i * out.1).cast::<f32>();
                    let mut v = [sums.load::<S, KIND>(s, 0, &tiles[0]), sums.load::<S, KIND>(s, LANES, &tiles[1])];
                    if GATED && let Some(activation) = op.activation {
                        // A gated weight's first half is as wide as the output.
                        let v = s.mul(activated(s, activation, v[0]), v[1]);
                        store_up_to(s, out.wrapping_add(tiles[0].first), v, tiles[0].len);
                        continue;
                    }
                    if let Some((first, stride)) = residual {
                        let residual = first.add(i * stride).cast::<f32>();
                        for (v, tile) in v.iter_mut().zip(&tiles) {
                            *v = s.add(*v, load_up_to(s, residual.wrapping_add(tile.first), tile.len));
                        }
                    }
                    for (v, tile) in v.into_iter().zip(&tiles) {
                        store_up_to(s, out.wrapping_add(tile.first), v, tile.len);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The promise of [`Finish`].
    #[inline(always)]
    unsafe fn tile<S: Simd, const KIND: bool>(&self, s: S, panel: usize, t: usize) -> Tile<S> {
        let (first, end) = self.op.weight.tile_rows(panel, t);
        let len = end.saturating_sub(first);
        // SAFETY: a panel of integers has scales, the bias as many elements as there are output features.
        unsafe {
            Tile {
                first,
                len,
                scales: if KIND == INTEGERS {
                    s.load(self.op.weight.scales(panel).add(t * LANES))
                } else {
                    s.splat(1.0)
                },
                bias: self.op.bias.as_ref().map(|bias| load_up_to(s, bias.flat::<f32>().wrapping_add(first), len)),
            }
        }
    }
}

impl Sums {
    /// The outputs of a tile, `at` sums after the row's first, without the residual.
    ///
    /// # Safety
    /// The sums are there.
    #[inline(always)]
    unsafe fn load<S: Simd, const KIND: bool>(&self, s: S, at: usize, tile: &Tile<S>) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            let mut v = sums::<S, KIND>(s, self.row.add(at));
            if KIND == INTEGERS {
                v = s.mul(v, s.splat(self.scale));
                if let Some((rest, scale)) = self.rest {
                    v = s.fma(sums::<S, KIND>(s, rest.add(at)), s.splat(scale), v);
                }
                v = s.mul(v, tile.scales);
            }
            match tile.bias {
                Some(bias) => s.add(v, bias),
                None => v,
            }
        }
    }
}

/// # Safety
/// There are sixteen sums.
#[inline(always)]
unsafe fn sums<S: Simd, const KIND: bool>(s: S, p: *const f32) -> S::V {
    // SAFETY: the caller's promise.
    unsafe { if KIND == INTEGERS { s.load_i32(p.cast()) } else { s.load(p) } }
}
