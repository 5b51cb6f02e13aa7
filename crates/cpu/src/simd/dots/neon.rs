//! NEON: widening products, or `sdot` where the processor has it (its intrinsic is not stable).
use super::super::neon::Neon;
use super::{DotKernel, Dots};
use std::arch::aarch64::*;
use std::arch::asm;

#[derive(Clone, Copy)]
struct Wide(Neon);

/// Exists only inside [`run_dotprod`].
#[derive(Clone, Copy)]
struct Dotprod(Neon);

pub(super) fn run<K: DotKernel>(kernel: K) {
    kernel.run(Wide(Neon));
}

/// The processor has the dot products: the caller saw them.
pub(super) fn run_dotprod<K: DotKernel>(kernel: K) {
    kernel.run(Dotprod(Neon));
}

macro_rules! shared {
    () => {
        type Float = Neon;
        type Sums = [int32x4_t; 4];
        type Weights = [int8x16_t; 4];
        const BYTE_OFFSET: i32 = 0;
        const NIBBLE_OFFSET: i32 = 0;

        #[inline(always)]
        fn float(self) -> Neon {
            self.0
        }
        #[inline(always)]
        fn splat(self, v: i32) -> Self::Sums {
            // SAFETY: 64-bit Arm has NEON; the same holds for every block below.
            unsafe { [vdupq_n_s32(v); 4] }
        }
        #[inline(always)]
        fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
            // SAFETY: see `splat`.
            std::array::from_fn(|i| unsafe { vaddq_s32(a[i], b[i]) })
        }
        #[inline(always)]
        unsafe fn load(self, p: *const i32) -> Self::Sums {
            // SAFETY: and the caller's promise.
            unsafe { std::array::from_fn(|i| vld1q_s32(p.add(4 * i))) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut i32, v: Self::Sums) {
            // SAFETY: and the caller's promise.
            v.into_iter().enumerate().for_each(|(i, v)| unsafe { vst1q_s32(p.add(4 * i), v) });
        }
        #[inline(always)]
        unsafe fn add_times(self, total: Self::Sums, sums: Self::Sums, m: *const i8) -> Self::Sums {
            // SAFETY: and the caller's promise.
            unsafe {
                let m = vld1q_s8(m);
                let (low, high) = (vmovl_s8(vget_low_s8(m)), vmovl_high_s8(m));
                let m = [
                    vmovl_s16(vget_low_s16(low)),
                    vmovl_high_s16(low),
                    vmovl_s16(vget_low_s16(high)),
                    vmovl_high_s16(high),
                ];
                std::array::from_fn(|i| vmlaq_s32(total[i], sums[i], m[i]))
            }
        }
        #[inline(always)]
        unsafe fn bytes(self, p: *const u8) -> Self::Weights {
            // SAFETY: and the caller's promise.
            unsafe { std::array::from_fn(|i| vld1q_s8(p.cast::<i8>().add(16 * i))) }
        }
        #[inline(always)]
        unsafe fn nibbles(self, p: *const u8) -> (Self::Weights, Self::Weights) {
            // SAFETY: and the caller's promise.
            unsafe {
                let both: [uint8x16_t; 4] = std::array::from_fn(|i| vld1q_u8(p.add(16 * i)));
                let signed = |v| vsubq_s8(vreinterpretq_s8_u8(v), vdupq_n_s8(8));
                (both.map(|v| signed(vandq_u8(v, vdupq_n_u8(15)))), both.map(|v| signed(vshrq_n_u8::<4>(v))))
            }
        }
    };
}

/// Four activations in every lane.
///
/// # Safety
/// Four bytes are readable.
#[inline(always)]
unsafe fn broadcast(x: *const i8) -> int8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) }
}

impl Dots for Wide {
    shared!();

    #[inline(always)]
    unsafe fn dot(self, mut sums: Self::Sums, w: Self::Weights, x: *const i8) -> Self::Sums {
        // SAFETY: and the caller's promise.
        unsafe {
            let x = broadcast(x);
            for (sum, w) in sums.iter_mut().zip(w) {
                let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
                let high = vpaddlq_s16(vmull_high_s8(w, x));
                *sum = vaddq_s32(*sum, vpaddq_s32(low, high));
            }
            sums
        }
    }
}

impl Dots for Dotprod {
    shared!();

    #[inline(always)]
    unsafe fn dot(self, mut sums: Self::Sums, w: Self::Weights, x: *const i8) -> Self::Sums {
        // SAFETY: the processor was seen to have the instruction, and the caller's promise.
        unsafe {
            let x = broadcast(x);
            for (sum, w) in sums.iter_mut().zip(w) {
                asm!(".arch_extension dotprod", "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                     sum = inout(vreg) *sum, w = in(vreg) w, x = in(vreg) x,
                     options(pure, nomem, nostack, preserves_flags));
            }
            sums
        }
    }
}
