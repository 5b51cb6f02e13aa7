//! Sixteen lanes as an array: the definition the other sets reproduce.
use super::{Kernel, LANES, Simd};

#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(never)]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Portable)
}

/// Sixteen lanes.
type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, f: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn fold(mut v: V, f: impl Fn(f32, f32) -> f32) -> f32 {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            v[i] = f(v[i], v[i + width]);
        }
    }
    v[0]
}

impl Simd for Portable {
    type V = V;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> V {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<[half::bf16; LANES]>().read_unaligned() }.map(half::bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> V {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<[half::f16; LANES]>().read_unaligned() }.map(half::f16::to_f32)
    }
    #[inline(always)]
    fn split_pairs(self, v: V) -> (V, V) {
        let bits = v.map(f32::to_bits);
        (bits.map(|b| f32::from_bits(b << 16)), bits.map(|b| f32::from_bits(b & 0xFFFF_0000)))
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(self, p: *const i8) -> (V, V) {
        // SAFETY: the caller promises 32 bytes.
        let bytes = unsafe { p.cast::<[i8; 2 * LANES]>().read_unaligned() };
        (std::array::from_fn(|i| f32::from(bytes[2 * i])), std::array::from_fn(|i| f32::from(bytes[2 * i + 1])))
    }
    #[inline(always)]
    unsafe fn load_pairs_f8(self, p: *const u8) -> (V, V) {
        // SAFETY: the caller promises 32 bytes.
        let bytes = unsafe { p.cast::<[u8; 2 * LANES]>().read_unaligned() };
        // In the place of an f32's, the bits are 2^-120 times the number.
        let number = |byte: u8| {
            let bits = u32::from(byte & 0x80) << 24 | u32::from(byte & 0x7f) << 20;
            f32::from_bits(bits) * f32::from_bits((127 + 112) << 23)
        };
        (std::array::from_fn(|i| number(bytes[2 * i])), std::array::from_fn(|i| number(bytes[2 * i + 1])))
    }
    #[inline(always)]
    fn join_pairs(self, first: V, second: V) -> V {
        let upper = |v: f32| {
            let bits = v.to_bits();
            bits.wrapping_add(0x7FFF + (bits >> 16 & 1))
        };
        zip(first, second, |a, b| f32::from_bits(upper(a) >> 16 | upper(b) & 0xFFFF_0000))
    }
    #[inline(always)]
    fn round_bf16(self, v: V) -> V {
        v.map(|x| half::bf16::from_f32(x).to_f32())
    }
    #[inline(always)]
    fn round_near_bf16(self, v: V) -> V {
        // Fused multiply-adds are no instructions here.
        v.map(|v| {
            let bits = v.to_bits();
            f32::from_bits(bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000)
        })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    fn zip_bf16(self, a: V, b: V) -> (V, V) {
        let word = |v: V, i: usize| v[i / 2].to_bits() >> (16 * (i % 2)) & 0xFFFF;
        let zip = |first: usize| std::array::from_fn(|i| f32::from_bits(word(a, first + i) | word(b, first + i) << 16));
        (zip(0), zip(LANES))
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: V) {
        // SAFETY: the caller promises sixteen bytes.
        unsafe { p.cast::<[i8; LANES]>().write_unaligned(v.map(|v| v as i8)) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> V {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<[i32; LANES]>().read_unaligned() }.map(|v| v as f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut half::bf16, v: V) {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<[half::bf16; LANES]>().write_unaligned(v.map(half::bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: V) {
        // SAFETY: the caller promises sixteen elements.
        unsafe { p.cast::<[half::f16; LANES]>().write_unaligned(v.map(half::f16::from_f32)) }
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_gt(self, x: V, y: V, a: V, b: V) -> V {
        std::array::from_fn(|i| if x[i] > y[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn gt_mask(self, x: V, y: V) -> u32 {
        (0..LANES).fold(0, |mask, i| mask | u32::from(x[i] > y[i]) << i)
    }
    #[inline(always)]
    fn floor(self, v: V) -> V {
        // The library's call would be slow where the instruction is missing.
        v.map(|x| {
            let nearest = (x + 8_388_608.0) - 8_388_608.0;
            if nearest > x { nearest - 1.0 } else { nearest }
        })
    }
    #[inline(always)]
    fn add_exponent(self, v: V, n: V) -> V {
        zip(v, n, |v, n| f32::from_bits(v.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn reduce_add(self, v: V) -> f32 {
        fold(v, |a, b| a + b)
    }
    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        fold(v, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn unzip(self, low: V, high: V) -> (V, V) {
        let at = |i: usize| if i < LANES { low[i] } else { high[i - LANES] };
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    fn zip(self, even: V, odd: V) -> (V, V) {
        let at = |i: usize| if i.is_multiple_of(2) { even[i / 2] } else { odd[i / 2] };
        (std::array::from_fn(at), std::array::from_fn(|i| at(LANES + i)))
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [V; 16]) {
        let source = *rows;
        for (i, row) in rows.iter_mut().enumerate() {
            for (lane, column) in row.iter_mut().zip(&source) {
                *lane = column[i];
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, _p: *const u8) {}
}
