//! Products with f32 and f16 weights: one chain of fused multiply-adds over K for each output.
//!
//! Up to twelve rows (six on narrow sets) go straight over the stored panels, which are then the only memory
//! that matters. More rows are cut into groups: a group's x and sums stay in the second-level cache, a K block
//! of two panels in the first-level cache, and all rows of the group use it.
use super::LinearOp;
use crate::matmul::{self, Block, K_BLOCK, packed_k};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, LANES};
use std::ops::Range;

/// Panels whose sums a task of few rows holds at a time.
const STRIP: usize = 8;
/// Rows that share a K block of the weight while it is in the first-level cache.
const ROW_GROUP: usize = 96;
/// Most panels of a task of many rows.
const PANEL_GROUP: usize = 16;
/// Panels of that block.
const PAIR: usize = 2;

impl LinearOp {
    pub(super) fn multiply_floats<C: Cell>(&self, ctx: &Context, rows: Range<usize>) {
        let panels = self.weight.panels();
        if rows.is_empty() {
            return;
        }
        if rows.len() <= matmul::max_block_rows(ctx.kernels) {
            let strips = panels.div_ceil(STRIP);
            let elements = STRIP * LANES * self.weight.cols();
            return ctx.split(strips, elements, |range| {
                self.few_rows::<C>(ctx, rows.clone(), range.start * STRIP..panels.min(range.end * STRIP));
            });
        }
        let row_groups = rows.len().div_ceil(ROW_GROUP);
        let wanted = (ctx.threads * 3).div_ceil(row_groups);
        let width = panels.div_ceil(wanted).next_multiple_of(PAIR).min(PANEL_GROUP);
        let panel_groups = panels.div_ceil(width);
        ctx.each(row_groups * panel_groups, |task| {
            let (r, p) = (rows.start + task / panel_groups * ROW_GROUP, task % panel_groups * width);
            self.many_rows::<C>(ctx, r..rows.end.min(r + ROW_GROUP), p..panels.min(p + width));
        });
    }

    /// All of `rows` rows for `panels`, straight from the stored weight.
    fn few_rows<C: Cell>(&self, ctx: &Context, rows: Range<usize>, panels: Range<usize>) {
        let (k, first_row, count) = (self.weight.cols(), rows.start, rows.len());
        let packed = if count == 1 { 0 } else { packed_k(k) };
        with_scratch([count * packed, count * STRIP * LANES], |[x, acc]| {
            if count > 1 {
                // SAFETY: row `r` of x has k columns.
                unsafe { matmul::pack_rows(ctx.kernels, count, k, |r| self.x.row(first_row + r), x) };
            }
            let x = if count == 1 { self.x.row(first_row) } else { x.as_ptr() };
            for first in panels.clone().step_by(STRIP) {
                let width = STRIP.min(panels.end - first);
                for (row, size) in matmul::blocks(ctx.kernels, count) {
                    let block = Block {
                        x: x.wrapping_add(row * packed),
                        rows: size,
                        w: self.weight.cells::<C>(first),
                        panel_stride: self.weight.panel_stride() / size_of::<C>(),
                        panels: width,
                        k,
                        acc: acc[row * STRIP * LANES..].as_mut_ptr(),
                        acc_stride: STRIP * LANES,
                        resume: false,
                    };
                    // SAFETY: x, the panels and the sums have these shapes.
                    unsafe { matmul::multiply(ctx.kernels, &block) };
                }
                self.finish_floats(rows.clone(), first * LANES, width * LANES, acc, STRIP * LANES);
            }
        });
    }

    /// A group of rows times a group of panels.
    fn many_rows<C: Cell>(&self, ctx: &Context, rows: Range<usize>, panels: Range<usize>) {
        let (k, count, width) = (self.weight.cols(), rows.len(), panels.len() * LANES);
        with_scratch([count * packed_k(k), count * width], |[x, acc]| {
            // SAFETY: row `r` of x has k columns.
            unsafe { matmul::pack_rows(ctx.kernels, count, k, |r| self.x.row(rows.start + r), x) };
            for start in (0..k).step_by(K_BLOCK) {
                let len = K_BLOCK.min(k - start);
                for pair in panels.clone().step_by(PAIR) {
                    for (row, size) in matmul::blocks(ctx.kernels, count) {
                        let block = Block {
                            x: x[row * packed_k(k) + start * size..].as_ptr(),
                            rows: size,
                            w: self.weight.cells::<C>(pair).wrapping_add(start * LANES),
                            panel_stride: self.weight.panel_stride() / size_of::<C>(),
                            panels: PAIR.min(panels.end - pair),
                            k: len,
                            acc: acc[row * width + (pair - panels.start) * LANES..].as_mut_ptr(),
                            acc_stride: width,
                            resume: start > 0,
                        };
                        // SAFETY: x, the panels and the sums have these shapes.
                        unsafe { matmul::multiply(ctx.kernels, &block) };
                    }
                }
            }
            self.finish_floats(rows, panels.start * LANES, width, acc, width);
        });
    }

    /// Adds bias and residual, in this order, and stores `width` columns from `column` on; the last
    /// panel's padding is dropped. `acc` starts at the first row.
    fn finish_floats(&self, rows: Range<usize>, column: usize, width: usize, acc: &mut [f32], acc_stride: usize) {
        let width = width.min(self.out.cols() - column);
        for (i, row) in rows.enumerate() {
            let sums = &mut acc[i * acc_stride..][..width];
            if let Some(bias) = &self.bias {
                // SAFETY: the bias has `N` elements and is not written meanwhile.
                let bias = unsafe { std::slice::from_raw_parts(bias.flat::<f32>().add(column), width) };
                sums.iter_mut().zip(bias).for_each(|(sum, b)| *sum += b);
            }
            if let Some(residual) = &self.residual {
                // SAFETY: these columns of this row belong to this task, also where it is `out`.
                let residual = unsafe { std::slice::from_raw_parts(residual.row::<f32>(row).add(column), width) };
                sums.iter_mut().zip(residual).for_each(|(sum, r)| *sum += r);
            }
            // SAFETY: these columns of this row belong to this task.
            unsafe { self.out.row::<f32>(row).add(column).copy_from_nonoverlapping(sums.as_ptr(), width) };
        }
    }
}
