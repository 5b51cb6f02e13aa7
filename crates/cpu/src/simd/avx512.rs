//! Sixteen lanes in one zmm register.
use super::{CHAINED, F8, Kernel, Simd};
use std::arch::x86_64::*;

/// Exists only inside [`run`], that is, where the instructions do.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has the features of [`run`], and the caller is compiled with them.
    #[inline(always)]
    pub(super) unsafe fn new() -> Avx512 {
        Avx512(())
    }
}

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// Bits whose upper half is the bf16 that a number rounds to.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn round_up(v: __m512) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)))
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512; the same holds for every block below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> __m512 {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> __m512 {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    fn split_pairs(self, v: __m512) -> (__m512, __m512) {
        // SAFETY: see `splat`.
        unsafe {
            let pairs = _mm512_castps_si512(v);
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(self, p: *const i8) -> (__m512, __m512) {
        // SAFETY: and the caller promises 32 bytes.
        unsafe {
            let pairs = _mm512_cvtepi16_epi32(_mm256_loadu_si256(p.cast()));
            let first = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pairs));
            (_mm512_cvtepi32_ps(first), _mm512_cvtepi32_ps(_mm512_srai_epi32::<8>(pairs)))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_f8(self, p: *const u8) -> (__m512, __m512) {
        // SAFETY: and the caller promises 32 bytes.
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            // As f16 the bits, moved by seven places, are 2^-8 times the number; the sign is moved twice.
            let place = _mm256_set1_epi16(0xBF80_u16 as i16);
            let first = _mm256_and_si256(_mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(pairs)), place);
            let second = _mm256_and_si256(_mm256_srai_epi16::<1>(pairs), place);
            (_mm512_cvtph_ps(first), _mm512_cvtph_ps(second))
        }
    }
    #[inline(always)]
    unsafe fn load_f8(self, p: *const F8) -> __m512 {
        const SMALL: [u16; 32] = {
            let (mut words, mut i) = ([0; 32], 0);
            while i < 8 {
                words[i] = F8::SMALL[i];
                i += 1;
            }
            words
        };
        // SAFETY: and the caller promises 32 bytes.
        unsafe {
            let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.cast()));
            let magnitude = _mm512_and_si512(bytes, _mm512_set1_epi16(0x7f));
            let sign = _mm512_slli_epi16::<8>(_mm512_and_si512(bytes, _mm512_set1_epi16(0x80)));
            let plain = _mm512_add_epi16(_mm512_slli_epi16::<4>(magnitude), _mm512_set1_epi16(F8::BIAS as i16));
            let small = _mm512_permutexvar_epi16(magnitude, _mm512_loadu_si512(SMALL.as_ptr().cast()));
            let is_small = _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8));
            let is_nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
            let bits = _mm512_mask_blend_epi16(is_small, plain, small);
            let bits = _mm512_mask_blend_epi16(is_nan, bits, _mm512_set1_epi16(F8::NAN as i16));
            _mm512_castsi512_ps(_mm512_or_si512(bits, sign))
        }
    }
    #[inline(always)]
    fn join_pairs(self, first: __m512, second: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe {
            let (first, second) = (round_up(first), round_up(second));
            let upper = _mm512_and_si512(second, _mm512_set1_epi32(0xFFFF_0000_u32 as i32));
            _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32::<16>(first), upper))
        }
    }
    #[inline(always)]
    fn round_bf16(self, v: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe {
            let quiet = _mm512_or_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x0040_0000));
            let bits = _mm512_mask_blend_epi32(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v), round_up(v), quiet);
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xFFFF_0000_u32 as i32)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    fn zip_bf16(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // Words 0, 32, 1, 33 ... of both.
        const ORDER: [[u16; 32]; 2] = {
            let mut order = [[0; 32]; 2];
            let mut i = 0;
            while i < 64 {
                order[i / 32][i % 32] = (i / 2 + i % 2 * 32) as u16;
                i += 1;
            }
            order
        };
        // SAFETY: see `splat`.
        unsafe {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            let zip = |order: &[u16; 32]| {
                let order = _mm512_loadu_si512(order.as_ptr().cast());
                _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, order, b))
            };
            (zip(&ORDER[0]), zip(&ORDER[1]))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: __m512) {
        // SAFETY: and the caller promises sixteen bytes.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> __m512 {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut half::bf16, v: __m512) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            let bits = _mm512_srli_epi32::<16>(_mm512_castps_si512(self.round_bf16(v)));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits));
        }
    }
    #[inline(always)]
    unsafe fn store_chained(self, p: *mut half::bf16, v: __m512) {
        // SAFETY: and the caller's promise.
        unsafe { self.store_bf16(p, _mm512_permutexvar_ps(_mm512_loadu_si512(CHAINED.as_ptr().cast()), v)) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: __m512) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`. The instruction gives b where either is NaN.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn select_gt(self, x: __m512, y: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, y), b, a) }
    }
    #[inline(always)]
    fn gt_mask(self, x: __m512, y: __m512) -> u32 {
        // SAFETY: see `splat`.
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, y) })
    }
    #[inline(always)]
    fn floor(self, v: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe { _mm512_roundscale_ps::<_MM_FROUND_TO_NEG_INF>(v) }
    }
    #[inline(always)]
    fn add_exponent(self, v: __m512, n: __m512) -> __m512 {
        // SAFETY: see `splat`.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), n))
        }
    }
    #[inline(always)]
    fn reduce_add(self, v: __m512) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let v = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn unzip(self, low: __m512, high: __m512) -> (__m512, __m512) {
        // SAFETY: see `splat`.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high))
        }
    }
    #[inline(always)]
    fn zip(self, even: __m512, odd: __m512) -> (__m512, __m512) {
        // SAFETY: see `splat`.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(even, low, odd), _mm512_permutex2var_ps(even, high, odd))
        }
    }
    #[inline(always)]
    fn transpose(self, r: &mut [__m512; 16]) {
        // SAFETY: see `splat`.
        unsafe {
            // Pairs of rows, then fours: afterwards r[4g + c] holds column c of every 4-lane block,
            // for rows 4g..4g+4.
            for g in 0..4 {
                let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
                let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                r[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low));
                r[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low));
                r[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high));
                r[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high));
            }
            // Then 4-lane blocks change places: column 4b + c gathers block b of r[c], r[4 + c], ...
            for c in 0..4 {
                let even01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[c], r[4 + c]);
                let odd01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[c], r[4 + c]);
                let even23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(r[8 + c], r[12 + c]);
                let odd23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(r[8 + c], r[12 + c]);
                r[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even01, even23);
                r[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even01, even23);
                r[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd01, odd23);
                r[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd01, odd23);
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
