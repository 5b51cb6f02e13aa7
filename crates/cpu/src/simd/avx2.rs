//! Sixteen lanes in two ymm registers.
use super::{F8, Kernel, Simd};
use std::arch::x86_64::*;

/// The same for both registers; a closure would be compiled without the instructions, and called.
macro_rules! both {
    ($v:ident => $e:expr) => {{
        let [first, second] = $v;
        let first = {
            let $v = first;
            $e
        };
        let second = {
            let $v = second;
            $e
        };
        [first, second]
    }};
}

/// Exists only inside [`run`], that is, where the instructions do.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has the features of [`run`], and the caller is compiled with them.
    #[inline(always)]
    pub(super) unsafe fn new() -> Avx2 {
        Avx2(())
    }
}

/// Lanes 0..8 and 8..16.
type V = [__m256; 2];

/// # Safety
/// The processor has the features named here.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Eight bf16 widened.
///
/// # Safety
/// AVX2; eight elements at `p`.
#[inline(always)]
unsafe fn widen_bf16(p: *const half::bf16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
}

/// Bits whose upper halves are the bf16 that eight numbers round to.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn round_up(v: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)))
    }
}

/// Eight lanes of [`Simd::join_pairs`].
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn join_pairs(first: __m256, second: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let lower = _mm256_srli_epi32::<16>(round_up(first));
        _mm256_castsi256_ps(_mm256_blend_epi16::<0b1010_1010>(lower, round_up(second)))
    }
}

/// Sixteen f16 widened.
///
/// # Safety
/// AVX2 and F16C.
#[inline(always)]
unsafe fn widen_f16(v: __m256i) -> V {
    // SAFETY: the caller's promise.
    unsafe { [_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(v))] }
}

/// Eight pairs of bytes widened: the first elements, then the second ones.
///
/// # Safety
/// AVX2; sixteen bytes at `p`.
#[inline(always)]
unsafe fn widen_pairs(p: *const i8) -> (__m256, __m256) {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_cvtepi16_epi32(_mm_loadu_si128(p.cast()));
        let first = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(pairs));
        (_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(_mm256_srai_epi32::<8>(pairs)))
    }
}

/// Sixteen elements as eight pairs of bf16.
///
/// # Safety
/// AVX2; sixteen bytes at `p`.
#[inline(always)]
unsafe fn widen_f8(p: *const F8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(p.cast()));
        let magnitude = _mm256_and_si256(bytes, _mm256_set1_epi16(0x7f));
        let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(bytes, _mm256_set1_epi16(0x80)));
        let plain = _mm256_add_epi16(_mm256_slli_epi16::<4>(magnitude), _mm256_set1_epi16(F8::BIAS as i16));
        // Both bytes of an entry; of larger magnitudes it is not used.
        let entry = _mm256_mullo_epi16(magnitude, _mm256_set1_epi16(0x0202));
        let entry = _mm256_add_epi16(entry, _mm256_set1_epi16(0x0100));
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(F8::SMALL.as_ptr().cast()));
        let is_small = _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude);
        let is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7f));
        let bits = _mm256_blendv_epi8(plain, _mm256_shuffle_epi8(table, entry), is_small);
        let bits = _mm256_blendv_epi8(bits, _mm256_set1_epi16(F8::NAN as i16), is_nan);
        _mm256_castsi256_ps(_mm256_or_si256(bits, sign))
    }
}

/// Eight lanes of [`Simd::add_exponent`].
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn add_exponent(v: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), n))
    }
}

/// Every second of 32 lanes, from the first or the second on.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn unzip<const CHOICE: i32>(low: V, high: V) -> V {
    // SAFETY: the caller's promise. Shuffles work on halves of registers: put the quarters in order.
    unsafe {
        let pair = [low, high];
        both!(pair => {
            let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<CHOICE>(pair[0], pair[1]));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(mixed))
        })
    }
}

/// Lanes in turn.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn zip(even: __m256, odd: __m256) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
    }
}

/// Sixteen words of both in turn.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn zip_words(a: __m256, b: __m256) -> V {
    // SAFETY: the caller's promise. Unpacking works in halves of a register; the permutations put the quarters
    // in order.
    unsafe {
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let (low, high) = (_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b));
        let first = _mm256_permute2x128_si256::<0x20>(low, high);
        let second = _mm256_permute2x128_si256::<0x31>(low, high);
        [_mm256_castsi256_ps(first), _mm256_castsi256_ps(second)]
    }
}

/// Rows become columns in an 8 x 8 block.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut t = r;
        for g in 0..2 {
            let [a, b, c, d] = [r[4 * g], r[4 * g + 1], r[4 * g + 2], r[4 * g + 3]];
            let ab_low = _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
            let ab_high = _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
            let cd_low = _mm256_castps_pd(_mm256_unpacklo_ps(c, d));
            let cd_high = _mm256_castps_pd(_mm256_unpackhi_ps(c, d));
            t[4 * g] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_low, cd_low));
            t[4 * g + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_low, cd_low));
            t[4 * g + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high));
            t[4 * g + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high));
        }
        let mut out = t;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(t[c], t[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(t[c], t[4 + c]);
        }
        out
    }
}

impl Simd for Avx2 {
    type V = V;
    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        // SAFETY: `self` proves AVX2, FMA and F16C; the same holds for every block below.
        [unsafe { _mm256_set1_ps(x) }; 2]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> V {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const half::bf16) -> V {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { [widen_bf16(p), widen_bf16(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_f16(self, p: *const half::f16) -> V {
        // SAFETY: and the caller promises sixteen elements.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))] }
    }
    #[inline(always)]
    fn split_pairs(self, v: V) -> (V, V) {
        // SAFETY: see `splat`.
        unsafe {
            let mask = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
            let first = both!(v => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(v))));
            (first, both!(v => _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(v), mask))))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs_i8(self, p: *const i8) -> (V, V) {
        // SAFETY: and the caller promises 32 bytes.
        let (low, high) = unsafe { (widen_pairs(p), widen_pairs(p.add(16))) };
        ([low.0, high.0], [low.1, high.1])
    }
    #[inline(always)]
    unsafe fn load_pairs_f8(self, p: *const u8) -> (V, V) {
        // SAFETY: and the caller promises 32 bytes.
        unsafe {
            let pairs = _mm256_loadu_si256(p.cast());
            // As f16 the bits, moved by seven places, are 2^-8 times the number; the sign is moved twice.
            let place = _mm256_set1_epi16(0xBF80_u16 as i16);
            let first = _mm256_and_si256(_mm256_srai_epi16::<1>(_mm256_slli_epi16::<8>(pairs)), place);
            let second = _mm256_and_si256(_mm256_srai_epi16::<1>(pairs), place);
            (widen_f16(first), widen_f16(second))
        }
    }
    #[inline(always)]
    unsafe fn load_f8(self, p: *const F8) -> V {
        // SAFETY: and the caller promises 32 bytes.
        unsafe { [widen_f8(p), widen_f8(p.add(16))] }
    }
    #[inline(always)]
    fn join_pairs(self, first: V, second: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [join_pairs(first[0], second[0]), join_pairs(first[1], second[1])] }
    }
    #[inline(always)]
    fn round_bf16(self, v: V) -> V {
        // SAFETY: see `splat`.
        unsafe {
            both!(v => {
                let quiet = _mm256_or_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x0040_0000));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let bits = _mm256_blendv_epi8(round_up(v), quiet, nan);
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xFFFF_0000_u32 as i32)))
            })
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: V) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    fn zip_bf16(self, a: V, b: V) -> (V, V) {
        // SAFETY: see `splat`.
        unsafe { (zip_words(a[0], b[0]), zip_words(a[1], b[1])) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, v: V) {
        // SAFETY: and the caller promises sixteen bytes. Packing interleaves halves of the registers;
        // the permutation puts them in order.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn load_i32(self, p: *const i32) -> V {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            let v = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())];
            both!(v => _mm256_cvtepi32_ps(v))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut half::bf16, v: V) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            let bits = self.round_bf16(v);
            let bits = both!(bits => _mm256_srli_epi32::<16>(_mm256_castps_si256(bits)));
            // Packing works on halves of registers: put the quarters back in order.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(bits[0], bits[1]));
            _mm256_storeu_si256(p.cast(), packed);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut half::f16, v: V) {
        // SAFETY: and the caller promises sixteen elements.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]));
        }
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // SAFETY: see `splat`. The instruction gives b where either is NaN.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn select_gt(self, x: V, y: V, a: V, b: V) -> V {
        // SAFETY: see `splat`.
        unsafe {
            [
                _mm256_blendv_ps(b[0], a[0], _mm256_cmp_ps::<_CMP_GT_OQ>(x[0], y[0])),
                _mm256_blendv_ps(b[1], a[1], _mm256_cmp_ps::<_CMP_GT_OQ>(x[1], y[1])),
            ]
        }
    }
    #[inline(always)]
    fn gt_mask(self, x: V, y: V) -> u32 {
        // SAFETY: see `splat`.
        let mask = |i: usize| unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(x[i], y[i])) as u32 };
        mask(0) | mask(1) << 8
    }
    #[inline(always)]
    fn floor(self, v: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [_mm256_floor_ps(v[0]), _mm256_floor_ps(v[1])] }
    }
    #[inline(always)]
    fn add_exponent(self, v: V, n: V) -> V {
        // SAFETY: see `splat`.
        unsafe { [add_exponent(v[0], n[0]), add_exponent(v[1], n[1])] }
    }
    #[inline(always)]
    fn reduce_add(self, v: V) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let v = _mm256_add_ps(v[0], v[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, v: V) -> f32 {
        // SAFETY: see `splat`.
        unsafe {
            let v = _mm256_max_ps(v[0], v[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    fn unzip(self, low: V, high: V) -> (V, V) {
        // SAFETY: see `splat`.
        unsafe { (unzip::<0b10_00_10_00>(low, high), unzip::<0b11_01_11_01>(low, high)) }
    }
    #[inline(always)]
    fn zip(self, even: V, odd: V) -> (V, V) {
        // SAFETY: see `splat`.
        unsafe { (zip(even[0], odd[0]), zip(even[1], odd[1])) }
    }
    #[inline(always)]
    fn transpose(self, rows: &mut [V; 16]) {
        let source = *rows;
        for i in 0..2 {
            for j in 0..2 {
                let mut block = [source[0][0]; 8];
                for (k, row) in block.iter_mut().enumerate() {
                    *row = source[8 * i + k][j];
                }
                // SAFETY: see `splat`.
                let block = unsafe { transpose8(block) };
                for (k, column) in block.iter().enumerate() {
                    rows[8 * j + k][i] = *column;
                }
            }
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
