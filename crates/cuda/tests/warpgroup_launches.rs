//! When products and attention are of warpgroups, and what they ask of a device then. Nothing is computed.
mod common;

use anyfleet_cuda::{CudaBackend, CudaOptions, Recorded};
use anyfleet_tensor::ops::Attention;
use anyfleet_tensor::{Backend, DType, Live, Tensor, WeightFormat};
use common::{names, ones, recorded_product, sizes};

/// Words of `WarpgroupParams` of kernels/cuda/linear_warpgroup.cuh: `turned`, the tiles, and what the recording device
/// puts into its two maps.
const TURNED: usize = 26 + 15;
const TILES: usize = 44;
const MAPS: [usize; 2] = [24, 40];
/// Addresses: of the weights, and of what is made of x.
const WEIGHT: usize = 2;
const COPY: usize = 8;

fn device(warpgroups: bool) -> (CudaBackend, Recorded) {
    CudaBackend::recording_with(&CudaOptions { warpgroups: Some(warpgroups), ..Default::default() })
}

#[test]
fn products_that_fill_the_device_are_of_warpgroups() {
    let device = device(true);
    device.0.reserve(&sizes(1000, 300)).unwrap();
    let scratch = device.1.bytes();
    for (dtype, round, kernel) in
        [(DType::BF16, "linear_bf16_x", "linear_bf16_warpgroup"), (DType::F16, "linear_f16_x", "linear_f16_warpgroup")]
    {
        let (n, k, rows) = (2500, 300, 1000);
        let w = ones(&device.0, (n, k), WeightFormat::Float(dtype));
        let before = device.1.bytes();
        let all = recorded_product(&device, rows, &w);
        assert!(before >= scratch && device.1.bytes() == before, "no scratch memory but what was reserved");
        assert_eq!(names(&all), [round, kernel]);
        assert!(all.iter().all(|launch| launch.word(TURNED) == 1), "both agree where x lies");
        let launch = &all[1];
        // A block for each multiprocessor takes tiles of 128 in turn.
        assert_eq!((launch.grid, launch.threads), ([132, 1, 1], 384));
        assert_eq!([TILES, TILES + 1].map(|i| launch.word(i)), [8, 8 * 20]);
        // Maps: address, rows, bytes of a row, lines of a tile. Panels are of 16 features, rows of whole lines.
        let map = |first| [0, 1, 2, 3].map(|i| launch.address(first + i));
        let row = (k * 2).next_multiple_of(64) as u64;
        assert_eq!(map(MAPS[0]), [launch.address(WEIGHT), 2512, row, 128]);
        assert_eq!(map(MAPS[1]), [launch.address(COPY), 1000, 640, 128]);
        // Stages, sums that meet, and a block of lines that alignment may cost: what a Hopper has.
        assert!(launch.shared == 199_680 && launch.shared <= 227 << 10);
        assert_eq!(launch.params.len(), 448);
    }
}

#[test]
fn other_products_are_not() {
    let on = device(true);
    let large = ones(&on.0, (2500, 64), WeightFormat::Float(DType::BF16));
    // Too few rows, too few tiles, other types.
    assert_eq!(names(&recorded_product(&on, 64, &large)), ["linear_bf16_x", "linear_bf16_32"]);
    assert_eq!(names(&recorded_product(&on, 700, &large)), ["linear_bf16_x", "linear_bf16_small"]);
    assert_eq!(names(&recorded_product(&on, 1000, &large)), ["linear_bf16_x", "linear_bf16_warpgroup"]);
    for (store, kernel) in [
        (WeightFormat::Q8, "linear_q8_large"),
        (WeightFormat::F8, "linear_f8_large"),
        (WeightFormat::Float(DType::F32), "linear_f32_small"),
    ] {
        let other = ones(&on.0, (2500, 64), store);
        assert_eq!(names(&recorded_product(&on, 1000, &other)).last(), Some(&kernel));
    }
    let off = device(false);
    let large = ones(&off.0, (2500, 64), WeightFormat::Float(DType::BF16));
    let all = recorded_product(&off, 1000, &large);
    assert_eq!(names(&all), ["linear_bf16_x", "linear_bf16_large"]);
    assert!(all.iter().all(|launch| launch.word(TURNED) == 0));
}

#[test]
fn attention_of_many_rows_is_of_a_warpgroup() {
    let kernel = |on: bool, kv: DType, size: usize, tokens: usize| {
        let (device, recorded) = &device(on);
        let tensor = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape).unwrap();
        let (q, out) = (tensor(DType::F32, &[tokens, 8 * size]), tensor(DType::F32, &[tokens, 8 * size]));
        let cache = tensor(kv, &[32, 2, 16, size]);
        let (seqs, table) = (tensor(DType::U32, &[1, 8]), tensor(DType::U32, &[32]));
        device
            .run(|enc| {
                enc.attention(Attention {
                    out: &out,
                    q: &q,
                    k_cache: &cache,
                    v_cache: &cache,
                    scales: None,
                    sinks: None,
                    seqs: &seqs,
                    table: &table,
                    scale: 1.0,
                    softcap: None,
                    window: None,
                    longest: 512,
                    live: Live::All,
                });
            })
            .unwrap();
        let launches = recorded.take();
        (launches[0].kernel, launches[0].grid, launches[0].shared)
    };
    // Tiles of 64 rows, of 200 tokens with four heads each.
    let grid = [13, 2, 1];
    assert_eq!(kernel(true, DType::BF16, 128, 200), ("attention_bf16_warpgroup_128", grid, 3 * 64 * 256 + 1024));
    assert_eq!(kernel(true, DType::BF16, 80, 200), ("attention_bf16_warpgroup_128", grid, 3 * 64 * 256 + 1024));
    assert_eq!(kernel(true, DType::BF16, 64, 200), ("attention_bf16_warpgroup_64", grid, 3 * 64 * 128 + 1024));
    // The largest heads, other caches and few rows: not.
    assert_eq!(kernel(true, DType::BF16, 256, 200).0, "attention_bf16_wide_256");
    assert_eq!(kernel(true, DType::F8, 128, 200).0, "attention_f8_wide_128");
    assert_eq!(kernel(true, DType::BF16, 128, 64).0, "attention_bf16_narrow_128");
    assert_eq!(kernel(false, DType::BF16, 128, 200).0, "attention_bf16_wide_128");
}
