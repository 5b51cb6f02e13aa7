//! Packed weights: see `kernels/wgsl/weight.wgsl` for their order.
use crate::context::Context;
use crate::encoder::Range;
use anyfleet_tensor::{DType, Error, HostPart, HostWeight, Result, WeightFormat, halves, quant};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// Output features of a panel: `LANES` of `weight.wgsl`.
const LANES: usize = 16;
/// Bytes of a step of one lane.
const STEP: usize = 16;

/// A matrix on the device, cut into parts of as many panels as the device binds.
#[derive(Clone)]
pub struct WgpuWeight(Arc<Matrix>);

struct Matrix {
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
    parts: Vec<Part>,
}

/// Some panels.
pub(crate) struct Part {
    buffer: Arc<wgpu::Buffer>,
    first_panel: usize,
    panels: usize,
    /// Places of the multipliers and scales, in units of sixteen bytes.
    multipliers: usize,
    scales: usize,
}

impl Part {
    pub(crate) fn range(&self) -> Range {
        Range { buffer: self.buffer.clone(), offset: 0, size: self.buffer.size() }
    }
    /// The first output feature, as lanes count them.
    pub(crate) fn first_lane(&self) -> usize {
        self.first_panel * LANES
    }
    pub(crate) fn lanes(&self) -> usize {
        self.panels * LANES
    }
    pub(crate) fn panels(&self) -> usize {
        self.panels
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
        WeightFormat::Float(_) => 8,
        WeightFormat::Q8 => 16,
        _ => 32,
    }
}

/// Bytes of a panel's multipliers, and of its scales: those of integers, and of floats the exponents that matrix units
/// want.
fn extras(context: &Context, cols: usize, format: WeightFormat) -> (usize, usize) {
    let multipliers = if format == WeightFormat::Q4 { cols.div_ceil(elements(format)) * LANES } else { 0 };
    let none = matches!(format, WeightFormat::Float(_)) && context.matrices.is_none();
    (multipliers, if none { 0 } else { LANES * 4 })
}

/// Bytes of a panel with its multipliers and scales.
fn panel_bytes(context: &Context, cols: usize, format: WeightFormat) -> usize {
    let (multipliers, scales) = extras(context, cols, format);
    cols.div_ceil(elements(format)) * LANES * STEP + multipliers + scales
}

/// Panels of a matrix; a gated one has its two halves side by side.
fn panels(rows: usize, gated: bool) -> usize {
    if gated { (rows / 2).div_ceil(LANES / 2) } else { rows.div_ceil(LANES) }
}

/// Device bytes of a matrix.
pub(crate) fn bytes(context: &Context, rows: usize, cols: usize, format: WeightFormat) -> usize {
    // A gated matrix may have one more panel, whose halves are not full.
    (panels(rows, false) + 1) * panel_bytes(context, cols, format)
}

impl WgpuWeight {
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
        !matches!(self.0.format, WeightFormat::Float(_))
    }
    /// The flag that kernels know the format by.
    pub(crate) fn flag(&self) -> &'static str {
        match self.0.format {
            WeightFormat::Float(DType::F32) => "FORMAT_F32",
            WeightFormat::Float(DType::BF16) => "FORMAT_BF16",
            WeightFormat::Float(_) => "FORMAT_F16",
            WeightFormat::Q8 => "FORMAT_Q8",
            _ => "FORMAT_Q4",
        }
    }

    pub(crate) fn load(context: &Context, weight: &HostWeight<'_>) -> Result<WgpuWeight> {
        weight.check()?;
        let (rows, cols, format) = (weight.rows(), weight.cols, weight.store);
        let gated = weight.gated && rows.is_multiple_of(2);
        if let WeightFormat::Float(dtype) = format
            && !dtype.is_float()
        {
            let reason = format!("{} keeps no matrices of {dtype}", context.name());
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let (all, size) = (panels(rows, gated), panel_bytes(context, cols, format));
        let most = context.limits.max_storage_buffer_binding_size.min(context.limits.max_buffer_size) as usize / size;
        if most == 0 {
            let reason = format!("sixteen rows take {size} bytes, more than {} binds", context.name());
            return Err(Error::Weight { name: weight.name.clone(), reason });
        }
        let packer = Packer { weight, rows, cols, format, gated };
        let parts = (0..all).step_by(most).map(|first| packer.part(context, first, most.min(all - first)));
        Ok(WgpuWeight(Arc::new(Matrix { rows, cols, format, gated, parts: parts.collect::<Result<_>>()? })))
    }
}

/// Brings rows of the checkpoint into panels.
struct Packer<'a> {
    weight: &'a HostWeight<'a>,
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
}

/// What a thread works with: a row as numbers, as quantized ones, and its groups' multipliers.
struct Row {
    values: Vec<f32>,
    quantized: Vec<i8>,
    groups: Vec<i8>,
}

impl Packer<'_> {
    /// The output feature of lane `lane` of panel `panel`, if there is one.
    fn row_of(&self, panel: usize, lane: usize) -> Option<usize> {
        if !self.gated {
            return Some(panel * LANES + lane).filter(|&row| row < self.rows);
        }
        let (half, width) = (self.rows / 2, LANES / 2);
        let row = panel * width + lane % width;
        (row < half).then_some(if lane < width { row } else { half + row })
    }

    fn part(&self, context: &Context, first_panel: usize, panels: usize) -> Result<Part> {
        let steps = self.cols.div_ceil(elements(self.format));
        let data = panels * steps * LANES * STEP;
        let (multipliers, scales) = extras(context, self.cols, self.format);
        let mut bytes = vec![0u8; data + panels * (multipliers + scales)];
        let (steps_of_all, rest) = bytes.split_at_mut(data);
        let (multipliers_of_all, scales_of_all) = rest.split_at_mut(panels * multipliers);
        // A piece for each panel, of nothing where the format has no such piece.
        let panels_of_all = steps_of_all.chunks_exact_mut((steps * LANES * STEP).max(1));
        let work: Vec<_> = panels_of_all
            .zip(chunks(multipliers_of_all, multipliers, panels))
            .zip(chunks(scales_of_all, scales, panels))
            .collect();
        let scratch = || Row {
            values: vec![0.0; self.cols],
            quantized: vec![0; self.cols],
            groups: vec![0; self.cols.div_ceil(quant::GROUP)],
        };
        work.into_par_iter().enumerate().for_each_init(scratch, |row, (panel, ((data, multipliers), scales))| {
            for lane in 0..LANES {
                if let Some(feature) = self.row_of(first_panel + panel, lane) {
                    self.pack(feature, lane, row, data, multipliers, scales);
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
            first_panel,
            panels,
            multipliers: data / STEP,
            scales: (data + panels * multipliers) / STEP,
        })
    }

    /// Puts output feature `feature` into a panel's lane.
    fn pack(
        &self,
        feature: usize,
        lane: usize,
        row: &mut Row,
        data: &mut [u8],
        multipliers: &mut [u8],
        scales: &mut [u8],
    ) {
        let (part, cells) = self.cells(feature);
        let steps = data.chunks_exact_mut(STEP).skip(lane).step_by(LANES);
        if self.format == WeightFormat::Float(part.dtype) {
            if !scales.is_empty() {
                widen(part.dtype, cells, &mut row.values);
                scales[4 * lane..][..4].copy_from_slice(&halves::exponent(&row.values).to_le_bytes());
            }
            return steps.zip(cells.chunks(STEP)).for_each(|(step, cells)| step[..cells.len()].copy_from_slice(cells));
        }
        widen(part.dtype, cells, &mut row.values);
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
                for (step, values) in steps.zip(row.quantized.chunks(STEP)) {
                    step[..values.len()].copy_from_slice(bytemuck::cast_slice(values));
                }
                scales[4 * lane..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            _ => {
                let scale = quant::q4_row(&row.values, &mut row.quantized, &mut row.groups);
                for (step, values) in steps.zip(row.quantized.chunks(2 * STEP)) {
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

    /// Output row `row` as the checkpoint has it.
    fn cells(&self, mut row: usize) -> (&HostPart<'_>, &[u8]) {
        for part in &self.weight.parts {
            if row < part.rows {
                let size = self.cols * part.dtype.size();
                return (part, &part.bytes[row * size..][..size]);
            }
            row -= part.rows;
        }
        unreachable!("the weight was checked: it has row {row}")
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

fn widen(dtype: DType, cells: &[u8], values: &mut [f32]) {
    for (value, cell) in values.iter_mut().zip(cells.chunks_exact(dtype.size())) {
        *value = match dtype {
            DType::F32 => bytemuck::pod_read_unaligned(cell),
            DType::BF16 => bytemuck::pod_read_unaligned::<bf16>(cell).to_f32(),
            _ => bytemuck::pod_read_unaligned::<f16>(cell).to_f32(),
        };
    }
}
