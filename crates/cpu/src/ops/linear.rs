//! `linear`: activations times a packed weight, with bias and residual.
//!
//! bf16 weights go the way of [`pairs`](crate::pairs). With others, up to twelve rows (six on narrow sets) go straight over the stored panels, which are then the only
//! memory that matters. More rows are cut into groups: a group's x and sums stay in the second-level
//! cache, a K block of two panels in the first-level cache, and all rows of the group use it.
use crate::CpuBackend;
use crate::matmul::{self, Block, K_BLOCK, packed_k};
use crate::pairs::pack::{Packed, Rows};
use crate::pairs::{self, BLOCK, PANEL, Product, STEP};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, LANES};
use crate::view::{View, check_apart};
use crate::weight::CpuWeight;
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::{DType, Live, Result};
use half::{bf16, f16};
use std::ops::Range;

pub(crate) struct LinearOp {
    out: View,
    x: View,
    weight: CpuWeight,
    bias: Option<View>,
    residual: Option<View>,
    live: Live,
}

/// Panels whose sums a task of few rows holds at a time.
const STRIP: usize = 8;
/// Rows that share a K block of the weight while it is in the first-level cache.
const ROW_GROUP: usize = 96;
/// Most panels of a task of many rows.
const PANEL_GROUP: usize = 16;
/// Panels of that block.
const PAIR: usize = 2;

/// Most rows of bf16 products whose panels are read as one stream.
const FEW: usize = 32;
/// Rows whose packed form and sums stay in the second-level cache.
const CHUNK: usize = 512;
/// Most panels of a task over such rows.
const CHUNK_PANELS: usize = 8;
/// Blocks of a panel that stay in the first-level cache.
const BLOCKS: usize = 16;

impl LinearOp {
    pub(crate) fn new(op: &Linear<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("linear", tensor);
        let (out, x) = (view(op.out)?, view(op.x)?);
        let (bias, residual) = (op.bias.map(view).transpose()?, op.residual.map(view).transpose()?);
        check_apart("linear", &out, &x)?;
        for input in bias.iter().chain(residual.as_ref().filter(|r| !r.same_place(&out))) {
            check_apart("linear", &out, input)?;
        }
        Ok(LinearOp { out, x, weight: op.weight.clone(), bias, residual, live: op.live })
    }

    pub(crate) fn execute(&self, ctx: &Context, packed: &mut Rows) {
        match self.weight.dtype() {
            DType::F32 => self.multiply::<f32>(ctx),
            DType::BF16 => self.multiply_pairs(ctx, packed),
            _ => self.multiply::<f16>(ctx),
        }
    }

    fn multiply_pairs(&self, ctx: &Context, packed: &mut Rows) {
        let (rows, panels) = (ctx.live(self.live, self.out.rows()), self.weight.panels());
        for first in (0..rows).step_by(CHUNK) {
            let chunk = first..rows.min(first + CHUNK);
            let x = packed.pack(ctx, &self.x, chunk.clone());
            if chunk.len() <= FEW {
                let elements = PANEL * self.weight.cols();
                ctx.split(panels, elements, |range| self.stream_panels(ctx, x, chunk.clone(), range));
            } else {
                let width = panels.div_ceil(ctx.threads * 3).min(CHUNK_PANELS);
                ctx.each(panels.div_ceil(width), |task| {
                    let range = task * width..panels.min((task + 1) * width);
                    self.block_panels(ctx, x, chunk.clone(), range);
                });
            }
        }
    }

    /// A few rows times panels that are read once, one after the other.
    fn stream_panels(&self, ctx: &Context, x: Packed, rows: Range<usize>, panels: Range<usize>) {
        with_scratch([rows.len().next_multiple_of(16) * PANEL], |[acc]| {
            for panel in panels {
                let product = Product {
                    x: x.at(ctx.kernels, 0, 0),
                    group_bytes: x.group_bytes,
                    rows: rows.len(),
                    w: self.weight.panel::<bf16>(panel),
                    blocks: self.weight.cols().div_ceil(BLOCK),
                    acc: acc.as_mut_ptr(),
                    acc_stride: PANEL,
                    resume: false,
                };
                // SAFETY: x, the panel and the sums have these shapes.
                unsafe { pairs::multiply(ctx.kernels, std::iter::once(product)) };
                self.finish(rows.clone(), panel * PANEL, PANEL, acc, PANEL);
            }
        });
    }

    /// Many rows: a part of a panel stays in the first-level cache while all rows use it.
    fn block_panels(&self, ctx: &Context, x: Packed, rows: Range<usize>, panels: Range<usize>) {
        let (blocks, width) = (self.weight.cols().div_ceil(BLOCK), panels.len() * PANEL);
        with_scratch([rows.len().next_multiple_of(16) * width], |[acc]| {
            let sums = acc.as_mut_ptr();
            let products =
                (0..blocks).step_by(BLOCKS).flat_map(|block| panels.clone().map(move |panel| (block, panel)));
            let products = products.map(|(block, panel)| Product {
                x: x.at(ctx.kernels, 0, block),
                group_bytes: x.group_bytes,
                rows: rows.len(),
                w: self.weight.panel::<bf16>(panel).wrapping_add(block * STEP),
                blocks: BLOCKS.min(blocks - block),
                acc: sums.wrapping_add((panel - panels.start) * PANEL),
                acc_stride: width,
                resume: block > 0,
            });
            // SAFETY: x, the panels and the sums have these shapes.
            unsafe { pairs::multiply(ctx.kernels, products) };
            self.finish(rows.clone(), panels.start * PANEL, width, acc, width);
        });
    }

    fn multiply<C: Cell>(&self, ctx: &Context) {
        let (rows, panels) = (ctx.live(self.live, self.out.rows()), self.weight.panels());
        if rows == 0 {
            return;
        }
        if rows <= matmul::max_block_rows(ctx.kernels) {
            let strips = panels.div_ceil(STRIP);
            let elements = STRIP * LANES * self.weight.cols();
            return ctx.split(strips, elements, |range| {
                self.few_rows::<C>(ctx, rows, range.start * STRIP..panels.min(range.end * STRIP));
            });
        }
        let row_groups = rows.div_ceil(ROW_GROUP);
        let wanted = (ctx.threads * 3).div_ceil(row_groups);
        let width = panels.div_ceil(wanted).next_multiple_of(PAIR).min(PANEL_GROUP);
        let panel_groups = panels.div_ceil(width);
        ctx.each(row_groups * panel_groups, |task| {
            let (r, p) = (task / panel_groups * ROW_GROUP, task % panel_groups * width);
            self.many_rows::<C>(ctx, r..rows.min(r + ROW_GROUP), p..panels.min(p + width));
        });
    }

    /// All of `rows` rows for `panels`, straight from the stored weight.
    fn few_rows<C: Cell>(&self, ctx: &Context, rows: usize, panels: Range<usize>) {
        let k = self.weight.cols();
        let packed = if rows == 1 { 0 } else { packed_k(k) };
        with_scratch([rows * packed, rows * STRIP * LANES], |[x, acc]| {
            if rows > 1 {
                // SAFETY: row `r` of x has k columns.
                unsafe { matmul::pack_rows(ctx.kernels, rows, k, |r| self.x.row(r), x) };
            }
            let x = if rows == 1 { self.x.row(0) } else { x.as_ptr() };
            for first in panels.clone().step_by(STRIP) {
                let count = STRIP.min(panels.end - first);
                for (row, size) in matmul::blocks(ctx.kernels, rows) {
                    let block = Block {
                        x: x.wrapping_add(row * packed),
                        rows: size,
                        w: self.weight.panel::<C>(first),
                        panel_stride: self.weight.panel_stride(),
                        panels: count,
                        k,
                        acc: acc[row * STRIP * LANES..].as_mut_ptr(),
                        acc_stride: STRIP * LANES,
                        resume: false,
                    };
                    // SAFETY: x, the panels and the sums have these shapes.
                    unsafe { matmul::multiply(ctx.kernels, &block) };
                }
                self.finish(0..rows, first * LANES, count * LANES, acc, STRIP * LANES);
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
                            w: self.weight.panel::<C>(pair).wrapping_add(start * LANES),
                            panel_stride: self.weight.panel_stride(),
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
            self.finish(rows, panels.start * LANES, width, acc, width);
        });
    }

    /// Adds bias and residual, in this order, and stores `width` columns from `column` on; the last
    /// panel's padding is dropped. `acc` starts at the first row.
    fn finish(&self, rows: Range<usize>, column: usize, width: usize, acc: &mut [f32], acc_stride: usize) {
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

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::ops::{ActMul, Activation, Linear, LinearActMul};
    use anyfleet_tensor::{Backend, DType, Live};

    /// The definition: one accumulator, fused multiply-adds in order, then bias, then residual; for
    /// bf16 that of `pairs`.
    fn naive(x: &[f32], w: &[f32], bias: Option<f32>, residual: Option<f32>, store: DType) -> f32 {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0f32, |sum, (&x, &w)| x.mul_add(w, sum));
        let sum = match store {
            DType::BF16 => x.chunks(32).zip(w.chunks(32)).fold(0.0f32, |sum, (x, w)| {
                let every_other =
                    |v: &[f32], first| v.iter().skip(first).step_by(2).map(|&v| round(v, store)).collect();
                let [even, odd] = [0, 1].map(|first| {
                    let (x, w): (Vec<f32>, Vec<f32>) = (every_other(x, first), every_other(w, first));
                    dot(&x, &w)
                });
                sum + (even + odd)
            }),
            _ => dot(x, w),
        };
        let sum = bias.map_or(sum, |b| sum + b);
        residual.map_or(sum, |r| sum + r)
    }

    #[test]
    fn every_set_shape_and_row_count_has_the_naive_bits() {
        for (rows, n, k) in [
            (1, 1, 1),
            (1, 300, 70),
            (2, 17, 257),
            (5, 40, 512),
            (7, 33, 100),
            (13, 50, 300),
            (29, 65, 31),
            (33, 70, 65),
            (110, 35, 260),
            (530, 40, 40),
        ] {
            for store in FLOATS {
                let (x, w) = (random(6, rows * k), random(7, n * k));
                let (bias, residual) = (random(8, n), random(9, rows * n));
                let rounded: Vec<f32> = w.iter().map(|&v| round(v, store)).collect();
                let want = |r: usize, c: usize, full: bool| {
                    let (b, s) = (full.then_some(bias[c]), full.then_some(residual[r * n + c]));
                    naive(&x[r * k..][..k], &rounded[c * k..][..k], b, s, store)
                };
                for device in devices() {
                    let weight = weight(&device, &w, k, store);
                    let bias_tensor = tensor(&device, &bias, &[n]);
                    let x_tensor = columns_of(&device, &x, rows, k);
                    let plain = tensor(&device, &vec![POISON; (rows + 1) * n], &[rows + 1, n]);
                    let added = columns_of(&device, &residual, rows, n);
                    bind(&device, rows as u32, |enc| {
                        let (out, weight) = (&plain.narrow(0, rows), &weight);
                        enc.linear(Linear {
                            out,
                            x: &x_tensor,
                            weight,
                            bias: None,
                            residual: None,
                            live: Live::Tokens,
                        });
                        let (bias, residual) = (Some(&bias_tensor), Some(&added));
                        enc.linear(Linear { out: &added, x: &x_tensor, weight, bias, residual, live: Live::All });
                    });
                    let (got, got_added) = (read(&device, &plain), read_rows(&device, &added, rows));
                    for r in 0..rows {
                        for c in 0..n {
                            let at = format!("{} {store} [{rows}, {k}] x {n}: ({r}, {c})", device.caps().device);
                            assert_eq!(got[r * n + c].to_bits(), want(r, c, false).to_bits(), "{at}");
                            assert_eq!(got_added[r * n + c].to_bits(), want(r, c, true).to_bits(), "{at}");
                        }
                    }
                    assert!(got[rows * n..].iter().all(|&v| v == POISON));
                }
            }
        }
    }

    #[test]
    fn no_rows_and_rows_past_the_live_count_stay() {
        for device in devices() {
            let weight = weight(&device, &random(1, 20 * 8), 8, FLOATS[1]);
            let x = tensor(&device, &random(2, 30 * 8), &[30, 8]);
            for live in [0, 1, 5, 20] {
                let out = tensor(&device, &[POISON; 600], &[30, 20]);
                bind(&device, live, |enc| {
                    let (x, weight) = (&x, &weight);
                    enc.linear(Linear { out: &out, x, weight, bias: None, residual: None, live: Live::Sequences })
                });
                let got = read(&device, &out);
                let (done, rest) = got.split_at(live as usize * 20);
                assert!(done.iter().all(|&v| v != POISON) && rest.iter().all(|&v| v == POISON));
            }
        }
    }

    #[test]
    fn gated_form_is_the_composition() {
        let (rows, k, width) = (3, 20, 25);
        for device in devices() {
            let weight = weight(&device, &random(1, 2 * width * k), k, FLOATS[1]);
            let x = tensor(&device, &random(2, rows * k), &[rows, k]);
            let [a, b] = [(); 2].map(|()| tensor(&device, &[POISON; 75], &[rows, width]));
            let gate_up = tensor(&device, &[POISON; 150], &[rows, 2 * width]);
            let (activation, live) = (Activation::Silu, Live::All);
            bind(&device, 3, |enc| {
                let (x, weight, bias) = (&x, &weight, None);
                enc.linear_act_mul(LinearActMul { out: &a, gate_up: &gate_up, x, weight, bias, activation, live });
                enc.linear(Linear { out: &gate_up, x, weight, bias, residual: None, live });
                enc.act_mul(ActMul { out: &b, gate_up: &gate_up, activation, live });
            });
            assert_eq!(read(&device, &a), read(&device, &b));
        }
    }
}
