//! Sums in arrays.
use super::super::portable::Portable;
use super::{DotKernel, Dots};

#[derive(Clone, Copy)]
struct Plain;

pub(super) fn run<K: DotKernel>(kernel: K) {
    kernel.run(Plain);
}

impl Dots for Plain {
    type Float = Portable;
    type Sums = [i32; 16];
    type Weights = [i8; 64];
    const BYTE_OFFSET: i32 = 0;
    const NIBBLE_OFFSET: i32 = 0;

    #[inline(always)]
    fn float(self) -> Portable {
        Portable
    }
    #[inline(always)]
    fn splat(self, v: i32) -> [i32; 16] {
        [v; 16]
    }
    #[inline(always)]
    fn add(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn load(self, p: *const i32) -> [i32; 16] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32, v: [i32; 16]) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i32; 16]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn add_times(self, total: [i32; 16], sums: [i32; 16], m: *const i8) -> [i32; 16] {
        // SAFETY: the caller's promise.
        let m = unsafe { m.cast::<[i8; 16]>().read_unaligned() };
        std::array::from_fn(|i| total[i].wrapping_add(sums[i].wrapping_mul(i32::from(m[i]))))
    }
    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> [i8; 64] {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[i8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> ([i8; 64], [i8; 64]) {
        // SAFETY: the caller's promise.
        let both = unsafe { p.cast::<[u8; 64]>().read_unaligned() };
        (both.map(|b| (b & 15) as i8 - 8), both.map(|b| (b >> 4) as i8 - 8))
    }
    #[inline(always)]
    unsafe fn dot(self, mut sums: [i32; 16], w: [i8; 64], x: *const i8) -> [i32; 16] {
        // SAFETY: the caller's promise.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        for (n, sum) in sums.iter_mut().enumerate() {
            for (i, &x) in x.iter().enumerate() {
                *sum += i32::from(w[4 * n + i]) * i32::from(x);
            }
        }
        sums
    }
}
