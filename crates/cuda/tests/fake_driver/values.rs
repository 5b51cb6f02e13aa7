//! Numbers on a device, for tests on the fake driver.
#![allow(dead_code, reason = "each test program uses a part")]
use anyfleet_cuda::CudaBackend;
use anyfleet_tensor::{Backend, DType, Readback, Result, StepHeader, Tensor};

/// Numbers that look random, equal for equal seeds, and small ones of them exact in all types.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as f32 / 32_768.0 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

pub fn tensor(device: &CudaBackend, shape: &[usize]) -> Result<Tensor<CudaBackend>> {
    Tensor::new(device, DType::F32, shape)
}

pub fn filled(device: &CudaBackend, shape: &[usize], values: &[f32]) -> Result<Tensor<CudaBackend>> {
    let tensor = tensor(device, shape)?;
    device.write(&tensor, bytemuck::cast_slice(values))?;
    Ok(tensor)
}

pub fn read(device: &CudaBackend, tensor: &Tensor<CudaBackend>) -> Result<Vec<f32>> {
    let mut values = vec![0f32; tensor.len()];
    device.read(tensor)?.wait(bytemuck::cast_slice_mut(&mut values))?;
    Ok(values)
}

pub fn header(device: &CudaBackend) -> Result<Tensor<CudaBackend>> {
    let header = Tensor::new(device, DType::U32, &[size_of::<StepHeader>() / 4])?;
    device.write(&header, bytemuck::bytes_of(&StepHeader::default()))?;
    Ok(header)
}

pub fn set_tokens(device: &CudaBackend, header: &Tensor<CudaBackend>, tokens: u32) -> Result<()> {
    device.write(header, bytemuck::bytes_of(&StepHeader { tokens, ..StepHeader::default() }))
}
