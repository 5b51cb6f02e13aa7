//! What the operations' tests share.
use crate::{CpuBackend, CpuOptions, CpuWeight, Isa};
use anyfleet_tensor::{Backend, DType, Encoder, HostPart, HostWeight, Readback, StepHeader, Tensor, WeightFormat, f8};
use half::{bf16, f16};

pub(super) const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Types a cache may have.
pub(super) const CACHES: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::I8, DType::F8];

/// In outputs before an operation: whatever still has it was not written.
pub(super) const POISON: f32 = -12345.0;

/// Every kernel set of this machine, with one and with two threads.
pub(super) fn devices() -> Vec<CpuBackend> {
    Isa::supported()
        .flat_map(|isa| [1, 2].map(|threads| CpuOptions { threads: Some(threads), isa: Some(isa) }))
        .map(|options| CpuBackend::new(options).unwrap())
        .collect()
}

/// Runs on every device and checks that all results have the same bits.
pub(super) fn same_bits(run: impl Fn(&CpuBackend) -> Vec<f32>) {
    let mut first: Option<Vec<u32>> = None;
    for device in devices() {
        let bits: Vec<u32> = run(&device).into_iter().map(f32::to_bits).collect();
        match &first {
            Some(first) => assert!(*first == bits, "{} differs from the first set", device.caps().device),
            None => first = Some(bits),
        }
    }
}

/// Numbers in -1..1 from a seed.
pub(super) fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub(super) fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::F8 => f8::decode(f8::encode(x)),
        _ => x,
    }
}

pub(super) fn tensor(device: &CpuBackend, values: &[f32], shape: &[usize]) -> Tensor<CpuBackend> {
    let tensor = Tensor::new(device, DType::F32, shape).unwrap();
    assert_eq!(tensor.len(), values.len());
    device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
    tensor
}

pub(super) fn tensor_u32(device: &CpuBackend, values: &[u32], shape: &[usize]) -> Tensor<CpuBackend> {
    let tensor = Tensor::new(device, DType::U32, shape).unwrap();
    assert_eq!(tensor.len(), values.len());
    device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
    tensor
}

/// The same values as columns 3.. of a wider tensor.
pub(super) fn columns_of(device: &CpuBackend, values: &[f32], rows: usize, cols: usize) -> Tensor<CpuBackend> {
    let mut wide = vec![f32::NAN; rows * (cols + 5)];
    for (target, source) in wide.chunks_mut(cols + 5).zip(values.chunks(cols)) {
        target[3..3 + cols].copy_from_slice(source);
    }
    tensor(device, &wide, &[rows, cols + 5]).columns(3, cols)
}

pub(super) fn weight(device: &CpuBackend, values: &[f32], cols: usize, store: DType) -> CpuWeight {
    weight_in(device, values, cols, WeightFormat::Float(store), false)
}

pub(super) fn weight_in(
    device: &CpuBackend,
    values: &[f32],
    cols: usize,
    store: WeightFormat,
    gated: bool,
) -> CpuWeight {
    let part =
        HostPart { dtype: DType::F32, rows: values.len() / cols, bytes: bytemuck::cast_slice(values), scales: None };
    let host = HostWeight { name: "w".into(), stack: 1, cols, parts: vec![part], store, gated };
    device.load(host).unwrap()
}

/// Runs with a header in which every count is `live`.
pub(super) fn bind(device: &CpuBackend, live: u32, record: impl FnOnce(&mut Encoder<'_, CpuBackend>)) {
    let header = StepHeader { tokens: live, sequences: live, logit_rows: live, reserved: 0 };
    let header = tensor_u32(device, bytemuck::cast_slice(&[header]), &[4]);
    device
        .run(|enc| {
            enc.header(&header);
            record(enc);
        })
        .unwrap();
}

fn read_bytes(device: &CpuBackend, tensor: &Tensor<CpuBackend>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    device.read(tensor).unwrap().wait(&mut bytes).unwrap();
    bytes
}

fn collect<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

pub(super) fn read(device: &CpuBackend, tensor: &Tensor<CpuBackend>) -> Vec<f32> {
    collect(&read_bytes(device, tensor))
}

pub(super) fn read_u32(device: &CpuBackend, tensor: &Tensor<CpuBackend>) -> Vec<u32> {
    collect(&read_bytes(device, tensor))
}

/// The first rows of a strided tensor.
pub(super) fn read_rows(device: &CpuBackend, tensor: &Tensor<CpuBackend>, rows: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| read(device, &tensor.narrow(row, 1))).collect()
}

/// A tensor of any type of caches, widened, without scales.
pub(super) fn read_as_f32(device: &CpuBackend, tensor: &Tensor<CpuBackend>) -> Vec<f32> {
    let bytes = read_bytes(device, tensor);
    match tensor.dtype() {
        DType::BF16 => collect::<bf16>(&bytes).into_iter().map(bf16::to_f32).collect(),
        DType::F16 => collect::<f16>(&bytes).into_iter().map(f16::to_f32).collect(),
        DType::I8 => collect::<i8>(&bytes).into_iter().map(f32::from).collect(),
        DType::F8 => bytes.into_iter().map(f8::decode).collect(),
        _ => collect(&bytes),
    }
}

/// Every element within `tolerance` of the largest magnitude.
#[track_caller]
pub(super) fn close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= tolerance * scale, "element {i}: {g}, expected {w} (largest {scale})");
    }
}
