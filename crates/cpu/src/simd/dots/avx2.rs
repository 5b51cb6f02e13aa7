//! AVX2: magnitudes of the activations times weights with the activations' signs, or AVX-VNNI.
use super::super::avx2::Avx2;
use super::{DotKernel, Dots};
use std::arch::x86_64::*;

/// Exists only inside [`run`].
#[derive(Clone, Copy)]
struct Signs(Avx2);

/// Exists only inside [`run_vnni`].
#[derive(Clone, Copy)]
struct Vnni(Avx2);

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: DotKernel>(kernel: K) {
    // SAFETY: the features are enabled here.
    kernel.run(Signs(unsafe { Avx2::new() }));
}

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_vnni<K: DotKernel>(kernel: K) {
    // SAFETY: the features are enabled here.
    kernel.run(Vnni(unsafe { Avx2::new() }));
}

macro_rules! shared {
    () => {
        type Float = Avx2;
        type Sums = (__m256i, __m256i);
        type Weights = (__m256i, __m256i);

        #[inline(always)]
        fn float(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        fn splat(self, v: i32) -> Self::Sums {
            // SAFETY: `self` proves the instructions; the same holds for every block below.
            unsafe { (_mm256_set1_epi32(v), _mm256_set1_epi32(v)) }
        }
        #[inline(always)]
        fn add(self, a: Self::Sums, b: Self::Sums) -> Self::Sums {
            // SAFETY: see `splat`.
            unsafe { (_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn load(self, p: *const i32) -> Self::Sums {
            // SAFETY: and the caller's promise.
            unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())) }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut i32, v: Self::Sums) {
            // SAFETY: and the caller's promise.
            unsafe {
                _mm256_storeu_si256(p.cast(), v.0);
                _mm256_storeu_si256(p.add(8).cast(), v.1);
            }
        }
        #[inline(always)]
        unsafe fn add_times(self, total: Self::Sums, sums: Self::Sums, m: *const i8) -> Self::Sums {
            // SAFETY: and the caller's promise.
            unsafe {
                let m = _mm_loadu_si128(m.cast());
                let (first, second) = (_mm256_cvtepi8_epi32(m), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(m)));
                let first = _mm256_add_epi32(total.0, _mm256_mullo_epi32(sums.0, first));
                (first, _mm256_add_epi32(total.1, _mm256_mullo_epi32(sums.1, second)))
            }
        }
        #[inline(always)]
        unsafe fn expand(self, w: *const u8, m: [*const i8; 2], out: *mut u8) {
            // SAFETY: and the caller's promise.
            unsafe { expand(w, m, out) };
        }
    };
}

/// Numbers in 0..16 in both halves of 64 bytes.
///
/// # Safety
/// 64 bytes are readable, and the instructions exist.
#[inline(always)]
unsafe fn halves(p: *const u8) -> ((__m256i, __m256i), (__m256i, __m256i)) {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()));
        let low = _mm256_set1_epi8(15);
        let high = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
        ((_mm256_and_si256(a, low), _mm256_and_si256(b, low)), (high(a), high(b)))
    }
}

/// [`Dots::expand`].
///
/// # Safety
/// As there, and the instructions exist.
#[inline(always)]
unsafe fn expand(w: *const u8, m: [*const i8; 2], out: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, eight) = (_mm256_set1_epi8(15), _mm256_set1_epi8(8));
        for half in 0..2 {
            for (i, m) in m.into_iter().enumerate() {
                // Both halves of a lane hold its multiplier.
                let m = _mm256_cvtepi8_epi32(_mm_loadl_epi64(m.add(half * 8).cast()));
                let m = _mm256_or_si256(_mm256_slli_epi32::<16>(m), _mm256_and_si256(m, _mm256_set1_epi32(0xFFFF)));
                for line in 0..8 {
                    let w = _mm256_loadu_si256(w.add(line * 64 + half * 32).cast());
                    let number = if i == 0 { w } else { _mm256_srli_epi16::<4>(w) };
                    let number = _mm256_sub_epi8(_mm256_and_si256(number, low), eight);
                    // Bytes at the upper end of 16 bits: their products' low bytes end up there, too.
                    let odd = _mm256_mullo_epi16(_mm256_and_si256(number, _mm256_set1_epi16(-256)), m);
                    let even = _mm256_srli_epi16::<8>(_mm256_mullo_epi16(_mm256_slli_epi16::<8>(number), m));
                    let place = out.add((i * 8 + line) * 64 + half * 32);
                    _mm256_storeu_si256(place.cast(), _mm256_or_si256(odd, even));
                }
            }
        }
    }
}

impl Dots for Signs {
    shared!();
    const BYTE_OFFSET: i32 = 0;
    const NIBBLE_OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> Self::Weights {
        // SAFETY: and the caller's promise.
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> (Self::Weights, Self::Weights) {
        // SAFETY: and the caller's promise.
        unsafe {
            let ((a, b), (c, d)) = halves(p);
            let signed = |v| _mm256_sub_epi8(v, _mm256_set1_epi8(8));
            ((signed(a), signed(b)), (signed(c), signed(d)))
        }
    }
    #[inline(always)]
    unsafe fn dot(self, sums: Self::Sums, w: Self::Weights, x: *const i8) -> Self::Sums {
        // SAFETY: and the caller's promise. Magnitudes are at most 127, so two products fit 16 bits.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let (magnitude, ones) = (_mm256_abs_epi8(x), _mm256_set1_epi16(1));
            let add = |sums, w| {
                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(w, x));
                _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones))
            };
            (add(sums.0, w.0), add(sums.1, w.1))
        }
    }
}

impl Dots for Vnni {
    shared!();
    const BYTE_OFFSET: i32 = 128;
    const NIBBLE_OFFSET: i32 = 8;

    #[inline(always)]
    unsafe fn bytes(self, p: *const u8) -> Self::Weights {
        // SAFETY: and the caller's promise.
        unsafe {
            let flip = |v| _mm256_xor_si256(v, _mm256_set1_epi8(-128));
            (flip(_mm256_loadu_si256(p.cast())), flip(_mm256_loadu_si256(p.add(32).cast())))
        }
    }
    #[inline(always)]
    unsafe fn nibbles(self, p: *const u8) -> (Self::Weights, Self::Weights) {
        // SAFETY: and the caller's promise.
        unsafe { halves(p) }
    }
    #[inline(always)]
    unsafe fn dot(self, sums: Self::Sums, w: Self::Weights, x: *const i8) -> Self::Sums {
        // SAFETY: and the caller's promise.
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            (_mm256_dpbusd_avx_epi32(sums.0, w.0, x), _mm256_dpbusd_avx_epi32(sums.1, w.1, x))
        }
    }
}
