//! AVX-512 VNNI: unsigned weights times signed activations.
use super::super::avx512::Avx512;
use super::{DotKernel, Dots};
use std::arch::x86_64::*;

/// Exists only inside [`run`].
#[derive(Clone, Copy)]
struct Vnni(Avx512);

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) {
    // SAFETY: the features are enabled here.
    kernel.run(Vnni(unsafe { Avx512::new() }));
}

impl Dots for Vnni {
    type Float = Avx512;
    type Sums = __m512i;
    type Weights = __m512i;
    const BYTE_OFFSET: i32 = 128;
    const NIBBLE_OFFSET: i32 = 8;

    #[inline(always)]
    fn float(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    fn splat(self, v: i32) -> __m512i {
        // SAFETY: `self` proves the instructions; the same holds for every block below.
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see `splat`.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const i32) -> __m512i {
        // SAFETY: and the caller's promise.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut i32, v: __m512i) {
        // SAFETY: and the caller's promise.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    fn to_float(self, v: __m512i) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> __m512i {
        // SAFETY: and the caller's promise.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> (__m512i, __m512i) {
        // SAFETY: and the caller's promise.
        unsafe {
            let (both, low) = (_mm512_loadu_si512(p.cast()), _mm512_set1_epi8(15));
            (_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low))
        }
    }
    #[inline(always)]
    unsafe fn dot(self, sums: __m512i, w: __m512i, x: *const i8) -> __m512i {
        // SAFETY: and the caller's promise.
        unsafe { _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
}
