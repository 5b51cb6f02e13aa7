//! `linear` and `linear_act_mul`: activations times a packed weight, with the epilogue.
//!
//! bf16, q8, q4 and f8 weights go the way of [`panels`](crate::panels): a few rows read the panels once, as
//! streams from memory; more keep panels, or parts of them, in a cache while all rows use them. f32 and f16 weights are in
//! [`floats`].
pub(super) mod few;
mod finish;
mod floats;

use super::act_mul::check_activation;
use crate::CpuBackend;
use crate::panels::eights::Widen;
use crate::panels::ints::Expand;
use crate::panels::pack::{Packed, Rows};
use crate::panels::stream;
use crate::panels::{self, Form, Meanwhile, PANEL, Product, ROW, STREAMS};
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::Isa;
use crate::team::{Piece, share};
use crate::view::{Chosen, View, check_apart};
use crate::weight::CpuWeight;
use anyfleet_tensor::ops::{Activation, GroupedLinear, Linear, LinearActMul};
use anyfleet_tensor::{DType, Live, Result, WeightFormat};
use half::f16;
use std::ops::Range;

#[derive(Clone)]
pub(crate) struct LinearOp {
    out: View,
    x: Chosen,
    weight: CpuWeight,
    bias: Option<View>,
    residual: Option<View>,
    /// The output is `activation(gate) * up` of a gated weight.
    activation: Option<Activation>,
    live: Live,
    /// What is multiplied next.
    next: Option<CpuWeight>,
    /// The product before asks for the first panels, and little is read in between.
    asked: bool,
}

/// Most packed rows whose panels are read as one stream.
const FEW: usize = 32;
/// Most rows at a time, and bytes of their packed form: they stay in the second-level cache.
const CHUNK: usize = 512;
const CHUNK_BYTES: usize = 1024 * 1024;
/// Most panels of a task over such rows, and their bytes.
const PANELS: usize = 8;
const PANELS_BYTES: usize = 448 * 1024;
/// Packed rows the matrix unit takes at a time.
const GROUP: usize = 32;
/// Bytes between asking and use where panels of f8 are widened.
const AHEAD: usize = 8192;
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
        let (weight, live, x) = (op.weight.clone(), op.live, Chosen { view: x, rows: None });
        Ok(LinearOp { out, x, weight, bias, residual, activation: None, live, next: None, asked: false })
    }

    /// The fused form, for a weight that keeps gates beside what they gate.
    pub(crate) fn gated(op: &LinearActMul<'_, CpuBackend>) -> Result<Self> {
        check_activation("linear_act_mul", op.activation)?;
        let view = |tensor| View::new("linear_act_mul", tensor);
        let (out, x, bias) = (view(op.out)?, view(op.x)?, op.bias.map(view).transpose()?);
        for input in bias.iter().chain([&x]) {
            check_apart("linear_act_mul", &out, input)?;
        }
        let (weight, activation, x) = (op.weight.clone(), Some(op.activation), Chosen { view: x, rows: None });
        Ok(LinearOp { out, x, weight, bias, residual: None, activation, live: op.live, next: None, asked: false })
    }

    pub(crate) fn weight(&self) -> &CpuWeight {
        &self.weight
    }

    /// Says what is multiplied next, so that it can be asked for in time, and whether the product before says so
    /// of this one shortly before it.
    pub(crate) fn between(&mut self, asked: bool, next: Option<CpuWeight>) {
        self.asked = asked;
        self.next = next.filter(|weight| weight.form().is_some());
    }

    /// The same for rows `x`, and `out`, with another matrix: that of an expert.
    pub(super) fn of_expert(op: &GroupedLinear<'_, CpuBackend>, activation: Option<Activation>) -> Result<Self> {
        const OP: &str = "grouped_linear";
        let view = |tensor| View::new(OP, tensor);
        let (out, x, rows) = (view(op.out)?, view(op.x)?, op.rows.map(view).transpose()?);
        for input in rows.iter().chain([&x]) {
            check_apart(OP, &out, input)?;
        }
        let (weight, x, live) = (op.weight.clone(), Chosen { view: x, rows }, Live::All);
        Ok(LinearOp { out, x, weight, bias: None, residual: None, activation, live, next: None, asked: false })
    }

    /// The same product with matrix `member` of the stack, before one with matrix `next`.
    pub(super) fn with_matrix(&self, member: usize, next: Option<usize>) -> Self {
        let next = next.map(|next| self.weight.matrix(next)).filter(|weight| weight.form().is_some());
        LinearOp { weight: self.weight.matrix(member), next, ..self.clone() }
    }

    pub(crate) fn execute(&self, ctx: &Context, packed: &mut Rows) {
        self.multiply(ctx, packed, 0..ctx.live(self.live, self.out.rows()));
    }

    /// The form of its weights, and rows packed in it for products of a row or two each; nothing for weights without one.
    pub(super) fn packed_for_streams<'a>(
        &self,
        ctx: &Context,
        packed: &'a mut Rows,
        rows: Range<usize>,
    ) -> Option<(Form, Packed<'a>)> {
        let form = self.weight.form()?;
        Some((form, packed.pack_for_streams(ctx, form.rows(), &self.x, rows)))
    }

    /// These rows.
    pub(super) fn multiply(&self, ctx: &Context, packed: &mut Rows, rows: Range<usize>) {
        match (self.weight.form(), self.weight.format()) {
            (Some(form), _) => self.multiply_panels(ctx, form, packed, rows),
            (None, WeightFormat::Float(DType::F32)) => self.multiply_floats::<f32>(ctx, rows),
            (None, _) => self.multiply_floats::<f16>(ctx, rows),
        }
    }

    fn multiply_panels(&self, ctx: &Context, form: Form, packed: &mut Rows, rows: Range<usize>) {
        let panels = self.weight.panels();
        let chunk = self.chunk(form, rows.len());
        for first in rows.clone().step_by(chunk) {
            let chunk = first..rows.end.min(first + chunk);
            let x = packed.pack(ctx, form.rows(), &self.x, chunk.clone());
            if x.rows() <= stream::ROWS && stream::takes(ctx.kernels, form) {
                self.stream_rows(ctx, form, &x, chunk);
            } else if x.rows() <= FEW && form == Form::Eights {
                let width = |left: usize| left.min(STREAMS);
                ctx.each_share(panels, width, |piece| self.widen_panels(ctx, &x, chunk.clone(), &piece));
            } else if x.rows() <= FEW && form != Form::Nibbles {
                let width = |left: usize| left.min(STREAMS);
                ctx.each_share(panels, width, |piece| self.stage_panels(ctx, form, &x, chunk.clone(), piece));
            } else {
                let fit = (PANELS_BYTES / self.worked(form).1).clamp(1, PANELS);
                let width = panels.div_ceil(ctx.threads * 3).min(fit);
                ctx.each_share(panels, |_| width, |piece| self.block_panels(ctx, form, &x, chunk.clone(), piece));
            }
        }
    }

    /// The form that many rows are multiplied with, and bytes of a panel of it.
    fn worked(&self, form: Form) -> (Form, usize) {
        match form {
            Form::Nibbles => (Form::Bytes, form.blocks(self.weight.cols()) * Form::Bytes.block_bytes()),
            Form::Eights => (Form::Pairs, form.blocks(self.weight.cols()) * Form::Pairs.block_bytes()),
            _ => (form, self.weight.panel_stride()),
        }
    }

    /// Rows to take at a time of `rows`: equal parts that stay in a cache.
    fn chunk(&self, form: Form, rows: usize) -> usize {
        let row_bytes = form.blocks(self.weight.cols()) * ROW;
        let most = (CHUNK_BYTES / row_bytes).clamp(4 * GROUP, CHUNK);
        rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(GROUP).max(GROUP)
    }

    /// What a thread reads after a piece of this weight's panels, and how far apart panels are there.
    fn after(&self, ctx: &Context, piece: &Piece) -> (*const u8, usize) {
        match &self.next {
            Some(next) if !piece.more => {
                (next.panel(share(next.panels(), piece.thread, ctx.threads).start), next.panel_stride())
            }
            _ => {
                let stride = self.weight.panel_stride();
                (self.weight.panel(piece.items.start).wrapping_add(piece.items.len() * stride), stride)
            }
        }
    }

    /// What the `index`th product of a task over `panels` panels asks for of those that come `next`, as much as
    /// a product asks for, until all was.
    fn later(&self, next: *const u8, index: usize, panels: usize, blocks: usize) -> *const u8 {
        let start = index * blocks * 256;
        if start < panels * self.weight.panel_stride() { next.wrapping_add(start) } else { self.weight.panel(0) }
    }

    /// Blocks `blocks` of panel `panel`, for all packed rows.
    fn product(&self, form: Form, x: &Packed<'_>, panel: usize, blocks: Range<usize>) -> Product {
        Product {
            form,
            x: x.at(blocks.start),
            group_bytes: x.group_bytes,
            rows: x.rows(),
            sums: x.sums_at(blocks.start),
            sums_stride: x.sums_stride,
            w: self.weight.panel(panel).wrapping_add(blocks.start * form.block_bytes()),
            regrouped: false,
            meanwhile: Meanwhile::Nothing,
            blocks: blocks.len(),
            acc: std::ptr::null_mut(),
            acc_stride: PANEL,
            resume: blocks.start > 0,
        }
    }

    /// Many rows times panels that stay in a cache while all rows use them: on the matrix unit all of each
    /// in the second level, elsewhere a part of each in the first level.
    fn block_panels(&self, ctx: &Context, form: Form, x: &Packed<'_>, rows: Range<usize>, piece: Piece) {
        let (later, _) = self.after(ctx, &piece);
        let panels = piece.items;
        let (blocks, width) = (form.blocks(self.weight.cols()), panels.len() * PANEL);
        let (form, stride) = self.worked(form);
        // Where every row is one packed row, a group's sums become outputs while they are at hand.
        let (part, step) = if ctx.kernels.isa() == Isa::Amx { (blocks, GROUP) } else { (BLOCKS, usize::MAX) };
        let step = if x.rows() == rows.len() { step } else { usize::MAX };
        let regrouped = panels::regroups(ctx.kernels, form);
        let kept = self.weight.form().unwrap_or(form);
        let room = |needed: bool| if needed { panels.len() * stride / 4 } else { 0 };
        let sizes = [x.rows().min(step).next_multiple_of(16) * width, room(form != kept), room(regrouped)];
        with_scratch(sizes, |[acc, expanded, ordered]| {
            let sums = acc.as_mut_ptr();
            let mut first_panel = self.weight.panel(panels.start);
            if form != kept {
                let (panel_stride, out) = (self.weight.panel_stride(), expanded.as_mut_ptr().cast::<u8>());
                if kept == Form::Eights {
                    for (i, panel) in panels.clone().enumerate() {
                        let (w, scales) = (self.weight.panel(panel), self.weight.scales(panel));
                        let (ahead, out) = (w.wrapping_add(AHEAD), out.wrapping_add(i * stride));
                        // The panel is there, and its pairs have room (the promise of `Widen`).
                        Widen { w, scales, blocks, ahead, out }.run(ctx.kernels);
                    }
                } else {
                    // The panels are there, and their bytes have room (the promise of `Expand`).
                    ctx.kernels.dots(Expand { w: first_panel, panel_stride, panels: panels.len(), blocks, out });
                }
                first_panel = out;
            }
            if regrouped {
                let out = ordered.as_mut_ptr().cast::<u8>();
                // SAFETY: the panels are there, and have room.
                unsafe { panels::regroup(ctx.kernels, first_panel, panels.len() * stride, out) };
                first_panel = out;
            }
            for first in (0..x.rows()).step_by(step.min(x.rows())) {
                let count = step.min(x.rows() - first);
                let row = if x.rows() == rows.len() { rows.start + first } else { rows.start };
                let parts =
                    (0..blocks).step_by(part).flat_map(|block| (0..panels.len()).map(move |panel| (block, panel)));
                let products = parts.map(|(block, panel)| {
                    let index = first / GROUP * panels.len() + panel;
                    let column = self.weight.tile_rows(panels.start + panel, 0).0;
                    let part = block..blocks.min(block + part);
                    Product {
                        x: x.at(block).wrapping_add(first / GROUP * (GROUP / 16) * x.group_bytes),
                        rows: count,
                        w: first_panel.wrapping_add(panel * stride + block * form.block_bytes()),
                        regrouped,
                        meanwhile: if ctx.kernels.isa() == Isa::Amx {
                            let out = self.out.row::<f32>(row).wrapping_add(column).cast();
                            let later = self.later(later, index, panels.len(), blocks);
                            Meanwhile::Claim { out, stride: self.out.row_bytes(), later }
                        } else {
                            Meanwhile::Nothing
                        },
                        acc: sums.wrapping_add(panel * PANEL),
                        acc_stride: width,
                        ..self.product(form, x, panels.start + panel, part)
                    }
                });
                // SAFETY: x, the panels and the sums have these shapes.
                unsafe { panels::multiply(ctx.kernels, products) };
                let done = if count == x.rows() { 0..rows.len() } else { first..first + count };
                self.finish(ctx, Done { x, first, rows: done, start: rows.start }, panels.clone(), acc);
            }
        });
    }
}

/// Sums that are complete.
struct Done<'a> {
    x: &'a Packed<'a>,
    /// The packed row of the first sums.
    first: usize,
    /// Rows they belong to, counted from the first of `x`, which is row `start` of the output.
    rows: Range<usize>,
    start: usize,
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use crate::weight::FORMATS;
    use anyfleet_tensor::ops::{ActMul, Activation, Linear, LinearActMul};
    use anyfleet_tensor::{Backend, DType, Live, WeightFormat, quant};

    /// The definition: one accumulator, fused multiply-adds in order, then bias, then residual; for bf16,
    /// q8 and q4 that of `panels` and `quant`.
    fn naive(x: &[f32], w: &[f32], bias: Option<f32>, residual: Option<f32>, store: WeightFormat) -> f32 {
        let sum = match store {
            WeightFormat::Float(DType::BF16) => pairs(x, w),
            WeightFormat::F8 => {
                let (mut q, mut scales) = (vec![0; w.len()], vec![0.0; w.len().div_ceil(quant::F8_GROUP)]);
                quant::f8_row(w, &mut q, &mut scales);
                let value = |(k, &q): (usize, &u8)| quant::f8_value(q, scales[k / quant::F8_GROUP]).to_f32();
                pairs(x, &q.iter().enumerate().map(value).collect::<Vec<_>>())
            }
            WeightFormat::Float(dtype) => dot(x, &w.iter().map(|&v| round(v, dtype)).collect::<Vec<_>>()),
            WeightFormat::Q8 => {
                let mut q = vec![0; w.len()];
                let scale = quant::q8_row(w, &mut q);
                integers(x, |x| x.iter().zip(&q).map(|(&x, &q)| i32::from(x) * i32::from(q)).sum::<i32>() as f32)
                    * scale
            }
            _ => {
                let (mut q, mut multipliers) = (vec![0; w.len()], vec![0; w.len().div_ceil(quant::GROUP)]);
                let scale = quant::q4_row(w, &mut q, &mut multipliers);
                let weight = |k: usize| i32::from(q[k]) * i32::from(multipliers[k / quant::GROUP]);
                let sum = |x: &[i8]| (0..x.len()).map(|k| i32::from(x[k]) * weight(k)).sum::<i32>() as f32;
                integers(x, sum) * scale
            }
        };
        let sum = bias.map_or(sum, |b| sum + b);
        residual.map_or(sum, |r| sum + r)
    }

    fn dot(x: &[f32], w: &[f32]) -> f32 {
        x.iter().zip(w).fold(0.0f32, |sum, (&x, &w)| x.mul_add(w, sum))
    }

    fn pairs(x: &[f32], w: &[f32]) -> f32 {
        x.chunks(32).zip(w.chunks(32)).fold(0.0f32, |sum, (x, w)| {
            let every_other =
                |v: &[f32], first| v.iter().skip(first).step_by(2).map(|&v| round(v, DType::BF16)).collect();
            let [even, odd] = [0, 1].map(|first| {
                let (x, w): (Vec<f32>, Vec<f32>) = (every_other(x, first), every_other(w, first));
                dot(&x, &w)
            });
            sum + (even + odd)
        })
    }

    /// Sums of a row's bytes, scaled, and of its rest.
    fn integers(x: &[f32], sum: impl Fn(&[i8]) -> f32) -> f32 {
        let row = quant::ByteRow::new(x);
        let whole = sum(&row.bytes) * row.scale;
        row.rest.map_or(whole, |(scale, bytes)| sum(&bytes).mul_add(scale, whole))
    }

    /// Some rows have outliers, one is zero.
    fn activations(seed: u64, rows: usize, k: usize) -> Vec<f32> {
        let mut x = random(seed, rows * k);
        for (r, row) in x.chunks_mut(k).enumerate() {
            match r % 4 {
                1 => row[r % k] *= 90.0,
                2 if rows > 20 => row.fill(0.0),
                _ => {}
            }
        }
        x
    }

    #[test]
    fn every_set_shape_and_row_count_has_the_naive_bits() {
        for (rows, n, k) in [
            (1, 1, 1),
            (1, 1, 2),
            (1, 1, 3),
            (1, 1, 4),
            (1, 1, 5),
            (1, 1, 8),
            (1, 1, 9),
            (1, 1, 16),
            (1, 1, 17),
            (1, 1, 33),
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
            for store in FORMATS {
                let (x, w) = (activations(6, rows, k), random(7, n * k));
                let (bias, residual) = (random(8, n), random(9, rows * n));
                let products: Vec<f32> = (0..rows * n)
                    .map(|i| naive(&x[i / n * k..][..k], &w[i % n * k..][..k], None, None, store))
                    .collect();
                let want = |r: usize, c: usize, full: bool| {
                    let sum = products[r * n + c];
                    if full { (sum + bias[c]) + residual[r * n + c] } else { sum }
                };
                for device in devices() {
                    let weight = weight_in(&device, &w, k, store, rows % 2 == 0 && n % 2 == 0);
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
        for (rows, k, width) in [(1, 20, 25), (3, 20, 25), (40, 70, 33), (2, 64, 16)] {
            for store in FORMATS {
                for device in devices() {
                    let source = random(1, 2 * width * k);
                    let x = tensor(&device, &activations(2, rows, k), &[rows, k]);
                    let bias = tensor(&device, &random(3, 2 * width), &[2 * width]);
                    let poison = vec![POISON; rows * width];
                    let [a, b] = [(); 2].map(|()| tensor(&device, &poison, &[rows, width]));
                    let gate_up = tensor(&device, &[poison.clone(), poison].concat(), &[rows, 2 * width]);
                    let (activation, live, bias) = (Activation::Silu, Live::All, Some(&bias));
                    let [gated, plain] = [true, false].map(|gated| weight_in(&device, &source, k, store, gated));
                    bind(&device, 3, |enc| {
                        let (x, gate_up) = (&x, &gate_up);
                        enc.linear_act_mul(LinearActMul {
                            out: &a,
                            gate_up,
                            x,
                            weight: &gated,
                            bias,
                            activation,
                            live,
                        });
                        enc.linear(Linear { out: gate_up, x, weight: &plain, bias, residual: None, live });
                        enc.act_mul(ActMul { out: &b, gate_up, activation, live });
                    });
                    assert_eq!(read(&device, &a), read(&device, &b), "{} {store} {rows} rows", device.caps().device);
                }
            }
        }
    }

    #[test]
    fn scales_of_f8_may_be_of_any_size() {
        let (n, k) = (40, 300);
        let mut w = random(1, n * k);
        // Of one tile of sixteen features some groups of some.
        for i in [0, 3, 9] {
            w[(16 + i) * k + 128..][..128].iter_mut().for_each(|w| *w *= (120f32 + i as f32 / 2.0).exp2());
        }
        for (rows, exponent) in [(1, -20), (1, -100), (2, -100), (3, -20), (40, -100)] {
            let x: Vec<f32> = random(2, rows * k).iter().map(|x| x * 2f32.powi(exponent)).collect();
            for device in devices() {
                let weight = weight_in(&device, &w, k, WeightFormat::F8, false);
                let out = tensor(&device, &vec![POISON; rows * n], &[rows, n]);
                let x_tensor = tensor(&device, &x, &[rows, k]);
                bind(&device, rows as u32, |enc| {
                    let (out, x, weight, live) = (&out, &x_tensor, &weight, Live::All);
                    enc.linear(Linear { out, x, weight, bias: None, residual: None, live });
                });
                for (i, got) in read(&device, &out).into_iter().enumerate() {
                    let (r, c) = (i / n, i % n);
                    let want = naive(&x[r * k..][..k], &w[c * k..][..k], None, None, WeightFormat::F8);
                    assert_eq!(got.to_bits(), want.to_bits(), "{} ({r}, {c})", device.caps().device);
                }
            }
        }
    }

    #[test]
    fn features_whose_scale_is_none_become_nan_alone() {
        let (n, k) = (40, 300);
        let mut w = random(1, n * k);
        // Of the last group of one feature.
        w[7 * k + 290] = f32::INFINITY;
        for device in devices() {
            let weight = weight_in(&device, &w, k, WeightFormat::F8, false);
            for rows in [1, 40] {
                let (x, out) = (tensor(&device, &random(2, rows * k), &[rows, k]), vec![POISON; rows * n]);
                let out = tensor(&device, &out, &[rows, n]);
                bind(&device, rows as u32, |enc| {
                    let (x, weight, live) = (&x, &weight, Live::All);
                    enc.linear(Linear { out: &out, x, weight, bias: None, residual: None, live });
                });
                let got = read(&device, &out);
                assert!(got.iter().enumerate().all(|(i, v)| v.is_nan() == (i % n == 7)), "{}", device.caps().device);
            }
        }
    }

    #[test]
    fn rows_that_are_not_finite_become_nan_alone() {
        for device in devices() {
            for store in [WeightFormat::Q8, WeightFormat::Q4] {
                let weight = weight_in(&device, &random(1, 20 * 40), 40, store, false);
                let mut x = random(2, 3 * 40);
                (x[41], x[100]) = (f32::NAN, f32::INFINITY);
                let (x, out) = (tensor(&device, &x, &[3, 40]), tensor(&device, &[POISON; 60], &[3, 20]));
                bind(&device, 3, |enc| {
                    let (x, weight, live) = (&x, &weight, Live::All);
                    enc.linear(Linear { out: &out, x, weight, bias: None, residual: None, live });
                });
                let got = read(&device, &out);
                assert!(got[..20].iter().all(|v| v.is_finite()) && got[20..].iter().all(|v| v.is_nan()));
            }
        }
    }
}
