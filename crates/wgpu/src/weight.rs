//! Packed weights: see `kernels/wgsl/weight.wgsl` for their order. Each matrix of a stack has whole panels of its own.
use crate::context::Context;
use crate::encoder::Range;
use anyfleet_tensor::{DType, Error, HostRow, HostWeight, Result, WeightFormat, halves, quant};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops;
use std::sync::Arc;

/// Output features of a panel: `LANES` of `weight.wgsl`.
const LANES: usize = 16;
/// Bytes that kernels count places in.
const UNIT: usize = 16;

/// A matrix or a stack of such on the device, dealt out to parts of no more panels than the device binds.
#[derive(Clone)]
pub struct WgpuWeight(Arc<Matrix>);

struct Matrix {
    stack: usize,
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
    parts: Vec<Part>,
}

/// All panels of some matrices, or some of one.
pub(crate) struct Part {
    buffer: Arc<wgpu::Buffer>,
    what: Span,
    /// Places of the multipliers and scales, in units of sixteen bytes.
    multipliers: usize,
    scales: usize,
}

/// What a part holds, matrix after matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    matrices: ops::Range<usize>,
    /// Of each.
    panels: ops::Range<usize>,
}

impl Span {
    /// Deals out `stack` matrices of `panels` panels to parts of at most `most` panels.
    fn deal(stack: usize, panels: usize, most: usize) -> Vec<Span> {
        if panels <= most {
            let together = most / panels.max(1);
            let span = |first: usize| Span { matrices: first..stack.min(first + together), panels: 0..panels };
            return (0..stack).step_by(together).map(span).collect();
        }
        let cut = |matrix: usize| {
            let span =
                move |first: usize| Span { matrices: matrix..matrix + 1, panels: first..panels.min(first + most) };
            (0..panels).step_by(most).map(span)
        };
        (0..stack).flat_map(cut).collect()
    }

    /// Panels of all matrices.
    fn count(&self) -> usize {
        self.matrices.len() * self.panels.len()
    }
}

impl Part {
    pub(crate) fn range(&self) -> Range {
        Range { buffer: self.buffer.clone(), offset: 0, size: self.buffer.size() }
    }
    /// The matrices of the stack.
    pub(crate) fn matrices(&self) -> ops::Range<usize> {
        self.what.matrices.clone()
    }
    /// The first output feature of each matrix, as lanes count them.
    pub(crate) fn first_lane(&self) -> usize {
        self.what.panels.start * LANES
    }
    /// Lanes of each matrix.
    pub(crate) fn lanes(&self) -> usize {
        self.panels() * LANES
    }
    /// Panels of each matrix.
    pub(crate) fn panels(&self) -> usize {
        self.what.panels.len()
    }
    pub(crate) fn multipliers(&self) -> usize {
        self.multipliers
    }
    pub(crate) fn scales(&self) -> usize {
        self.scales
    }
}

/// Input features of a step.
fn elements(format: WeightFormat) -> usize {
    match format {
        WeightFormat::Float(DType::F32) => 4,
        WeightFormat::Float(_) | WeightFormat::F8 => 8,
        WeightFormat::Q8 => 16,
        _ => 32,
    }
}

/// Bytes of a step of one lane.
fn step_bytes(format: WeightFormat) -> usize {
    if format == WeightFormat::F8 { 8 } else { UNIT }
}

/// Bytes of a panel's multipliers, which are the scales of groups of f8, and of its scales: those of integers, and of floats
/// the exponents that matrix units want.
fn extras(context: &Context, cols: usize, format: WeightFormat) -> (usize, usize) {
    let multipliers = match format {
        WeightFormat::Q4 => cols.div_ceil(quant::GROUP) * LANES,
        WeightFormat::F8 => cols.div_ceil(quant::F8_GROUP) * LANES * 4,
        _ => 0,
    };
    let integers = matches!(format, WeightFormat::Q8 | WeightFormat::Q4);
    (multipliers, if integers || context.matrices.is_some() { LANES * 4 } else { 0 })
}

/// Bytes of a panel with its multipliers and scales.
fn panel_bytes(context: &Context, cols: usize, format: WeightFormat) -> usize {
    let (multipliers, scales) = extras(context, cols, format);
    cols.div_ceil(elements(format)) * LANES * step_bytes(format) + multipliers + scales
}

/// Device bytes of a matrix, which has as many panels where it is gated.
pub(crate) fn bytes(context: &Context, rows: usize, cols: usize, format: WeightFormat) -> usize {
    rows.div_ceil(LANES) * panel_bytes(context, cols, format)
}

impl WgpuWeight {
    /// Matrices.
    pub(crate) fn stack(&self) -> usize {
        self.0.stack
    }
    /// Output features of each.
    pub(crate) fn rows(&self) -> usize {
        self.0.rows
    }
    pub(crate) fn cols(&self) -> usize {
        self.0.cols
    }
    pub(crate) fn gated(&self) -> bool {
        self.0.gated
    }
    pub(crate) fn steps(&self) -> usize {
        self.0.cols.div_ceil(elements(self.0.format))
    }
    pub(crate) fn parts(&self) -> &[Part] {
        &self.0.parts
    }
    /// Whether it is integers.
    pub(crate) fn quantized(&self) -> bool {
        matches!(self.0.format, WeightFormat::Q8 | WeightFormat::Q4)
    }
    /// The flag that kernels know the format by.
    pub(crate) fn flag(&self) -> &'static str {
        match self.0.format {
            WeightFormat::Float(DType::F32) => "FORMAT_F32",
            WeightFormat::Float(DType::BF16) => "FORMAT_BF16",
            WeightFormat::Float(_) => "FORMAT_F16",
            WeightFormat::Q8 => "FORMAT_Q8",
            WeightFormat::F8 => "FORMAT_F8",
            _ => "FORMAT_Q4",
        }
    }

    pub(crate) fn load(context: &Context, weight: &HostWeight<'_>) -> Result<WgpuWeight> {
        weight.check()?;
        let (stack, rows, cols, format) = (weight.stack, weight.rows(), weight.cols, weight.store);
        let gated = weight.gated && rows.is_multiple_of(2);
        if let WeightFormat::Float(dtype) = format
            && !dtype.is_float()
        {
            let reason = format!("{} keeps no matrices of {dtype}", context.name());
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let size = panel_bytes(context, cols, format);
        let most = context.limits.max_storage_buffer_binding_size.min(context.limits.max_buffer_size) as usize / size;
        if most == 0 {
            let reason = format!("sixteen rows take {size} bytes, more than {} binds", context.name());
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let mut ends = Vec::with_capacity(weight.parts.len());
        ends.extend(weight.parts.iter().scan(0, |end, part| {
            *end += part.rows;
            Some(*end)
        }));
        let packer = Packer { weight, ends, rows, cols, format, gated };
        let spans = Span::deal(stack, rows.div_ceil(LANES), most).into_iter();
        let parts = spans.map(|what| packer.part(context, what)).collect::<Result<_>>()?;
        Ok(WgpuWeight(Arc::new(Matrix { stack, rows, cols, format, gated, parts })))
    }
}

/// Brings rows of the checkpoint into panels.
struct Packer<'a> {
    weight: &'a HostWeight<'a>,
    /// Where each of the weight's parts ends, in output rows.
    ends: Vec<usize>,
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
}

/// What a thread works with: a row as numbers, as quantized ones, and its groups' multipliers and scales.
struct Row {
    values: Vec<f32>,
    quantized: Vec<i8>,
    groups: Vec<i8>,
    scales: Vec<f32>,
}

impl Packer<'_> {
    /// The output feature of lane `lane` of panel `panel` of a matrix, if there is one.
    fn row_of(&self, panel: usize, lane: usize) -> Option<usize> {
        if !self.gated {
            return Some(panel * LANES + lane).filter(|&row| row < self.rows);
        }
        let (half, width) = (self.rows / 2, LANES / 2);
        let row = panel * width + lane % width;
        (row < half).then_some(if lane < width { row } else { half + row })
    }

    fn part(&self, context: &Context, what: Span) -> Result<Part> {
        let panels = what.count();
        let panel_data = self.cols.div_ceil(elements(self.format)) * LANES * step_bytes(self.format);
        let data = panels * panel_data;
        let (multipliers, scales) = extras(context, self.cols, self.format);
        let mut bytes = vec![0u8; data + panels * (multipliers + scales)];
        let (steps_of_all, rest) = bytes.split_at_mut(data);
        let (multipliers_of_all, scales_of_all) = rest.split_at_mut(panels * multipliers);
        // A piece for each panel, of nothing where the format has no such piece.
        let panels_of_all = steps_of_all.chunks_exact_mut(panel_data.max(1));
        let work: Vec<_> = panels_of_all
            .zip(chunks(multipliers_of_all, multipliers, panels))
            .zip(chunks(scales_of_all, scales, panels))
            .collect();
        let scratch = || Row {
            values: vec![0.0; self.cols],
            quantized: vec![0; self.cols],
            groups: vec![0; self.cols.div_ceil(quant::GROUP)],
            scales: vec![0.0; self.cols.div_ceil(quant::F8_GROUP)],
        };
        work.into_par_iter().enumerate().for_each_init(scratch, |row, (panel, ((data, multipliers), scales))| {
            let matrix = what.matrices.start + panel / what.panels.len();
            let panel = what.panels.start + panel % what.panels.len();
            for lane in 0..LANES {
                if let Some(feature) = self.row_of(panel, lane) {
                    self.pack(matrix * self.rows + feature, lane, row, data, multipliers, scales);
                }
            }
        });
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = context.buffer(bytes.len(), usage, &self.weight.name)?;
        context.queue.write_buffer(&buffer, 0, &bytes);
        // What is written waits in host memory until it is submitted.
        context.queue.submit([]);
        Ok(Part {
            buffer: Arc::new(buffer),
            what,
            multipliers: data / UNIT,
            scales: (data + panels * multipliers) / UNIT,
        })
    }

    /// Puts output row `feature` of the stack into a panel's lane.
    fn pack(
        &self,
        feature: usize,
        lane: usize,
        row: &mut Row,
        data: &mut [u8],
        multipliers: &mut [u8],
        scales: &mut [u8],
    ) {
        let host = self.host_row(feature);
        let steps = data.chunks_exact_mut(step_bytes(self.format)).skip(lane).step_by(LANES);
        if self.format == WeightFormat::Float(host.dtype) {
            if !scales.is_empty() {
                host.values(&mut row.values);
                scales[4 * lane..][..4].copy_from_slice(&halves::exponent(&row.values).to_le_bytes());
            }
            let cells = host.bytes.chunks(UNIT);
            return steps.zip(cells).for_each(|(step, cells)| step[..cells.len()].copy_from_slice(cells));
        }
        if self.format == WeightFormat::F8 {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut row.quantized);
            host.f8(bytes, &mut row.scales);
            steps.zip(bytes.chunks(8)).for_each(|(step, eight)| step[..eight.len()].copy_from_slice(eight));
            for (group, scale) in row.scales.iter().enumerate() {
                multipliers[4 * (group * LANES + lane)..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            if !scales.is_empty() {
                let number = |(k, &byte): (usize, &u8)| quant::f8_value(byte, row.scales[k / quant::F8_GROUP]).to_f32();
                row.values.iter_mut().zip(bytes.iter().enumerate()).for_each(|(value, at)| *value = number(at));
                scales[4 * lane..][..4].copy_from_slice(&halves::exponent(&row.values).to_le_bytes());
            }
            return;
        }
        host.values(&mut row.values);
        match self.format {
            WeightFormat::Float(dtype) => {
                row.values.iter_mut().for_each(|value| *value = kept(dtype, *value));
                if !scales.is_empty() {
                    scales[4 * lane..][..4].copy_from_slice(&halves::exponent(&row.values).to_le_bytes());
                }
                for (step, values) in steps.zip(row.values.chunks(elements(self.format))) {
                    for (cell, &value) in step.chunks_exact_mut(dtype.size()).zip(values) {
                        match dtype {
                            DType::F32 => cell.copy_from_slice(&value.to_le_bytes()),
                            DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                            _ => cell.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                        }
                    }
                }
            }
            WeightFormat::Q8 => {
                let scale = quant::q8_row(&row.values, &mut row.quantized);
                for (step, values) in steps.zip(row.quantized.chunks(UNIT)) {
                    step[..values.len()].copy_from_slice(bytemuck::cast_slice(values));
                }
                scales[4 * lane..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            _ => {
                let scale = quant::q4_row(&row.values, &mut row.quantized, &mut row.groups);
                for (step, values) in steps.zip(row.quantized.chunks(2 * UNIT)) {
                    for (cell, pair) in step.iter_mut().zip(values.chunks(2)) {
                        *cell = pair[0] as u8 & 15 | (pair.get(1).copied().unwrap_or(0) as u8) << 4;
                    }
                }
                for (group, &multiplier) in row.groups.iter().enumerate() {
                    multipliers[group * LANES + lane] = multiplier as u8;
                }
                scales[4 * lane..][..4].copy_from_slice(&scale.to_le_bytes());
            }
        }
    }

    /// Output row `row` of the stack as the checkpoint has it.
    fn host_row(&self, row: usize) -> HostRow<'_> {
        let i = self.ends.partition_point(|&end| end <= row);
        let part = &self.weight.parts[i];
        part.row(row + part.rows - self.ends[i], self.cols)
    }
}

/// `count` pieces of `size` elements.
fn chunks(all: &mut [u8], size: usize, count: usize) -> Box<dyn Iterator<Item = &mut [u8]> + '_> {
    match size {
        0 => Box::new((0..count).map(|_| Default::default())),
        size => Box::new(all.chunks_exact_mut(size)),
    }
}

/// A number as a format of floats has it.
fn kept(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => f16::from_f32(value).to_f32(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_dealt_out_to_parts() {
        let deal = |stack, panels, most| {
            let spans = Span::deal(stack, panels, most);
            let ends = |range: ops::Range<usize>| (range.start, range.end);
            spans.into_iter().map(|span| (ends(span.matrices), ends(span.panels))).collect::<Vec<_>>()
        };
        assert_eq!(deal(1, 7, 7), [((0, 1), (0, 7))]);
        assert_eq!(deal(1, 7, 3), [((0, 1), (0, 3)), ((0, 1), (3, 6)), ((0, 1), (6, 7))]);
        assert_eq!(deal(5, 3, 7), [((0, 2), (0, 3)), ((2, 4), (0, 3)), ((4, 5), (0, 3))]);
        assert_eq!(deal(2, 3, 2), [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]);
        assert_eq!(deal(1, 0, 4), [((0, 1), (0, 0))]);
        for (stack, panels, most) in [(128, 96, 1000), (9, 5, 4), (3, 1, 1)] {
            let spans = Span::deal(stack, panels, most);
            assert_eq!(spans.iter().map(Span::count).sum::<usize>(), stack * panels);
            assert!(spans.iter().all(|span| span.count() <= most));
        }
    }
}
