//! One file per operation: the recorded form, its execution, and tests against a naive twin.
pub(crate) mod act_mul;
pub(crate) mod attention;
pub(crate) mod combine;
pub(crate) mod embed;
pub(crate) mod gather;
pub(crate) mod grouped_linear;
pub(crate) mod latent_kv;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod rope_kv;
pub(crate) mod route;
pub(crate) mod sample;
pub(crate) mod softcap;
#[cfg(test)]
mod testing;
