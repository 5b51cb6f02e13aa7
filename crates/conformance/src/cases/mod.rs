//! One file per op, by the op's name.
pub mod act_mul;
pub mod attention;
mod cache;
pub mod combine;
pub mod embed;
pub mod gather;
pub mod grouped_linear;
pub mod head_linear;
pub mod latent_attention;
pub mod latent_kv;
pub mod linear;
pub mod linear_act_mul;
pub mod norm;
pub mod rope_kv;
pub mod route;
pub mod sample;
pub mod softcap;

use crate::expect::Want;

/// Wants of numbers that are only moved.
fn exact(values: impl IntoIterator<Item = f32>) -> Vec<Want> {
    values.into_iter().map(|v| Want::Exact(v as f64)).collect()
}
