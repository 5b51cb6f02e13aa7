//! Sixteen lanes in four q registers.
use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON is part of every 64-bit Arm processor Rust runs on.
#[derive(Clone, Copy)]
pub(super) struct Neon;

/// Lanes 0..4, 4..8, 8..12, 12..16.
type V = [float32x4_t; 4];

#[inline(never)]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon)
}

/// Four f16 widened: the intrinsic's argument type is not stable, the instruction is baseline.
#[inline(always)]
fn widen_f16(bits: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: reads one vector register and writes another.
    unsafe {
        asm!("fcvtl {out:v}.4s, {bits:v}.4h", out = out(vreg) out, bits = in(vreg) bits,
             options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Four f16 rounded to nearest, ties to even.
#[inline(always)]
fn narrow_f16(v: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: reads one vector register and writes another.
    unsafe {
        asm!("fcvtn {out:v}.4h, {v:v}.4s", out = out(vreg) out, v = in(vreg) v,
             options(pure, nomem, nostack, preserves_flags));
    }
    out
}

macro_rules! lanes {
    ($i:ident => $value:expr) => {
        // SAFETY: NEON is always there; loads and stores rest on the caller's promise.
        unsafe {
            [
                {
                    const $i: usize = 0;
                    $value
                },
                {
                    const $i: usize = 1;
                    $value
                },
                {
                    const $i: usize = 2;
                    $value
                },
                {
                    const $i: usize = 3;
                    $value
                },
            ]
        }
    };
}

/// Four rows of a 4 x 4 block become columns.
#[inline(always)]
fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON is always there.
    unsafe {
        let (a, b) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (c, d) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        let wide = |v| vreinterpretq_f64_f32(v);
        let narrow = |v| vreinterpretq_f32_f64(v);
        [
            narrow(vtrn1q_f64(wide(a), wide(c))),
            narrow(vtrn1q_f64(wide(b), wide(d))),
            narrow(vtrn2q_f64(wide(a), wide(c))),
            narrow(vtrn2q_f64(wide(b), wide(d))),
        ]
    }
}

/// Bits whose upper halves are the bf16 that four numbers round to.
#[inline(always)]
fn round_up(v: float32x4_t) -> uint32x4_t {
    // SAFETY: NEON is always there.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)))
    }
}

impl Simd for Neon {
    type V = V;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        lanes!(_I => vdupq_n_f32(x))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        lanes!(I => vld1q_f32(p.add(4 * I)))
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> V {
        lanes!(I => vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast::<u16>().add(4 * I)))))
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> V {
        lanes!(I => widen_f16(vld1_u16(p.cast::<u16>().add(4 * I))))
    }
    #[inline(always)]
    fn split_pairs(self, v: V) -> (V, V) {
        let pairs = lanes!(I => vreinterpretq_u32_f32(v[I]));
        let mask = 0xFFFF_0000_u32;
        (
            lanes!(I => vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs[I]))),
            lanes!(I => vreinterpretq_f32_u32(vandq_u32(pairs[I], vdupq_n_u32(mask)))),
        )
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(self, p: *const i8) -> (V, V) {
        let pairs = lanes!(I => vmovl_s16(vreinterpret_s16_s8(vld1_s8(p.add(8 * I)))));
        (
            lanes!(I => vcvtq_f32_s32(vshrq_n_s32::<24>(vshlq_n_s32::<24>(pairs[I])))),
            lanes!(I => vcvtq_f32_s32(vshrq_n_s32::<8>(pairs[I]))),
        )
    }
    #[inline(always)]
    unsafe fn load_pairs_f8(self, p: *const u8) -> (V, V) {
        let pairs = lanes!(I => vmovl_u16(vreinterpret_u16_u8(vld1_u8(p.add(8 * I)))));
        // In the place of an f32's, the bits are 2^-120 times the number.
        let factor = f32::from_bits((127 + 112) << 23);
        let (sign, magnitude) = (0x80_u32, 0x7f_u32);
        (
            lanes!(I => {
                let sign = vshlq_n_u32::<24>(vandq_u32(pairs[I], vdupq_n_u32(sign)));
                let bits = vorrq_u32(sign, vshlq_n_u32::<20>(vandq_u32(pairs[I], vdupq_n_u32(magnitude))));
                vmulq_n_f32(vreinterpretq_f32_u32(bits), factor)
            }),
            lanes!(I => {
                let second = vshrq_n_u32::<8>(pairs[I]);
                let sign = vshlq_n_u32::<24>(vandq_u32(second, vdupq_n_u32(sign)));
                let bits = vorrq_u32(sign, vshlq_n_u32::<20>(vandq_u32(second, vdupq_n_u32(magnitude))));
                vmulq_n_f32(vreinterpretq_f32_u32(bits), factor)
            }),
        )
    }
    #[inline(always)]
    fn join_pairs(self, first: V, second: V) -> V {
        // The upper halves of the first elements are shifted into the lower ones of the second.
        lanes!(I => vreinterpretq_f32_u32(vsriq_n_u32::<16>(round_up(second[I]), round_up(first[I]))))
    }
    #[inline(always)]
    fn round_bf16(self, v: V) -> V {
        lanes!(I => {
            let quiet = vorrq_u32(vreinterpretq_u32_f32(v[I]), vdupq_n_u32(0x0040_0000));
            let bits = vbslq_u32(vceqq_f32(v[I], v[I]), round_up(v[I]), quiet);
            vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xFFFF_0000)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        lanes!(I => vst1q_f32(p.add(4 * I), v[I]));
    }
    #[inline(always)]
    fn zip_bf16(self, a: V, b: V) -> (V, V) {
        let zip = |i: usize| {
            // SAFETY: NEON.
            unsafe {
                let (a, b) = (vreinterpretq_u16_f32(a[i]), vreinterpretq_u16_f32(b[i]));
                [vreinterpretq_f32_u16(vzip1q_u16(a, b)), vreinterpretq_f32_u16(vzip2q_u16(a, b))]
            }
        };
        let ([a, b], [c, d]) = (zip(0), zip(1));
        let ([e, f], [g, h]) = (zip(2), zip(3));
        ([a, b, c, d], [e, f, g, h])
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: V) {
        // SAFETY: NEON, and the caller promises sixteen bytes.
        unsafe {
            let word = |i: usize| vmovn_s32(vcvtnq_s32_f32(v[i]));
            let (low, high) = (vcombine_s16(word(0), word(1)), vcombine_s16(word(2), word(3)));
            vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> V {
        // SAFETY: NEON, and the caller promises sixteen elements.
        std::array::from_fn(|i| unsafe { vcvtq_f32_s32(vld1q_s32(p.add(4 * i))) })
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut half::bf16, v: V) {
        let v = self.round_bf16(v);
        lanes!(I => vst1_u16(p.cast::<u16>().add(4 * I), vshrn_n_u32::<16>(vreinterpretq_u32_f32(v[I]))));
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: V) {
        lanes!(I => vst1_u16(p.cast::<u16>().add(4 * I), narrow_f16(v[I])));
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        lanes!(I => vfmaq_f32(c[I], a[I], b[I]))
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        lanes!(I => vaddq_f32(a[I], b[I]))
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        lanes!(I => vsubq_f32(a[I], b[I]))
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        lanes!(I => vmulq_f32(a[I], b[I]))
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        lanes!(I => vdivq_f32(a[I], b[I]))
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // Not the max instruction: it gives NaN where either is NaN.
        self.select_gt(a, b, a, b)
    }
    #[inline(always)]
    fn select_gt(self, x: V, y: V, a: V, b: V) -> V {
        lanes!(I => vbslq_f32(vcgtq_f32(x[I], y[I]), a[I], b[I]))
    }
    #[inline(always)]
    fn gt_mask(self, x: V, y: V) -> u32 {
        const BITS: [u32; 4] = [1, 2, 4, 8];
        let bits = lanes!(I => vandq_u32(
            vcgtq_f32(x[I], y[I]),
            vshlq_u32(vld1q_u32(BITS.as_ptr()), vdupq_n_s32(4 * I as i32))
        ));
        // SAFETY: NEON is always there.
        unsafe { vaddvq_u32(vorrq_u32(vorrq_u32(bits[0], bits[1]), vorrq_u32(bits[2], bits[3]))) }
    }
    #[inline(always)]
    fn floor(self, v: V) -> V {
        lanes!(I => vrndmq_f32(v[I]))
    }
    #[inline(always)]
    fn add_exponent(self, v: V, n: V) -> V {
        lanes!(I => vreinterpretq_f32_u32(vaddq_u32(
            vreinterpretq_u32_f32(v[I]),
            vshlq_n_u32::<23>(vreinterpretq_u32_f32(n[I]))
        )))
    }
    #[inline(always)]
    fn reduce_add(self, v: V) -> f32 {
        // SAFETY: NEON is always there.
        unsafe {
            let v = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array has sixteen elements.
        unsafe { self.store(lanes.as_mut_ptr(), v) };
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
        }
        lanes[0]
    }
    #[inline(always)]
    fn unzip(self, low: V, high: V) -> (V, V) {
        let v = [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]];
        (lanes!(I => vuzp1q_f32(v[2 * I], v[2 * I + 1])), lanes!(I => vuzp2q_f32(v[2 * I], v[2 * I + 1])))
    }
    #[inline(always)]
    fn zip(self, even: V, odd: V) -> (V, V) {
        let (first, second) = (lanes!(I => vzip1q_f32(even[I], odd[I])), lanes!(I => vzip2q_f32(even[I], odd[I])));
        ([first[0], second[0], first[1], second[1]], [first[2], second[2], first[3], second[3]])
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [V; 16]) {
        let source = *rows;
        for i in 0..4 {
            for j in 0..4 {
                let block =
                    transpose4([source[4 * i][j], source[4 * i + 1][j], source[4 * i + 2][j], source[4 * i + 3][j]]);
                for (k, column) in block.into_iter().enumerate() {
                    rows[4 * j + k][i] = column;
                }
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, readonly, preserves_flags)) }
    }
}
