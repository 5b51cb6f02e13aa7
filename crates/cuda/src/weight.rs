//! Packed weights: see `kernels/cuda/weight.cuh` for how they lie.
use crate::{CudaBackend, CudaBuffer};
use anyfleet_tensor::{DType, Error, HostPart, HostRow, HostWeight, Result, WeightFormat, quant};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// Output features of a panel, of which a gated matrix has eight with what they are multiplied with.
const PANEL: usize = 16;
/// Bytes of a row that a fragment's four lanes load at once.
pub(crate) const BLOCK: usize = 64;
/// Input features of a block of q4, and bytes of a panel's multipliers of it.
pub(crate) const Q4_BLOCK: usize = 128;
const Q4_MULTIPLIERS: usize = PANEL * Q4_BLOCK / quant::GROUP;
/// Bytes of a panel's scales of a group of f8.
const F8_SCALES: usize = PANEL * 4;
/// What is packed on the host before it is sent, in bytes.
const CHUNK: usize = 32 << 20;

/// A matrix on the device, or a stack of them.
#[derive(Clone)]
pub struct CudaWeight(Arc<Matrix>);

struct Matrix {
    stack: usize,
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
    layout: Layout,
    buffer: CudaBuffer,
}

/// Sizes of what is kept: weights, then multipliers (the scales of f8's groups are some), then scales. Of a stack all weights
/// come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Of all matrices, each of which has whole ones.
    panels: usize,
    /// Bytes of a row of weights.
    row: usize,
    /// Bytes of a panel's multipliers, and of its scales.
    multipliers: usize,
    scales: usize,
}

impl Layout {
    fn new(stack: usize, rows: usize, cols: usize, format: WeightFormat) -> Layout {
        let row = match format {
            WeightFormat::Float(dtype) => cols.next_multiple_of(64) * dtype.size(),
            WeightFormat::Q8 | WeightFormat::F8 => cols.next_multiple_of(BLOCK),
            _ => cols.next_multiple_of(Q4_BLOCK) / 2,
        };
        let multipliers = match format {
            WeightFormat::Q4 => row / BLOCK * Q4_MULTIPLIERS,
            WeightFormat::F8 => cols.div_ceil(quant::F8_GROUP) * F8_SCALES,
            _ => 0,
        };
        let scales = if matches!(format, WeightFormat::Q8 | WeightFormat::Q4) { PANEL * 4 } else { 0 };
        Layout { panels: stack * rows.div_ceil(PANEL), row, multipliers, scales }
    }
    fn panel(&self) -> usize {
        PANEL * self.row
    }
    /// Where the multipliers and the scales of panel `panel` begin.
    fn multipliers_at(&self, panel: usize) -> usize {
        self.panels * self.panel() + panel * self.multipliers
    }
    fn scales_at(&self, panel: usize) -> usize {
        self.multipliers_at(self.panels) + panel * self.scales
    }
    fn bytes(&self) -> usize {
        self.scales_at(self.panels)
    }
}

/// Device bytes of a matrix; a stack takes as many times that.
pub(crate) fn bytes(rows: usize, cols: usize, format: WeightFormat) -> usize {
    Layout::new(1, rows, cols, format).bytes()
}

impl CudaWeight {
    /// Matrices, whose sizes follow.
    pub(crate) fn stack(&self) -> usize {
        self.0.stack
    }
    pub(crate) fn rows(&self) -> usize {
        self.0.rows
    }
    pub(crate) fn cols(&self) -> usize {
        self.0.cols
    }
    pub(crate) fn format(&self) -> WeightFormat {
        self.0.format
    }
    /// Whether rows are beside their gates.
    pub(crate) fn gated(&self) -> bool {
        self.0.gated
    }
    pub(crate) fn panels(&self) -> usize {
        self.0.layout.panels / self.0.stack
    }
    /// Blocks of a row.
    pub(crate) fn blocks(&self) -> usize {
        self.0.layout.row / BLOCK
    }
    /// Where the weights begin on the device.
    pub(crate) fn address(&self) -> u64 {
        self.0.buffer.address()
    }
    /// Bytes of a panel's multipliers.
    pub(crate) fn panel_multipliers(&self) -> usize {
        self.0.layout.multipliers
    }
    /// Where the multipliers and scales begin; 0 where there are none.
    pub(crate) fn multipliers(&self) -> u64 {
        self.place(self.0.layout.multipliers, self.0.layout.multipliers_at(0))
    }
    pub(crate) fn scales(&self) -> u64 {
        self.place(self.0.layout.scales, self.0.layout.scales_at(0))
    }
    fn place(&self, size: usize, at: usize) -> u64 {
        if size == 0 { 0 } else { self.address() + at as u64 }
    }

    pub(crate) fn load(device: &CudaBackend, weight: &HostWeight<'_>) -> Result<CudaWeight> {
        weight.check()?;
        let (stack, rows, cols, format) = (weight.stack, weight.rows(), weight.cols, weight.store);
        let bad = |reason: String| Error::Weight { name: weight.name.clone(), reason };
        match format {
            WeightFormat::Float(dtype) if !dtype.is_float() => {
                return Err(bad(format!("the CUDA backend keeps no matrices of {dtype}; use bf16")));
            }
            WeightFormat::Q8 | WeightFormat::Q4 if cols > quant::FEATURES => {
                let most = quant::FEATURES;
                return Err(bad(format!("{cols} input features are too many for {format}, at most {most}; use bf16")));
            }
            _ => {}
        }
        let layout = Layout::new(stack, rows, cols, format);
        if (layout.panels * PANEL).max(layout.row) > u32::MAX as usize / 2 {
            return Err(bad(format!("{} x {cols} is more than kernels count", weight.all_rows())));
        }
        let gated = weight.gated && rows.is_multiple_of(2);
        let buffer = CudaBuffer::new(device.driver(), layout.bytes(), &weight.name)?;
        let write = |at: usize, bytes: &[u8]| match bytes {
            [] => Ok(()),
            _ => device.driver().write(buffer.address() + at as u64, bytes),
        };
        let packer = Packer { weight, stack, rows, cols, format, gated, layout };
        if packer.as_it_lies() {
            let mut at = 0;
            for part in &weight.parts {
                write(at, part.bytes)?;
                at += part.bytes.len();
            }
            write(at, &vec![0; layout.bytes() - at])?;
        } else {
            let most = (CHUNK / layout.panel().max(1)).max(1);
            for first in (0..layout.panels).step_by(most) {
                let packed = packer.pack(first, most.min(layout.panels - first));
                write(first * layout.panel(), &packed.rows)?;
                write(layout.multipliers_at(first), &packed.multipliers)?;
                write(layout.scales_at(first), &packed.scales)?;
            }
        }
        Ok(CudaWeight(Arc::new(Matrix { stack, rows, cols, format, gated, layout, buffer })))
    }
}

/// Brings rows of the checkpoint into panels.
struct Packer<'a> {
    weight: &'a HostWeight<'a>,
    stack: usize,
    /// Of each matrix.
    rows: usize,
    cols: usize,
    format: WeightFormat,
    gated: bool,
    layout: Layout,
}

/// Some panels.
struct Packed {
    rows: Vec<u8>,
    multipliers: Vec<u8>,
    scales: Vec<u8>,
}

/// A panel's places in it.
struct Panel<'a> {
    rows: &'a mut [u8],
    multipliers: &'a mut [u8],
    scales: &'a mut [u8],
}

/// What a thread works with: a row as numbers, as quantized ones, and its groups' multipliers and scales.
struct Row {
    values: Vec<f32>,
    quantized: Vec<i8>,
    groups: Vec<i8>,
    scales: Vec<f32>,
}

impl Packer<'_> {
    /// Whether the checkpoint's bytes are what is kept, but for rows of padding.
    fn as_it_lies(&self) -> bool {
        let same = |part: &HostPart<'_>| self.format == WeightFormat::Float(part.dtype);
        let whole = self.stack == 1 || self.rows.is_multiple_of(PANEL);
        !self.gated && whole && self.cols.is_multiple_of(64) && self.weight.parts.iter().all(same)
    }

    /// The output feature in row `row` of panel `panel`, if there is one; of a stack among those of all matrices.
    fn feature(&self, panel: usize, row: usize) -> Option<usize> {
        let panels = self.layout.panels / self.stack;
        let (first, panel) = (panel / panels * self.rows, panel % panels);
        let (half, width) = (self.rows / 2, PANEL / 2);
        let feature = match self.gated {
            false => Some(panel * PANEL + row).filter(|&feature| feature < self.rows),
            true => {
                let feature = panel * width + row % width;
                (feature < half).then_some(if row < width { feature } else { half + feature })
            }
        };
        feature.map(|feature| first + feature)
    }

    fn pack(&self, first: usize, panels: usize) -> Packed {
        let layout = self.layout;
        let [mut rows, mut multipliers, mut scales] =
            [layout.panel(), layout.multipliers, layout.scales].map(|size| vec![0u8; panels * size]);
        let scratch = || Row {
            values: vec![0.0; self.cols],
            quantized: vec![0; self.cols],
            groups: vec![0; self.cols.div_ceil(quant::GROUP)],
            scales: vec![0.0; self.cols.div_ceil(quant::F8_GROUP)],
        };
        let mut pieces = (chunks(&mut multipliers, layout.multipliers), chunks(&mut scales, layout.scales));
        let work: Vec<_> = rows
            .chunks_exact_mut(layout.panel())
            .map(|rows| Panel {
                rows,
                multipliers: pieces.0.next().unwrap_or_default(),
                scales: pieces.1.next().unwrap_or_default(),
            })
            .collect();
        drop(pieces);
        work.into_par_iter().enumerate().for_each_init(scratch, |scratch, (panel, mut to)| {
            for row in 0..PANEL {
                if let Some(feature) = self.feature(first + panel, row) {
                    self.pack_row(feature, row, scratch, &mut to);
                }
            }
        });
        Packed { rows, multipliers, scales }
    }

    /// Puts output feature `feature` into a panel's row.
    fn pack_row(&self, feature: usize, row: usize, scratch: &mut Row, to: &mut Panel<'_>) {
        let host = self.host_row(feature);
        let target = &mut to.rows[row * self.layout.row..][..self.layout.row];
        if self.format == WeightFormat::Float(host.dtype) {
            return target[..host.bytes.len()].copy_from_slice(host.bytes);
        }
        if self.format == WeightFormat::F8 {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch.quantized);
            host.f8(bytes, &mut scratch.scales);
            put_f8(bytes, target);
            return put_scales(&scratch.scales, row, to.multipliers);
        }
        host.values(&mut scratch.values);
        let scale = match self.format {
            WeightFormat::Float(dtype) => return narrow(dtype, &scratch.values, target),
            WeightFormat::Q8 => quant::q8_row(&scratch.values, bytemuck::cast_slice_mut(target)),
            _ => {
                let scale = quant::q4_row(&scratch.values, &mut scratch.quantized, &mut scratch.groups);
                put_nibbles(&scratch.quantized, target);
                put_multipliers(&scratch.groups, row, to.multipliers);
                scale
            }
        };
        to.scales[4 * row..][..4].copy_from_slice(&scale.to_le_bytes());
    }

    /// Output row `row` as the checkpoint has it.
    fn host_row(&self, mut row: usize) -> HostRow<'_> {
        for part in &self.weight.parts {
            if row < part.rows {
                return part.row(row, self.cols);
            }
            row -= part.rows;
        }
        unreachable!("the weight was checked: it has row {row}")
    }
}

/// Pieces of `size` bytes; none of size 0.
fn chunks(all: &mut [u8], size: usize) -> std::slice::ChunksExactMut<'_, u8> {
    all.chunks_exact_mut(size.max(1))
}

/// A row of q4: `q4_place` of `weight.cuh`.
fn put_nibbles(quantized: &[i8], row: &mut [u8]) {
    for (values, block) in quantized.chunks(Q4_BLOCK).zip(row.chunks_exact_mut(BLOCK)) {
        for (group, values) in values.chunks(quant::GROUP).enumerate() {
            for (k, &q) in values.iter().enumerate() {
                // Sixteen bytes for each lane, of a group a word of four.
                let byte = k % 16 / 4 * 16 + group * 4 + k % 4;
                block[byte] |= (q as u8 & 15) << (k / 16 * 4);
            }
        }
    }
}

/// A row of f8: `f8_place` of `weight.cuh`.
fn put_f8(bytes: &[u8], row: &mut [u8]) {
    for (i, eight) in bytes.chunks(8).enumerate() {
        // Of each lane sixteen bytes: eight of the first half of a block, and eight of the second.
        row[i / 8 * BLOCK + i % 4 * 16 + i / 4 % 2 * 8..][..eight.len()].copy_from_slice(eight);
    }
}

/// Where row `row` of a panel has its four bytes among those of a block or group.
fn place_of_row(row: usize) -> usize {
    (row % 8 * 2 + row / 8) * 4
}

/// Scales of row `row` of a panel: `f8_scale` of `weight.cuh`.
fn put_scales(scales: &[f32], row: usize, panel: &mut [u8]) {
    for (scale, group) in scales.iter().zip(panel.chunks_exact_mut(F8_SCALES)) {
        group[place_of_row(row)..][..4].copy_from_slice(&scale.to_le_bytes());
    }
}

/// Multipliers of row `row` of a panel: `q4_multipliers` of `weight.cuh`.
fn put_multipliers(groups: &[i8], row: usize, panel: &mut [u8]) {
    let place = place_of_row(row);
    for (groups, block) in groups.chunks(4).zip(panel.chunks_exact_mut(Q4_MULTIPLIERS)) {
        block[place..][..groups.len()].copy_from_slice(bytemuck::cast_slice(groups));
    }
}

fn narrow(dtype: DType, values: &[f32], row: &mut [u8]) {
    for (cell, &value) in row.chunks_exact_mut(dtype.size()).zip(values) {
        match dtype {
            DType::F32 => cell.copy_from_slice(&value.to_le_bytes()),
            DType::BF16 => cell.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            _ => cell.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [WeightFormat; 6] = [
        WeightFormat::Float(DType::F32),
        WeightFormat::Float(DType::BF16),
        WeightFormat::Float(DType::F16),
        WeightFormat::Q8,
        WeightFormat::Q4,
        WeightFormat::F8,
    ];

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect()
    }

    fn packed<'a>(weight: &'a HostWeight<'a>) -> (Layout, Packed) {
        let (rows, cols, format) = (weight.rows(), weight.cols, weight.store);
        let layout = Layout::new(weight.stack, rows, cols, format);
        let packer = Packer { weight, stack: weight.stack, rows, cols, format, gated: weight.gated, layout };
        (layout, packer.pack(0, layout.panels))
    }

    fn weight(values: &[f32], cols: usize, store: WeightFormat, gated: bool) -> HostWeight<'_> {
        let part = HostPart {
            dtype: DType::F32,
            rows: values.len() / cols,
            bytes: bytemuck::cast_slice(values),
            scales: None,
        };
        HostWeight { name: "w".into(), stack: 1, cols, parts: vec![part], store, gated }
    }

    #[test]
    fn a_row_of_q4_can_be_read_as_kernels_read_it() {
        let (rows, cols) = (19, 200);
        let values = wave(rows * cols);
        let host = weight(&values, cols, WeightFormat::Q4, false);
        let (layout, packed) = packed(&host);
        let blocks = layout.row / BLOCK;
        for row in 0..rows {
            let (mut q, mut groups) = (vec![0; cols], vec![0; cols.div_ceil(quant::GROUP)]);
            let scale = quant::q4_row(&values[row * cols..][..cols], &mut q, &mut groups);
            assert_eq!(packed.scales[4 * row..][..4], scale.to_le_bytes());
            q.resize(blocks * Q4_BLOCK, 0);
            groups.resize(blocks * 4, 0);
            for (block, group) in (0..blocks).flat_map(|block| (0..4).map(move |group| (block, group))) {
                let place =
                    row / PANEL * layout.multipliers + block * Q4_MULTIPLIERS + (row % 8 * 2 + row % 16 / 8) * 4;
                assert_eq!(packed.multipliers[place + group] as i8, groups[block * 4 + group]);
                for lane in 0..4 {
                    // What a lane has of a group: four bytes, whose halves are columns 4 * lane and those + 16.
                    let word = &packed.rows[row * layout.row + block * BLOCK + lane * 16 + group * 4..][..4];
                    let first = block * Q4_BLOCK + group * quant::GROUP + 4 * lane;
                    let low: Vec<i8> = word.iter().map(|&byte| (byte << 4) as i8 >> 4).collect();
                    let high: Vec<i8> = word.iter().map(|&byte| (byte & 0xf0) as i8 >> 4).collect();
                    assert_eq!((&low[..], &high[..]), (&q[first..][..4], &q[first + 16..][..4]), "row {row}");
                }
            }
        }
        assert!(packed.rows[rows * layout.row..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_row_of_f8_can_be_read_as_kernels_read_it() {
        let (rows, cols) = (19, 300);
        let values = wave(rows * cols);
        let host = weight(&values, cols, WeightFormat::F8, false);
        let (layout, packed) = packed(&host);
        for row in 0..rows {
            let (mut bytes, mut scales) = (vec![0; cols], vec![0.0; cols.div_ceil(quant::F8_GROUP)]);
            host.parts[0].row(row, cols).f8(&mut bytes, &mut scales);
            bytes.resize(layout.row, 0);
            for (block, lane) in (0..layout.row / BLOCK).flat_map(|block| (0..4).map(move |lane| (block, lane))) {
                // What a lane has of a block: eight columns of the first 32, and eight of the others.
                let got = &packed.rows[row * layout.row + block * BLOCK + lane * 16..][..16];
                let first = block * BLOCK + lane * 8;
                assert_eq!((&got[..8], &got[8..]), (&bytes[first..][..8], &bytes[first + 32..][..8]), "row {row}");
            }
            for (group, scale) in scales.iter().enumerate() {
                let place = row / PANEL * layout.multipliers + group * F8_SCALES + (row % 8 * 2 + row % 16 / 8) * 4;
                assert_eq!(packed.multipliers[place..][..4], scale.to_le_bytes());
            }
        }
        assert!(packed.rows[rows * layout.row..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn gates_are_eight_rows_before_what_they_are_multiplied_with() {
        let (half, cols) = (11, 3);
        let values: Vec<f32> = (0..2 * half * cols).map(|i| i as f32).collect();
        let host = weight(&values, cols, WeightFormat::Float(DType::F32), true);
        let (layout, packed) = packed(&host);
        let got: &[f32] = bytemuck::cast_slice(&packed.rows);
        for feature in 0..half {
            let row = feature / 8 * PANEL + feature % 8;
            for (row, feature) in [(row, feature), (row + 8, half + feature)] {
                assert_eq!(got[row * layout.row / 4..][..cols], values[feature * cols..][..cols]);
            }
        }
    }

    #[test]
    fn matrices_of_a_stack_are_what_they_are_alone() {
        let (rows, cols, stack) = (22, 130, 3);
        let values = wave(stack * rows * cols);
        for store in FORMATS {
            for gated in [false, true] {
                let host = HostWeight { stack, ..weight(&values, cols, store, gated) };
                let (layout, all) = packed(&host);
                assert_eq!(layout.bytes(), stack * bytes(rows, cols, store));
                for (i, values) in values.chunks(rows * cols).enumerate() {
                    let host = weight(values, cols, store, gated);
                    let (_, alone) = packed(&host);
                    let same = |all: &[u8], alone: &[u8]| all[i * alone.len()..][..alone.len()] == *alone;
                    assert!(same(&all.rows, &alone.rows), "{store}, gated {gated}, matrix {i}");
                    assert!(same(&all.multipliers, &alone.multipliers) && same(&all.scales, &alone.scales));
                }
            }
        }
    }

    #[test]
    fn sizes_are_those_stated_and_rows_begin_at_whole_blocks() {
        let (device, recorded) = CudaBackend::recording();
        for (stack, rows, cols) in [(1, 1, 1), (1, 16, 64), (1, 17, 65), (1, 34, 200), (4, 32, 64), (5, 18, 70)] {
            for store in FORMATS {
                for gated in [false, true] {
                    let before = recorded.bytes();
                    let values = wave(stack * rows * cols);
                    let host = HostWeight { stack, ..weight(&values, cols, store, gated) };
                    let loaded = CudaWeight::load(&device, &host).unwrap();
                    assert_eq!(recorded.bytes() - before, (stack * bytes(rows, cols, store)) as u64);
                    assert_eq!((loaded.stack(), loaded.rows(), loaded.panels()), (stack, rows, rows.div_ceil(PANEL)));
                    assert!(loaded.0.layout.row.is_multiple_of(BLOCK));
                }
            }
        }
    }

    #[test]
    fn a_checkpoint_of_the_kept_type_is_sent_as_it_lies() {
        let (device, recorded) = CudaBackend::recording();
        let values = wave(20 * 64);
        let store = WeightFormat::Float(DType::F32);
        CudaWeight::load(&device, &weight(&values, 64, store, false)).unwrap();
        // The rows, and those of padding.
        assert_eq!(recorded.writes(), 2);
        // A stack of whole panels is, too; of others, rows of padding lie between.
        for (stack, writes) in [(5, 1), (2, 1)] {
            let (device, recorded) = CudaBackend::recording();
            let values = wave(80 * 64);
            let host = HostWeight { stack, ..weight(&values, 64, store, false) };
            CudaWeight::load(&device, &host).unwrap();
            assert_eq!(recorded.writes(), writes);
        }
    }

    #[test]
    fn wide_integers_are_refused() {
        let (device, _) = CudaBackend::recording();
        for (cols, fits) in [(quant::FEATURES, true), (quant::FEATURES + 1, false)] {
            let values = vec![1.0; cols];
            let got = CudaWeight::load(&device, &weight(&values, cols, WeightFormat::Q8, false));
            assert_eq!(got.is_ok(), fits);
            if let Err(e) = got {
                assert!(e.to_string().contains("133144"), "{e}");
            }
        }
    }
}
