//! The residual stream on the host, as f32 whatever type a device has it in.
use anyfleet_tensor::{Backend, DType, Error, Readback, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Reads the contiguous activations `x`.
pub(crate) fn read<B: Backend>(device: &B, x: &Tensor<B>, out: &mut Vec<f32>) -> Result<()> {
    out.resize(x.len(), 0.0);
    match x.dtype() {
        DType::F32 => device.read(x)?.wait(bytemuck::cast_slice_mut(out)),
        DType::BF16 => {
            let mut narrow = vec![bf16::ZERO; x.len()];
            device.read(x)?.wait(bytemuck::cast_slice_mut(&mut narrow))?;
            narrow.convert_to_f32_slice(out);
            Ok(())
        }
        DType::F16 => {
            let mut narrow = vec![f16::ZERO; x.len()];
            device.read(x)?.wait(bytemuck::cast_slice_mut(&mut narrow))?;
            narrow.convert_to_f32_slice(out);
            Ok(())
        }
        dtype => Err(no_activation(device, dtype)),
    }
}

/// Writes the contiguous activations `x`, rounded to its type.
pub(crate) fn write<B: Backend>(device: &B, x: &Tensor<B>, values: &[f32]) -> Result<()> {
    match x.dtype() {
        DType::F32 => device.write(x, bytemuck::cast_slice(values)),
        DType::BF16 => {
            let narrow: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            device.write(x, bytemuck::cast_slice(&narrow))
        }
        DType::F16 => {
            let narrow: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            device.write(x, bytemuck::cast_slice(&narrow))
        }
        dtype => Err(no_activation(device, dtype)),
    }
}

fn no_activation<B: Backend>(device: &B, dtype: DType) -> Error {
    let (op, operand, device) = ("residual", "x", device.caps().device.clone());
    Error::DType { op, operand, dtype, device, remedy: "use f32, bf16 or f16 for activations" }
}
