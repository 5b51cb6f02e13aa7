//! What test programs share: numbers, the emulated device, and what a device that only records is asked for.
#![allow(dead_code, reason = "each test program uses a part")]
use anyfleet_cuda::{CudaBackend, CudaWeight, Recorded, RecordedLaunch};
use anyfleet_tensor::ops::Linear;
use anyfleet_tensor::{Backend, DType, HostPart, HostWeight, Live, StepSizes, Tensor, WeightFormat};

/// Numbers that look random, between -1 and 1.
pub fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / i32::MAX as f32
    };
    (0..n).map(next).collect()
}

/// A tensor of floats that begins with `values`.
pub fn tensor(device: &CudaBackend, shape: &[usize], values: &[f32]) -> Tensor<CudaBackend> {
    let tensor = Tensor::new(device, DType::F32, shape).unwrap();
    device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
    tensor
}

/// A matrix of `cols` input features from floats.
pub fn load(device: &CudaBackend, w: &[f32], cols: usize, store: WeightFormat, gated: bool) -> CudaWeight {
    let parts =
        vec![HostPart { dtype: DType::F32, rows: w.len() / cols, bytes: bytemuck::cast_slice(w), scales: None }];
    device.load(HostWeight { name: "w".into(), stack: 1, cols, parts, store, gated }).unwrap()
}

/// The emulated device, unless the machine has no C++ compiler: `open` opens it.
#[cfg(feature = "emulate")]
pub fn emulated<T>(open: impl FnOnce() -> anyfleet_tensor::Result<T>) -> Option<T> {
    let reason = match open() {
        Ok(device) => return Some(device),
        Err(reason) => reason.to_string(),
    };
    let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
    let skips = reason.contains("need a C++ compiler") && !required.split(',').any(|name| name.trim() == "cuda");
    assert!(skips, "ANYFLEET_REQUIRE={required}: {reason}");
    eprintln!("SKIPPED on cuda: {reason} (ANYFLEET_REQUIRE=cuda makes this a failure)");
    None
}

/// The devices there are: the emulated one, and a GPU.
#[cfg(feature = "emulate")]
pub fn devices() -> Vec<CudaBackend> {
    let gpu = CudaBackend::new(&anyfleet_cuda::CudaOptions::default());
    emulated(CudaBackend::emulated).into_iter().chain(gpu).collect()
}

/// A matrix of ones.
pub fn ones(device: &CudaBackend, (n, k): (usize, usize), store: WeightFormat) -> CudaWeight {
    load(device, &vec![1.0; n * k], k, store, false)
}

/// What a product of `rows` rows asks of a device that only records.
pub fn recorded_product(
    (device, recorded): &(CudaBackend, Recorded),
    rows: usize,
    weight: &CudaWeight,
) -> Vec<RecordedLaunch> {
    let (n, k) = CudaBackend::weight_shape(weight);
    let tensor = |columns| Tensor::new(device, DType::F32, &[rows, columns]).unwrap();
    let (x, out) = (&tensor(k), &tensor(n));
    device.run(|enc| enc.linear(Linear { out, x, weight, bias: None, residual: None, live: Live::All })).unwrap();
    recorded.take()
}

pub fn names(launches: &[RecordedLaunch]) -> Vec<&str> {
    launches.iter().map(|launch| launch.kernel).collect()
}

/// Steps of a small model: so many tokens, and input features of a product.
pub fn sizes(tokens: usize, widest: usize) -> StepSizes {
    StepSizes {
        tokens,
        query_width: 64,
        head_size: 64,
        widest,
        grouped_rows: 0,
        grouped_widest: 0,
        head_rows: 0,
        head_widest: 0,
        positions: 1,
        logit_rows: 1,
        vocab_size: 1,
    }
}
