//! What products ask of a device that has a library for them. Nothing is computed.
mod common;

use anyfleet_cuda::{CudaBackend, CudaOptions, Recorded, RecordedLaunch};
use anyfleet_tensor::ops::{Activation, Linear, LinearActMul};
use anyfleet_tensor::{Backend, DType, Gemm, Live, Tensor, WeightFormat};
use common::{load, names, sizes};

const BF16: WeightFormat = WeightFormat::Float(DType::BF16);
const F16: WeightFormat = WeightFormat::Float(DType::F16);
const F32: WeightFormat = WeightFormat::Float(DType::F32);
/// Addresses of `LinearParams` in kernels/cuda/linear.cuh, and what `linear_finish` has behind them.
const WEIGHT: usize = 2;
const COPY: usize = 8;
const SCALES: usize = 10;
const SUMS: usize = 22;
const FIRST: usize = 46;
/// What the library may write to beside its output.
const WORKSPACE: u64 = 32 << 20;

fn fast() -> CudaOptions {
    CudaOptions { gemm: Gemm::Fast, ..Default::default() }
}

/// The launches of a product of `rows` rows of capacity.
fn launches(
    (device, recorded): &(CudaBackend, Recorded),
    rows: usize,
    (n, k): (usize, usize),
    store: WeightFormat,
    activation: Option<Activation>,
) -> Vec<RecordedLaunch> {
    let weight = &load(device, &vec![1.0; n * k], k, store, activation.is_some());
    let tensor = |columns| Tensor::new(device, DType::F32, &[rows, columns]).unwrap();
    let (x, wide, narrow) = (tensor(k), tensor(n), tensor(n / 2));
    device
        .run(|enc| match activation {
            None => {
                enc.linear(Linear { out: &wide, x: &x, weight, bias: None, residual: Some(&wide), live: Live::All });
            }
            Some(activation) => {
                let (out, gate_up, x, live) = (&narrow, &wide, &x, Live::All);
                enc.linear_act_mul(LinearActMul { out, gate_up, x, weight, bias: None, activation, live });
            }
        })
        .unwrap();
    recorded.take()
}

#[test]
fn many_rows_are_rounded_multiplied_and_finished() {
    let device = CudaBackend::recording_with(&fast());
    for (store, round, activation) in
        [(BF16, "linear_bf16_x", None), (F16, "linear_f16_x", None), (BF16, "linear_bf16_x", Some(Activation::Silu))]
    {
        let (rows, n, k) = (100, 42, 70);
        let all = launches(&device, rows, (n, k), store, activation);
        assert_eq!(names(&all), [round, RecordedLaunch::PRODUCT, "linear_finish"]);
        let [rounded, product, finish] = &all[..] else { unreachable!() };
        // Three panels of sixteen features, each with its row of 128 input features.
        let halves = u32::from(store == F16);
        assert_eq!([8, 9, 10, 11].map(|i| product.word(i)), [rows as u32, 48, 128, halves]);
        let [sums, x, weight, workspace] = [0, 1, 2, 3].map(|i| product.address(i));
        assert_eq!((x, weight), (rounded.address(COPY), rounded.address(WEIGHT)));
        assert!([sums, x, weight, workspace].iter().all(|at| at % 256 == 0), "as the library takes for granted");
        assert!(sums >= x + 100 * 256 && workspace >= sums + 4 * 100 * 48);
        // Scales of rows lie behind them, before the sums.
        let scales = rounded.address(SCALES);
        assert!((x + 100 * 256..=sums - 100 * 8).contains(&scales));
        assert_eq!(finish.address(SCALES), if store == F16 { scales } else { 0 });
        assert_eq!((finish.address(SUMS), finish.word(FIRST), finish.word(FIRST + 1)), (sums, 0, 3));
        assert_eq!((finish.grid, finish.threads, finish.params.len()), ([rows as u32, 1, 1], 256, 192));
        // What it is besides is what the first was given.
        assert_eq!(finish.params[..80], rounded.params[..80]);
        assert_eq!(finish.params[88..176], rounded.params[88..]);
    }
}

#[test]
fn weights_of_eight_bits_are_widened_some_at_a_time() {
    let device = CudaBackend::recording_with(&fast());
    // Rows of 32,768 bytes: 2,048 of them are 64 MiB.
    let (rows, n, k) = (100, 2_090, 16_380);
    let all = launches(&device, rows, (n, k), WeightFormat::F8, None);
    assert_eq!(all[0].kernel, "linear_f8_x");
    let (mut features, blocks) = (0, 256);
    for three in all[1..].chunks(3) {
        assert_eq!(names(three), ["linear_f8_widen", RecordedLaunch::PRODUCT, "linear_finish"]);
        let [widen, product, finish] = three else { unreachable!() };
        let some = product.word(9);
        assert_eq!((widen.grid, widen.threads), ([some, 4 * blocks / 256, 1], 256));
        assert_eq!((widen.address(SUMS), widen.word(FIRST)), (product.address(2), features / 16));
        assert_eq!((product.word(10), product.word(11)), (64 * blocks, 0));
        assert_eq!((finish.word(FIRST), finish.word(FIRST + 1)), (features / 16, some / 16));
        let [sums, x, wide, workspace] = [0, 1, 2, 3].map(|i| product.address(i));
        assert!(sums >= x + 100 * 32_768 && wide >= sums + 400 * u64::from(some), "nothing lies in another's place");
        assert!(workspace >= wide + u64::from(some) * 32_768 && some * 32_768 <= 64 << 20);
        features += some;
    }
    assert_eq!((all.len(), features), (1 + 2 * 3, 2_096));
}

#[test]
fn wide_products_are_done_in_parts() {
    let device = CudaBackend::recording_with(&fast());
    let (rows, n) = (512, 70_003);
    let all = launches(&device, rows, (n, 1), BF16, None);
    assert_eq!(all.len(), 1 + 2 * 3);
    let (first, mut features) = (all[0].address(WEIGHT), 0);
    for pair in all[1..].chunks(2) {
        assert_eq!(names(pair), [RecordedLaunch::PRODUCT, "linear_finish"]);
        let (product, finish) = (&pair[0], &pair[1]);
        let some = product.word(9);
        assert!(some.is_multiple_of(16) && 4 * rows as u32 * some <= 64 << 20);
        assert_eq!(product.address(2), first + u64::from(features) * 128);
        assert_eq!((finish.word(FIRST), finish.word(FIRST + 1)), (features / 16, some / 16));
        assert!(finish.grid[1] * 512 >= some && (finish.grid[1] - 1) * 512 < some);
        features += some;
    }
    assert_eq!(features as usize, n.next_multiple_of(16));
}

#[test]
fn what_the_library_is_not_asked_for() {
    let fast = CudaBackend::recording_with(&fast());
    for (rows, store) in
        [(64, BF16), (64, F16), (64, WeightFormat::F8), (100, F32), (100, WeightFormat::Q8), (100, WeightFormat::Q4)]
    {
        let device = CudaBackend::recording();
        let [one, other] = [&fast, &device].map(|device| {
            let launches = launches(device, rows, (48, 64), store, None);
            launches.into_iter().map(|launch| (launch.kernel, launch.grid, launch.shared)).collect::<Vec<_>>()
        });
        assert_eq!(one, other, "{rows} rows of {store}");
    }
    let plain = launches(&CudaBackend::recording(), 100, (48, 64), BF16, None);
    assert!(!names(&plain).contains(&RecordedLaunch::PRODUCT));
}

#[test]
fn scratch_memory_is_what_was_reserved() {
    for tokens in [65, 200, 512, 70_000] {
        let device = CudaBackend::recording_with(&fast());
        let sizes = sizes(tokens, 70);
        // Rows of 128 numbers of sixteen bits, and what belongs to a row.
        let copy = tokens as u64 * (2 * 128 + 8);
        let bytes = device.0.scratch_bytes(&sizes) as u64;
        // Sums, widened weights and a workspace are all that is more.
        let more = copy + WORKSPACE + (64 << 20);
        assert!((more + (64 << 20)..=more + (128 << 20)).contains(&bytes), "{bytes}");
        device.0.reserve(&sizes).unwrap();
        let before = device.1.allocations();
        let weight_and_tensors = 4;
        for (i, rows) in [65, 128, tokens / 2, tokens].into_iter().enumerate() {
            for (j, store) in [BF16, WeightFormat::F8].into_iter().enumerate() {
                launches(&device, rows.min(tokens), (140_000, 1), store, None);
                let products = 2 * i as u64 + j as u64 + 1;
                assert_eq!(device.1.allocations() - before, products * weight_and_tensors, "scratch memory grew");
            }
        }
    }
}
