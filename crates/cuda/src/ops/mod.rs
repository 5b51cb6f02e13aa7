//! One file for each operation: which kernels it launches and what they are given.
pub(crate) mod act_mul;
pub(crate) mod attention;
pub(crate) mod combine;
pub(crate) mod embed;
pub(crate) mod gather;
pub(crate) mod grouped_linear;
pub(crate) mod head_linear;
pub(crate) mod latent_kv;
pub(crate) mod linear;
pub(crate) mod linear_flat;
pub(crate) mod linear_library;
pub(crate) mod linear_warpgroup;
pub(crate) mod norm;
pub(crate) mod rope_kv;
pub(crate) mod route;
pub(crate) mod sample;
pub(crate) mod softcap;

use crate::CudaBackend;
use anyfleet_tensor::ops::Activation;
use anyfleet_tensor::{DType, Error, Result, Tensor};

/// The number kernels know an activation by: `activation.cuh`.
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

/// The number kernels know a type of caches by: `kv.cuh`.
fn kv_type(dtype: DType) -> u32 {
    match dtype {
        DType::BF16 => 1,
        DType::F16 => 2,
        DType::I8 => 3,
        DType::F8 => 4,
        _ => 0,
    }
}

/// Refuses heads that kernels do not take: those of an odd size, and large ones (`HEAD_MOST` of `kv.cuh`).
fn check_head(op: &'static str, cache: &Tensor<CudaBackend>) -> Result<()> {
    if cache.dim(3).is_multiple_of(2) && cache.dim(3) <= 256 {
        return Ok(());
    }
    Err(Error::Shape {
        op,
        what: "the head size must be even and at most 256",
        details: format!("k_cache {cache:?}"),
        remedy: "use another device for this model",
    })
}
