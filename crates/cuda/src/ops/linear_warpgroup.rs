//! Products of `linear` and `linear_act_mul` by warpgroups: of many rows, with bf16 and f16 weights.
//!
//! Blocks are as many as there are multiprocessors and take tile after tile, so that one's end and the next's beginning
//! overlap.
use super::linear::{FEW, Params, THREADS};
use crate::CudaRecorder;
use crate::driver::{TileMap, Tiles};
use crate::warpgroups::Warpgroups;
use crate::weight::BLOCK;
use anyfleet_tensor::{DType, Result, WeightFormat};
use bytemuck::{Pod, Zeroable};

/// Of output features and of rows, and what a block has of threads and shared memory: `linear_op::warpgroup` of
/// `linear_warpgroup.cuh`, and what may be lost before the first multiple of a block of lines.
const TILE: usize = 128;
const BLOCK_THREADS: usize = 384;
const SHARED: usize = 5 * 2 * TILE * Tiles::LINE + 2 * 64 * 68 * 4 + 1024;
const PANEL: usize = 16;

/// `WarpgroupParams` of `linear_warpgroup.cuh`.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WarpgroupParams {
    linear: Params,
    row_tiles: u32,
    tiles: u32,
    reserved: u64,
    weights: TileMap,
    x: TileMap,
}

/// Whether warpgroups compute a product.
pub(crate) fn computes(recorder: &CudaRecorder, format: WeightFormat, params: &Params) -> bool {
    let takes = matches!(format, WeightFormat::Float(DType::BF16 | DType::F16));
    let driver = recorder.device.driver();
    let (row_tiles, feature_tiles) = tiles(params);
    let fills = row_tiles * feature_tiles >= driver.description().processors as usize;
    takes
        && params.rows as usize > FEW
        && match driver.warpgroups() {
            Warpgroups::Never => false,
            Warpgroups::Filling => fills,
            Warpgroups::Always => true,
        }
}

/// Tiles of rows and of output features.
fn tiles(params: &Params) -> (usize, usize) {
    ((params.rows as usize).div_ceil(TILE), (params.panels as usize * PANEL).div_ceil(TILE))
}

/// Rounds x with kernel `x`, and multiplies. `linear` has the place of the copy.
pub(crate) fn record(
    recorder: &mut CudaRecorder,
    x: (&'static str, &'static str),
    format: WeightFormat,
    mut linear: Params,
) -> Result<()> {
    linear.turned = 1;
    let rows = linear.rows as usize;
    recorder.launch(x, [rows, 1, 1], THREADS, 0, &linear)?;
    let driver = recorder.device.driver();
    let (row_tiles, feature_tiles) = tiles(&linear);
    let tiles = row_tiles * feature_tiles;
    let map = |address, rows, row_bytes| driver.tile_map(&Tiles { address, rows, row_bytes, lines: TILE });
    let weights = map(linear.weight, linear.panels as usize * PANEL, linear.blocks as usize * BLOCK)?;
    let params = WarpgroupParams {
        linear,
        row_tiles: row_tiles as u32,
        tiles: tiles as u32,
        reserved: 0,
        weights,
        x: map(linear.copy, rows, linear.copy_bytes as usize)?,
    };
    let name = match format {
        WeightFormat::Float(DType::BF16) => "linear_bf16_warpgroup",
        _ => "linear_f16_warpgroup",
    };
    let blocks = tiles.min(driver.description().processors as usize);
    recorder.launch(("linear_warpgroup", name), [blocks, 1, 1], BLOCK_THREADS, SHARED, &params)
}
