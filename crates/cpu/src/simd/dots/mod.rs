//! Sixteen i32 sums of products of signed bytes, exact on every instruction set.
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use super::{Isa, KernelSet, Simd};

/// Dot products of four bytes in sixteen lanes; a value is the proof that the instructions exist.
///
/// Some sets take one operand as unsigned: their weights have an offset, and the sums start at minus the
/// offset times the sum of the activations.
pub(crate) trait Dots: Copy {
    /// The float side of the set.
    type Float: Simd;
    /// Sixteen sums.
    type Sums: Copy;
    /// Sixteen lanes of four weights.
    type Weights: Copy;
    /// What [`Dots::bytes`] adds to a weight.
    const BYTE_OFFSET: i32;
    /// What [`Dots::nibbles`] adds to a weight.
    const NIBBLE_OFFSET: i32;

    fn float(self) -> Self::Float;
    fn splat(self, v: i32) -> Self::Sums;
    fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums;
    /// Sixteen i32 are readable.
    unsafe fn load(self, p: *const i32) -> Self::Sums;
    /// Sixteen i32 are writable.
    unsafe fn store(self, p: *mut i32, v: Self::Sums);
    /// `total + sums * m`, lane by lane; sixteen multipliers are readable.
    unsafe fn add_times(self, total: Self::Sums, sums: Self::Sums, m: *const i8) -> Self::Sums;
    /// Eight lines of 64 nibble pairs as in [`Dots::nibbles`], four features in a lane: eight lines of the low
    /// numbers times each lane's first multiplier, then eight of the high ones times the second.
    unsafe fn expand(self, w: *const u8, m: [*const i8; 2], out: *mut u8) {
        for i in 0..8 * 64 {
            let lane = i % 64 / 4;
            // SAFETY: the caller promises 512 bytes and twice as much room, and sixteen multipliers each.
            unsafe {
                let (byte, [first, second]) = (*w.add(i), m.map(|m| *m.add(lane)));
                *out.add(i) = ((byte & 15) as i8 - 8).wrapping_mul(first) as u8;
                *out.add(8 * 64 + i) = ((byte >> 4) as i8 - 8).wrapping_mul(second) as u8;
            }
        }
    }
    /// Signed bytes; 64 are readable.
    unsafe fn bytes(self, p: *const u8) -> Self::Weights;
    /// Low and high halves of 64 bytes, each a number in -8..=7 plus 8.
    unsafe fn nibbles(self, p: *const u8) -> (Self::Weights, Self::Weights);
    /// Adds to lane `n` the products of its four weights with four activations, which are readable and
    /// above -128.
    unsafe fn dot(self, sums: Self::Sums, weights: Self::Weights, x: *const i8) -> Self::Sums;
}

/// Work compiled once per instruction set; as [`Kernel`](super::Kernel), with [`Dots`].
pub(crate) trait DotKernel {
    fn run<D: Dots>(self, d: D);
}

impl KernelSet {
    /// Runs a kernel with this set's dot products.
    pub(crate) fn dots<K: DotKernel>(self, kernel: K) {
        match self.isa() {
            // SAFETY: the set was seen, and so was the extension.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => unsafe {
                avx512::run(kernel)
            },
            // SAFETY: as above; AVX-512 without dot products has AVX2.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 | Isa::Avx2 => unsafe {
                if is_x86_feature_detected!("avxvnni") { avx2::run_vnni(kernel) } else { avx2::run(kernel) }
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => neon::run_dotprod(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => neon::run(kernel),
            _ => portable::run(kernel),
        }
    }
}
