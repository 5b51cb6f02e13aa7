//! When products of few rows are flat tiles, how many blocks these are, and what they share. Nothing is computed.
mod common;

use anyfleet_cuda::{CudaBackend, CudaOptions, Recorded};
use anyfleet_tensor::{Backend, DType, WeightFormat};
use common::{ones, recorded_product, sizes};

const BF16: WeightFormat = WeightFormat::Float(DType::BF16);

/// Addresses of `LinearParams` of kernels/cuda/linear.cuh: the copy of x, the sums of parts, and their count.
const COPY: usize = 8;
const SUMS: usize = 11;
const ENDED: usize = 12;
/// Words: parts, and tiles that are cut.
const PARTS: usize = 26 + 16;
const CUT_TILES: usize = 26 + 17;

/// The device that is recorded has 132 multiprocessors.
fn device() -> (CudaBackend, Recorded) {
    CudaBackend::recording_with(&CudaOptions::default())
}

#[test]
fn a_product_is_flat_where_its_tiles_fill_the_device_or_its_rows_are_long() {
    let device = device();
    // Features, input features and rows; the kernel and its grid.
    for (n, k, rows, kernel, grid) in [
        // 99 tiles are three quarters of the multiprocessors.
        (99 * 128, 64, 8, "linear_bf16_8", [99 * 8, 1, 1]),
        (99 * 128, 64, 9, "linear_bf16_flat_32", [1, 99, 1]),
        (99 * 128, 64, 32, "linear_bf16_flat_32", [1, 99, 1]),
        (99 * 128, 64, 33, "linear_bf16_flat_64", [1, 99, 1]),
        (99 * 128, 64, 64, "linear_bf16_flat_64", [1, 99, 1]),
        (98 * 128, 64, 9, "linear_bf16_16", [98 * 8, 1, 1]),
        (98 * 128, 64, 17, "linear_bf16_32", [98 * 4, 1, 1]),
        (98 * 128, 64, 33, "linear_bf16_32", [98 * 4 * 2, 1, 1]),
        // Rows of weights that are long, of enough features: what x is read for less pays for what parts cost.
        (1200, 8192, 64, "linear_bf16_flat_64", [8, 10, 1]),
        (1152, 8192, 64, "linear_bf16_32", [1152 / 32 * 2, 1, 1]),
        (1360, 8192, 16, "linear_bf16_flat_32", [8, 11, 1]),
        (1280, 8192, 16, "linear_bf16_16", [1280 / 16, 1, 1]),
        (2600, 8192, 32, "linear_bf16_flat_32", [8, 21, 1]),
        (2560, 8192, 32, "linear_bf16_32", [2560 / 32, 1, 1]),
        // Forty-nine steps of 64 input features are segments of seven.
        (3800, 3136, 64, "linear_bf16_flat_64", [7, 30, 1]),
    ] {
        let launches = recorded_product(&device, rows, &ones(&device.0, (n, k), BF16));
        let launch = &launches[launches.len() - 1];
        assert_eq!((launch.kernel, launch.grid), (kernel, grid), "{rows} rows, {n}x{k}");
        if kernel.contains("flat") {
            let lines = if rows > 32 { 192 } else { 160 };
            assert_eq!((launch.threads, launch.shared), (128, 3 * lines * 128), "three stages of lines");
            assert_eq!((launches[0].kernel, launches[0].grid), ("linear_bf16_x", [rows as u32, 1, 1]));
            assert_eq!(launches[0].params, launch.params, "both know where parts are counted");
            assert_eq!(launch.word(PARTS), grid[0]);
            assert_eq!(launch.word(CUT_TILES), if grid[0] > 1 { grid[1] } else { 0 });
        }
    }
}

#[test]
fn parts_leave_their_sums_in_memory_that_was_reserved() {
    for (store, rows, sets) in
        [(BF16, 64, 1), (BF16, 16, 1), (WeightFormat::F8, 64, 1), (WeightFormat::Q8, 64, 2), (WeightFormat::Q4, 33, 2)]
    {
        let device = device();
        let (n, k) = (1500, 16_384);
        device.0.reserve(&sizes(rows, k)).unwrap();
        let w = ones(&device.0, (n, k), store);
        let before = device.1.bytes();
        let launches = recorded_product(&device, rows, &w);
        assert_eq!(device.1.bytes(), before, "{store}: no scratch memory but what was reserved");
        let launch = &launches[1];
        assert_eq!(launch.grid, [8, 12, 1], "{store}");
        // Tiles of eight parts, of 128 features by 32 or 64 rows; of bytes those of rests, too.
        let (tile_rows, sums) = (if rows > 32 { 64 } else { 32 }, launch.address(SUMS));
        assert_eq!(launch.address(ENDED) - sums, (sets * 12 * 8 * tile_rows * 128 * 4) as u64, "{store}");
        // Behind x, whose rows are of two bytes a number, or one and another for rests, with their scales.
        let copied = rows * (k * 2 + 8);
        assert_eq!(sums - launch.address(COPY), copied.next_multiple_of(128) as u64, "{store}");
        assert_eq!([PARTS, CUT_TILES].map(|i| launch.word(i)), [8, 12]);
    }
}

#[test]
fn the_most_that_is_reserved_grows_with_the_device_and_its_rows() {
    let device = device().0;
    let bytes = |tokens| device.scratch_bytes(&sizes(tokens, 64));
    // 98 tiles do not fill 132 multiprocessors: eight parts each, of sums and rests.
    let parts = |rows: usize| 98 * 8 * 2 * rows * 128 * 4;
    assert!(bytes(8) < parts(1));
    assert!((parts(32)..parts(33)).contains(&bytes(9)));
    assert!((parts(64)..parts(65)).contains(&bytes(33)));
    assert!(bytes(64) == bytes(65));
}
