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
    unsafe fn add_times(self, total: __m512i, sums: __m512i, m: *const i8) -> __m512i {
        // SAFETY: and the caller's promise.
        unsafe { _mm512_add_epi32(total, _mm512_mullo_epi32(sums, _mm512_cvtepi8_epi32(_mm_loadu_si128(m.cast())))) }
    }
    #[inline(always)]
    unsafe fn expand(self, w: *const u8, m: [*const i8; 2], out: *mut u8) {
        // SAFETY: and the caller's promise.
        unsafe {
            // Both halves of a lane hold its multiplier.
            let both = |m: *const i8| {
                let m = _mm512_cvtepi8_epi32(_mm_loadu_si128(m.cast()));
                _mm512_or_si512(_mm512_slli_epi32::<16>(m), _mm512_and_si512(m, _mm512_set1_epi32(0xFFFF)))
            };
            let (first, second) = (both(m[0]), both(m[1]));
            let (low, eight) = (_mm512_set1_epi8(15), _mm512_set1_epi8(8));
            for line in 0..8 {
                let w = _mm512_loadu_si512(w.add(line * 64).cast());
                let numbers = [_mm512_and_si512(w, low), _mm512_and_si512(_mm512_srli_epi16::<4>(w), low)];
                for (i, (number, m)) in numbers.into_iter().zip([first, second]).enumerate() {
                    // Bytes at the upper end of 16 bits: their products' low bytes end up there, too.
                    let number = _mm512_sub_epi8(number, eight);
                    let odd = _mm512_mullo_epi16(_mm512_and_si512(number, _mm512_set1_epi16(-256)), m);
                    let even = _mm512_srli_epi16::<8>(_mm512_mullo_epi16(_mm512_slli_epi16::<8>(number), m));
                    _mm512_storeu_si512(out.add((i * 8 + line) * 64).cast(), _mm512_or_si512(odd, even));
                }
            }
        }
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
