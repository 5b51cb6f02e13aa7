//! One file for each operation: what its kernel is given.
pub(crate) mod act_mul;
pub(crate) mod attention;
pub(crate) mod combine;
pub(crate) mod embed;
pub(crate) mod gather;
pub(crate) mod grouped_linear;
pub(crate) mod head_linear;
pub(crate) mod latent_kv;
pub(crate) mod linear;
pub(crate) mod linear_matrix;
pub(crate) mod norm;
pub(crate) mod rope_kv;
pub(crate) mod route;
pub(crate) mod sample;
pub(crate) mod softcap;

use crate::WgpuBackend;
use anyfleet_tensor::ops::Activation;
use anyfleet_tensor::{DType, Error, Result, Tensor};
use std::sync::Arc;

/// Whether two tensors are the same elements.
fn same_place(a: &Tensor<WgpuBackend>, b: &Tensor<WgpuBackend>) -> bool {
    Arc::ptr_eq(&a.buffer().raw, &b.buffer().raw) && a.offset() == b.offset() && a.row_stride() == b.row_stride()
}

/// Refuses an input in the memory that an operation writes to: a device may not read and write a buffer at once.
fn check_apart(op: &'static str, out: &Tensor<WgpuBackend>, input: &Tensor<WgpuBackend>) -> Result<()> {
    if !Arc::ptr_eq(&out.buffer().raw, &input.buffer().raw) {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "an input lies in the buffer of the output",
        details: format!("out {out:?}, input {input:?}"),
        remedy: "give them buffers of their own",
    })
}

/// The number kernels know an activation by.
fn function(op: &'static str, activation: Activation) -> Result<u32> {
    match activation {
        Activation::Silu => Ok(0),
        Activation::GeluTanh => Ok(1),
        other => Err(Error::Shape {
            op,
            what: "no kernel for this activation",
            details: format!("{other:?}"),
            remedy: "use another device",
        }),
    }
}

/// The flag of a cache's type.
fn kv_flag(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "KV_BF16",
        DType::F16 => "KV_F16",
        DType::I8 => "KV_I8",
        DType::F8 => "KV_F8",
        _ => "KV_F32",
    }
}

/// Refuses heads of an odd size: kernels take their elements in pairs.
fn check_head(op: &'static str, cache: &Tensor<WgpuBackend>) -> Result<()> {
    if cache.dim(3).is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "the head size must be even",
        details: format!("k_cache {cache:?}"),
        remedy: "use another device for this model",
    })
}

/// Refuses caches of latents of an odd size, and with values of one: kernels take their elements in pairs.
fn check_pairs(op: &'static str, cache: &Tensor<WgpuBackend>, rank: usize) -> Result<()> {
    if cache.dim(3).is_multiple_of(2) && rank.is_multiple_of(2) {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "latents and keys must have an even size",
        details: format!("cache {cache:?}, latents of {rank}"),
        remedy: "use another device for this model",
    })
}
