//! Products of `linear` and `linear_act_mul` with a few dozen rows, as flat tiles: 128 output features by all rows.
//!
//! A block of the kernels for few rows reads all of x for one or two panels of weights, from the second cache: soon more than
//! the weights. A flat tile reads it for eight. Where that leaves too few blocks, K is cut into parts (of floats its
//! segments, of bytes even ones), and the last block of a tile adds their sums, where that takes less time than it saves.
use super::linear::{FEW, Kernels, Params, SEGMENTS, Scratch, THREADS, most_bytes as copy_bytes};
use crate::weight::BLOCK;
use crate::{CudaRecorder, CudaWeight};
use anyfleet_tensor::{DType, Result, WeightFormat};

/// `Flat` of `linear_flat.cuh`: output features, threads, bytes of a line, and of what a panel of narrow weights is
/// multiplied with.
const TILE: usize = 128;
const TILE_THREADS: usize = 128;
const LINE: usize = 128;
const OF_PANEL: usize = 64;
const PANEL: usize = 16;
/// Rows of the smaller kernel; the larger has `FEW`.
const SMALL: usize = 32;
/// Up to so many, a block's weights are more than its x.
const FEWEST: usize = 8;
const ALIGN: usize = 128;
/// What a multiprocessor might have read from the second cache, 40 bytes a cycle, while a tile's last block works alone: for
/// the microsecond after which that begins, and while it reads the sums of a row.
const LAST: usize = 70_000;
const LAST_OF_ROW: usize = SEGMENTS * TILE * 4;

/// How a format is multiplied.
struct Format {
    small: &'static str,
    large: &'static str,
    /// Bytes of weights of a line.
    line: usize,
    rests: bool,
}

impl Format {
    /// Nothing of f32, which is multiplied by no matrix unit.
    fn of(weight: &CudaWeight) -> Option<Format> {
        let format = |small, large, line, rests| Some(Format { small, large, line, rests });
        match weight.format() {
            WeightFormat::Float(DType::BF16) => format("linear_bf16_flat_32", "linear_bf16_flat_64", LINE, false),
            WeightFormat::Float(DType::F16) => format("linear_f16_flat_32", "linear_f16_flat_64", LINE, false),
            WeightFormat::F8 => format("linear_f8_flat_32", "linear_f8_flat_64", BLOCK, false),
            WeightFormat::Q8 => format("linear_q8_flat_32", "linear_q8_flat_64", LINE, true),
            WeightFormat::Q4 => format("linear_q4_flat_32", "linear_q4_flat_64", BLOCK, true),
            _ => None,
        }
    }

    /// Bytes of shared memory for `rows` rows: stages of weights, what they are multiplied with, x and its rests.
    fn shared(&self, rows: usize) -> usize {
        let of_panels = if self.line == LINE { 0 } else { TILE / PANEL * OF_PANEL };
        let x = if self.rests { 2 * rows * LINE } else { rows * LINE };
        let stage = TILE * self.line + of_panels + x;
        let stages = if self.line == LINE || stage > 24 << 10 { 3 } else { 4 };
        stages * stage
    }
}

/// How a product is computed.
pub(crate) struct Flat {
    format: Format,
    /// Of a tile.
    rows: usize,
    tiles: usize,
    parts: usize,
}

/// Whether tiles without parts keep the device's memory busy.
fn fill(tiles: usize, processors: usize) -> bool {
    4 * tiles >= 3 * processors
}

fn rows_of_tile(rows: usize) -> usize {
    if rows <= SMALL { SMALL } else { FEW }
}

/// Bytes of a tile's sums of a part, with those of rests.
fn sum_bytes(rows: usize, rests: bool) -> usize {
    let sets = if rests { 2 } else { 1 };
    sets * rows_of_tile(rows) * TILE * 4
}

/// Where parts' sums and what counts them lie behind a copy of x, and the bytes of all.
fn places(copy: usize, sums: usize, tiles: usize) -> (usize, usize, usize) {
    let sums_at = copy.next_multiple_of(ALIGN);
    let ended_at = sums_at + sums;
    (sums_at, ended_at, ended_at + 4 * tiles)
}

/// The most scratch memory of products of up to `rows` rows: sizes of steps do not say which formats there are, so it is that
/// of sums with rests.
pub(crate) fn most_bytes(rows: usize, width: usize, processors: usize) -> usize {
    let rows = rows.min(FEW);
    let tiles = (1..processors).take_while(|&tiles| !fill(tiles, processors)).count();
    if rows <= FEWEST || tiles == 0 {
        return 0;
    }
    places(copy_bytes(rows, width), tiles * SEGMENTS * sum_bytes(rows, true), tiles).2
}

/// Whether parts save more than they cost, against the kernels for few rows: both by what is read from the second cache.
fn parts_pay(kernels: &Kernels, format: &Format, weight: &CudaWeight, rows: usize, processors: usize) -> bool {
    let (features, row_bytes) = (weight.panels() * PANEL, weight.blocks() * BLOCK);
    let (few, groups) = kernels.few_of(rows);
    let rows = rows.next_multiple_of(8);
    let x = rows * row_bytes.div_ceil(format.line) * LINE;
    let by_few = (groups - 1) * row_bytes + x / (few.panels * PANEL);
    // Eight sums of four bytes are written and read.
    let flat = x / TILE + 2 * SEGMENTS * 4 * rows;
    by_few > flat && (by_few - flat) * features >= processors * (LAST + LAST_OF_ROW * rows)
}

/// Parts of K that all have something: of floats those that are summed by themselves.
fn parts(format: &Format, weight: &CudaWeight, segment: usize) -> usize {
    if !format.rests {
        return weight.blocks().div_ceil(segment);
    }
    even_parts((weight.blocks() * BLOCK).div_ceil(format.line))
}

/// Parts of the same number of lines, but for the last, of which none is empty: `flat_bytes` cuts so.
fn even_parts(lines: usize) -> usize {
    lines.div_ceil(lines.div_ceil(SEGMENTS))
}

impl Flat {
    /// Nothing where `kernels` for few rows or many are better.
    pub(crate) fn of(recorder: &CudaRecorder, kernels: &Kernels, weight: &CudaWeight, params: &Params) -> Option<Flat> {
        let rows = params.rows as usize;
        if rows <= FEWEST || rows > FEW {
            return None;
        }
        let format = Format::of(weight)?;
        let tiles = (weight.panels() * PANEL).div_ceil(TILE);
        let processors = recorder.device.driver().description().processors as usize;
        let parts = match fill(tiles, processors) {
            true => 1,
            false if parts_pay(kernels, &format, weight, rows, processors) => {
                parts(&format, weight, params.segment as usize)
            }
            false => return None,
        };
        Some(Flat { format, rows: rows_of_tile(rows), tiles, parts })
    }

    /// Rounds x with kernel `x`, and multiplies.
    pub(crate) fn record(
        self,
        recorder: &mut CudaRecorder,
        x: (&'static str, &'static str),
        weight: &CudaWeight,
        mut params: Params,
    ) -> Result<()> {
        let rows = params.rows as usize;
        let copy = Scratch::of(weight, rows);
        if self.parts > 1 {
            let sum_bytes = sum_bytes(rows, self.format.rests);
            let (sums, ended, bytes) = places(copy.bytes, self.tiles * self.parts * sum_bytes, self.tiles);
            let at = recorder.scratch(bytes)?;
            params.place_copy(at, &copy, weight);
            (params.part_sums, params.ended) = (at + sums as u64, at + ended as u64);
            (params.parts, params.cut_tiles) = (self.parts as u32, self.tiles as u32);
        } else {
            params.take_copy(recorder, weight, rows)?;
        }
        recorder.launch(x, [rows, 1, 1], THREADS, 0, &params)?;
        let kernel = if self.rows == SMALL { self.format.small } else { self.format.large };
        let grid = [self.parts, self.tiles, 1];
        recorder.launch((x.0, kernel), grid, TILE_THREADS, self.format.shared(self.rows), &params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_is_empty() {
        for lines in 1..200usize {
            let parts = even_parts(lines);
            // What kernels make of the number of parts.
            let each = lines.div_ceil(parts);
            assert!(parts <= SEGMENTS && (parts - 1) * each < lines && parts * each >= lines, "{lines}: {parts}");
        }
        assert_eq!([1, 8, 9, 12, 16, 20, 28].map(even_parts), [1, 8, 5, 6, 8, 7, 7]);
    }
}
