//! Products of `linear` and `linear_act_mul` with few rows, as flat tiles: 128 output features by all rows.
//!
//! A block of the kernels for few rows reads all of x for one or two panels of weights, from the second cache, and from about
//! sixteen rows on that is more than the weights. A flat tile reads it for eight. Where that leaves too few blocks, K is cut
//! into the parts that are summed by themselves anyway, and the last block of a tile adds them: what they write and
//! read is 64 bytes a row and output feature, which pays where rows of weights are long.
use super::linear::{FEW, Params, SEGMENTS, Scratch, THREADS, most_bytes as copy_bytes, takes_16bit};
use crate::weight::BLOCK;
use crate::{CudaRecorder, CudaWeight};
use anyfleet_tensor::{DType, Result, WeightFormat};

/// `FlatTile` of `linear_tile.cuh`: output features, threads, bytes of a line, and stages.
const TILE: usize = 128;
const TILE_THREADS: usize = 128;
const LINE: usize = 128;
const STAGES: usize = 3;
const PANEL: usize = 16;
/// Rows of the smaller kernel; the larger has `FEW`.
const SMALL: usize = 32;
/// Up to so many, a block's weights are more than its x.
const FEWEST: usize = 8;
const ALIGN: usize = 128;

/// How a product is computed.
pub(crate) struct Flat {
    kernel: &'static str,
    /// Of a tile.
    rows: usize,
    tiles: usize,
    parts: usize,
    /// Bytes of a tile's sums of a part.
    sum_bytes: usize,
}

/// Whether tiles without parts keep the device's memory busy.
fn fill(tiles: usize, processors: usize) -> bool {
    4 * tiles >= 3 * processors
}

fn rows_of_tile(rows: usize) -> usize {
    if rows <= SMALL { SMALL } else { FEW }
}

/// Sums of a part, of bytes those of rests, too.
fn sum_bytes(rows: usize, takes_16bit: bool) -> usize {
    let sets = if takes_16bit { 1 } else { 2 };
    sets * rows_of_tile(rows) * TILE * 4
}

/// Where parts' sums and what counts them lie behind a copy of x, and the bytes of all.
fn places(copy: usize, sums: usize, tiles: usize) -> (usize, usize, usize) {
    let sums_at = copy.next_multiple_of(ALIGN);
    let ended_at = sums_at + sums;
    (sums_at, ended_at, ended_at + 4 * tiles)
}

/// The most scratch memory of products of up to `rows` rows.
pub(crate) fn most_bytes(rows: usize, width: usize, processors: usize) -> usize {
    let rows = rows.min(FEW);
    let tiles = (1..processors).take_while(|&tiles| !fill(tiles, processors)).count();
    if rows <= FEWEST || tiles == 0 {
        return 0;
    }
    places(copy_bytes(rows, width), tiles * SEGMENTS * sum_bytes(rows, false), tiles).2
}

impl Flat {
    /// Nothing where other kernels are better.
    pub(crate) fn of(recorder: &CudaRecorder, weight: &CudaWeight, params: &Params) -> Option<Flat> {
        let (rows, blocks) = (params.rows as usize, weight.blocks());
        if rows <= FEWEST || rows > FEW {
            return None;
        }
        let [small, large] = match weight.format() {
            WeightFormat::Float(DType::BF16) => ["linear_bf16_flat_32", "linear_bf16_flat_64"],
            WeightFormat::Float(DType::F16) => ["linear_f16_flat_32", "linear_f16_flat_64"],
            WeightFormat::F8 => ["linear_f8_flat_32", "linear_f8_flat_64"],
            WeightFormat::Q8 => ["linear_q8_flat_32", "linear_q8_flat_64"],
            WeightFormat::Q4 => ["linear_q4_flat_32", "linear_q4_flat_64"],
            _ => return None,
        };
        let tiles = (params.panels as usize * PANEL).div_ceil(TILE);
        let processors = recorder.device.driver().description().processors as usize;
        let parts = if fill(tiles, processors) {
            1
        } else if rows > SMALL || blocks >= 6 * rows {
            // Of bytes as many as there are lines of x; else segments, some of which may be empty.
            let most = match weight.format() {
                WeightFormat::Q8 => (blocks * BLOCK).div_ceil(LINE),
                WeightFormat::Q4 => blocks,
                _ => blocks.div_ceil(params.segment as usize),
            };
            most.min(SEGMENTS)
        } else {
            return None;
        };
        let kernel = if rows <= SMALL { small } else { large };
        let sum_bytes = sum_bytes(rows, takes_16bit(weight));
        Some(Flat { kernel, rows: rows_of_tile(rows), tiles, parts, sum_bytes })
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
            let (sums, ended, bytes) = places(copy.bytes, self.tiles * self.parts * self.sum_bytes, self.tiles);
            let at = recorder.scratch(bytes)?;
            params.place_copy(at, &copy, weight);
            (params.part_sums, params.ended) = (at + sums as u64, at + ended as u64);
            (params.parts, params.cut_tiles) = (self.parts as u32, self.tiles as u32);
        } else {
            params.take_copy(recorder, weight, rows)?;
        }
        recorder.launch(x, [rows, 1, 1], THREADS, 0, &params)?;
        let shared = STAGES * (TILE + self.rows) * LINE;
        let grid = [self.parts, self.tiles, 1];
        recorder.launch((x.0, self.kernel), grid, TILE_THREADS, shared, &params)
    }
}
