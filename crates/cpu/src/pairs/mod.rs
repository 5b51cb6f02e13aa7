//! Products with bf16 weights, by pairs of input features.
//!
//! Activations are rounded to bf16. Input features come in blocks of 32, padded with zeros; in a block
//! the products of even and of odd features are summed separately, each by fused multiply-adds in order
//! from zero; the two sums are added, and that to the output. So does the matrix unit of x86
//! (`TDPBF16PS`, Intel SDM vol. 2), and every other kernel set does the same, so all have the same bits
//! (short of sums below 1e-38, which the unit takes for zero). Products of bf16 are exact in f32.
//!
//! What is packed: a panel of 32 output features holds, for each block, two tiles of sixteen features,
//! `[16 pairs][16 features][2]`; one row reads a panel as one stream.
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub(crate) mod pack;
mod vector;

use crate::simd::{Isa, KernelSet, LANES};
use half::bf16;

/// Input features of a block.
pub(crate) const BLOCK: usize = 32;
/// Output features of a panel.
pub(crate) const PANEL: usize = 32;
/// Elements of a panel's block: two tiles.
pub(crate) const STEP: usize = BLOCK * PANEL;
/// Elements of a tile.
pub(crate) const TILE: usize = BLOCK * LANES;

/// Where the weight of output feature `n` of its panel and input feature `k` stands in the panel.
pub(crate) fn place(n: usize, k: usize) -> usize {
    k / BLOCK * STEP + n / LANES * TILE + k % BLOCK / 2 * BLOCK + n % LANES * 2 + k % 2
}

/// Rows of activations, packed, times some blocks of one panel.
pub(crate) struct Product {
    /// Packed rows ([`pack::Rows`]) from the product's first block on.
    pub(crate) x: *const u8,
    /// Bytes from one group of rows to the next.
    pub(crate) group_bytes: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// The panel, from the product's first block on.
    pub(crate) w: *const bf16,
    /// How many blocks.
    pub(crate) blocks: usize,
    /// `[rows][32]`, rows `acc_stride` elements apart; there are rows up to a multiple of
    /// [`group_rows`].
    pub(crate) acc: *mut f32,
    pub(crate) acc_stride: usize,
    /// Continue the sums in `acc` instead of starting at zero.
    pub(crate) resume: bool,
}

/// Rows that are packed together.
pub(crate) fn group_rows(kernels: KernelSet) -> usize {
    match kernels.isa() {
        Isa::Amx => 16,
        _ => vector::group_rows(kernels),
    }
}

/// Computes products one after the other.
///
/// # Safety
/// The pointers are valid for the shapes given at [`Product`]'s fields, and nothing else accesses
/// `acc` meanwhile.
pub(crate) unsafe fn multiply(kernels: KernelSet, products: impl Iterator<Item = Product>) {
    match kernels.isa() {
        // SAFETY: the caller's promise; the set was seen to be there.
        #[cfg(target_arch = "x86_64")]
        Isa::Amx => unsafe { amx::multiply(products) },
        _ => {
            for product in products {
                // SAFETY: the caller's promise.
                unsafe { vector::multiply(kernels, &product) };
            }
        }
    }
}
