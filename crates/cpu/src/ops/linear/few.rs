//! Products that wait for memory: few rows, and panels that are read once.
use super::{Done, LinearOp};
use crate::panels::eights::{self, Widen};
use crate::panels::pack::Packed;
use crate::panels::stream::{self, Stream};
use crate::panels::{self, Form, Meanwhile, PANEL, Product, STREAMS};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Kernel, Simd};
use crate::team::{Piece, share};
use std::ops::Range;

/// Bytes of each panel of a stage: while a stage is worked on from the second-level cache, the next one comes
/// there from memory.
const STAGE_BYTES: usize = 32 * 1024;

/// A part of a few panels: `bytes` of each of `panels` panels, `stride` apart.
struct Stage {
    first: *const u8,
    stride: usize,
    panels: usize,
    bytes: usize,
}

impl Stage {
    /// Where product `index` of `count`, which asks for `len` bytes of each of its streams, asks for them:
    /// `count` products together for the whole stage, as far as they have room; `elsewhere` what is left.
    fn ask(&self, index: usize, len: usize, elsewhere: *const u8) -> [*const u8; STREAMS] {
        std::array::from_fn(|stream| {
            let slot = index * STREAMS + stream;
            let (panel, start) = (slot % self.panels, slot / self.panels * len);
            if start < self.bytes { self.first.wrapping_add(panel * self.stride + start) } else { elsewhere }
        })
    }
}

/// An expert with a row or two.
pub(in crate::ops) struct FewRows {
    /// The product with its matrix.
    pub(in crate::ops) op: LinearOp,
    pub(in crate::ops) rows: Range<usize>,
    /// Packed rows, at most [`stream::ROWS`], in one group.
    pub(in crate::ops) packed: Range<usize>,
}

/// A row or two of each of several experts times their panels, all of which the threads share out as if they were one
/// matrix. `x` has all rows from the first on.
pub(in crate::ops) fn stream_experts(ctx: &Context, form: Form, x: &Packed<'_>, experts: &[FewRows]) {
    let Some(first) = experts.first() else { return };
    let panels = first.op.weight.panels();
    let panel = |item: usize| experts[item / panels].op.weight.panel(item % panels);
    let width = |left| stream::width(ctx.kernels, form, left);
    let all = experts.len() * panels;
    ctx.each_share(all, width, |piece| {
        let mut item = piece.items.start;
        while item < piece.items.end {
            let FewRows { op, rows, packed } = &experts[item / panels];
            let first = item % panels;
            // As many as are left of this matrix, of a size there is.
            let count = width((panels - first).min(piece.items.end - item));
            let after = item + count;
            if !stream::takes(ctx.kernels, form) {
                let next = (panel(if after < all { after } else { item }), op.weight.panel_stride());
                let done = Done { x, first: packed.start, rows: rows.clone(), start: 0 };
                op.multiply_widened(ctx, done, packed.len(), first..first + count, next);
                item = after;
                continue;
            }
            with_scratch([stream::ROWS * count * PANEL], |[acc]| {
                let stream = Stream {
                    form,
                    rows: packed.len(),
                    x: x.place(packed.start),
                    x_block: x.block_bytes,
                    x_row: x.row_bytes(),
                    sums: x.sums.wrapping_add(packed.start * x.sums_stride),
                    sums_stride: x.sums_stride,
                    w: panel(item),
                    panel_stride: op.weight.panel_stride(),
                    panels: count,
                    blocks: form.blocks(op.weight.cols()),
                    next: panel(if after < all { after } else { item }),
                    next_stride: op.weight.panel_stride(),
                    acc: acc.as_mut_ptr(),
                };
                // The promise of `Stream` holds: x, the panels and the sums have these shapes.
                stream.run(ctx.kernels);
                let done = Done { x, first: packed.start, rows: rows.clone(), start: 0 };
                op.finish(ctx, done, first..first + count, acc);
            });
            item = after;
        }
    });
}

impl LinearOp {
    /// A row or two times panels that are read once, several at a time, each thread its share.
    pub(super) fn stream_rows(&self, ctx: &Context, form: Form, x: &Packed<'_>, rows: Range<usize>) {
        let weight = &self.weight;
        let width = |left| stream::width(ctx.kernels, form, left);
        ctx.each_share(weight.panels(), width, |piece| {
            let (next, next_stride) = self.after(ctx, &piece);
            with_scratch([stream::ROWS * piece.items.len() * PANEL], |[acc]| {
                let stream = Stream {
                    form,
                    rows: x.rows(),
                    x: x.at(0),
                    x_block: x.block_bytes,
                    x_row: x.row_bytes(),
                    sums: x.sums,
                    sums_stride: x.sums_stride,
                    w: weight.panel(piece.items.start),
                    panel_stride: weight.panel_stride(),
                    panels: piece.items.len(),
                    blocks: form.blocks(weight.cols()),
                    next,
                    next_stride,
                    acc: acc.as_mut_ptr(),
                };
                // The promise of `Stream` holds: x, the panels and the sums have these shapes.
                stream.run(ctx.kernels);
                self.finish(
                    ctx,
                    Done { x, first: 0, rows: 0..rows.len(), start: rows.start },
                    piece.items.clone(),
                    acc,
                );
            });
        });
    }

    /// A few rows times panels of f8, several at a time, each thread its share.
    pub(super) fn widen_panels(&self, ctx: &Context, x: &Packed<'_>, rows: Range<usize>, piece: &Piece) {
        let done = Done { x, first: 0, rows: 0..rows.len(), start: rows.start };
        self.multiply_widened(ctx, done, x.rows(), piece.items.clone(), self.after(ctx, piece));
    }

    /// `count` packed rows times panels of f8, of which one stretch after the other becomes pairs in the first-level cache.
    /// All panels take turns, so that each is a stream from memory; `next` are those that are read after them, and how far
    /// apart.
    fn multiply_widened(
        &self,
        ctx: &Context,
        done: Done<'_>,
        count: usize,
        panels: Range<usize>,
        (next, next_stride): (*const u8, usize),
    ) {
        const STRETCH: usize = 2 * eights::GROUP;
        let (weight, x, form) = (&self.weight, done.x, Form::Eights);
        let (blocks, width) = (form.blocks(weight.cols()), panels.len() * PANEL);
        let pairs = STRETCH * Form::Pairs.block_bytes() / size_of::<f32>();
        with_scratch([count.next_multiple_of(16) * width, pairs], |[acc, wide]| {
            let (sums, out) = (acc.as_mut_ptr(), wide.as_mut_ptr().cast::<u8>());
            let parts = (0..blocks).step_by(STRETCH).flat_map(|block| (0..panels.len()).map(move |i| (block, i)));
            let products = parts.map(|(block, i)| {
                let (panel, end) = (panels.start + i, blocks.min(block + STRETCH));
                let w = weight.panel(panel).wrapping_add(block * form.block_bytes());
                let ahead = match end < blocks {
                    true => w.wrapping_add(STRETCH * form.block_bytes()),
                    false => next.wrapping_add(i * next_stride),
                };
                let scales = weight.scales(panel).wrapping_add(block / eights::GROUP * PANEL);
                // The stretch is there, and its pairs have room (the promise of `Widen`). The product before, of which
                // they were, is computed.
                Widen { w, scales, blocks: end - block, ahead, out }.run(ctx.kernels);
                Product {
                    x: x.place(done.first).wrapping_add(block * x.block_bytes),
                    rows: count,
                    w: out,
                    acc: sums.wrapping_add(i * PANEL),
                    acc_stride: width,
                    ..self.product(Form::Pairs, x, panel, block..end)
                }
            });
            // SAFETY: x, the pairs and the sums have these shapes.
            unsafe { panels::multiply(ctx.kernels, products) };
            self.finish(ctx, done, panels.clone(), acc);
        });
    }

    /// A few rows times panels that are read once, several at a time, a stage after the other, each thread its
    /// share.
    pub(super) fn stage_panels(&self, ctx: &Context, form: Form, x: &Packed<'_>, rows: Range<usize>, piece: Piece) {
        let weight = &self.weight;
        let (blocks, step) = (form.blocks(weight.cols()), (STAGE_BYTES / form.block_bytes()).max(1));
        let (panels, width) = (piece.items.clone(), piece.items.len() * PANEL);
        let stage = |block: usize| Stage {
            first: weight.panel(panels.start).wrapping_add(block * form.block_bytes()),
            stride: weight.panel_stride(),
            panels: panels.len(),
            bytes: step.min(blocks - block) * form.block_bytes(),
        };
        let first = share(weight.panels(), piece.thread, ctx.threads).start;
        if !(piece.follows || self.asked && panels.start == first) {
            ctx.kernels.run(Fetch(stage(0)));
        }
        // Scales end the panels.
        let scales = Stage { bytes: form.tail_bytes(weight.cols()), ..stage(blocks - 1) };
        let scales = Stage { first: scales.first.wrapping_add(form.block_bytes()), ..scales };
        ctx.kernels.run(Fetch(scales));
        with_scratch([x.rows().next_multiple_of(16) * width], |[acc]| {
            for block in (0..blocks).step_by(step) {
                let part = block..blocks.min(block + step);
                let next = if part.end < blocks { stage(part.end) } else { self.stage_after(ctx, &piece) };
                let products = panels.clone().enumerate().map(|(i, panel)| {
                    let product = self.product(form, x, panel, part.clone());
                    let len = part.len() * form.block_bytes() / STREAMS;
                    Product {
                        meanwhile: Meanwhile::Ask(next.ask(i, len, product.w)),
                        acc: acc.as_mut_ptr().wrapping_add(i * PANEL),
                        acc_stride: width,
                        ..product
                    }
                });
                // SAFETY: x, the panels and the sums have these shapes.
                unsafe { panels::multiply(ctx.kernels, products) };
            }
            self.finish(ctx, Done { x, first: 0, rows: 0..rows.len(), start: rows.start }, panels.clone(), acc);
        });
    }

    /// What the thread works on after a piece.
    fn stage_after(&self, ctx: &Context, piece: &Piece) -> Stage {
        let (weight, panels) = match &self.next {
            Some(next) if !piece.more => (next, share(next.panels(), piece.thread, ctx.threads)),
            _ if piece.more => (&self.weight, piece.items.end..piece.items.end + STREAMS),
            _ => (&self.weight, piece.items.clone()),
        };
        let stride = weight.panel_stride();
        // A thread may have no share.
        let first = panels.start.min(weight.panels() - 1);
        let count = panels.len().min(STREAMS).clamp(1, weight.panels() - first);
        Stage { first: weight.panel(first), stride, panels: count, bytes: stride.min(STAGE_BYTES) }
    }
}

/// Asks for a stage.
struct Fetch(Stage);

impl Kernel for Fetch {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Fetch(stage) = self;
        for line in (0..stage.bytes).step_by(64) {
            (0..stage.panels).for_each(|panel| s.prefetch(stage.first.wrapping_add(panel * stage.stride + line)));
        }
    }
}
