//! Rates of the vector units: f32 multiply-adds, dot products of bf16 and of int8, from registers.

/// Loop turns of a run: some 50 ms.
pub(super) const TURNS: usize = 1 << 22;

/// A loop that does nothing but one kind of arithmetic.
pub(super) struct Kernel {
    /// Instruction set, for people.
    pub(super) name: &'static str,
    /// Operations of a turn; a multiply-add is two.
    pub(super) operations: usize,
    /// Runs so many turns.
    pub(super) run: fn(usize),
}

/// f32 multiply-adds; `None` where the processor fuses none.
pub(super) fn multiply_add() -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            return Some(Kernel { name: "AVX-512", operations: 16 * 16 * 2, run: |n| unsafe { x86::fma_avx512(n) } });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA.
            return Some(Kernel { name: "AVX2+FMA", operations: 12 * 8 * 2, run: |n| unsafe { x86::fma_avx2(n) } });
        }
    }
    // Where fused multiply-adds are part of the baseline the compiler's vectors are as good.
    let fused = cfg!(target_arch = "aarch64");
    fused.then_some(Kernel { name: "NEON", operations: PORTABLE_SUMS * 2, run: fma_portable })
}

/// bf16 dot products (`vdpbf16ps`); the reason where there are none.
pub(super) fn bf16_dot_product() -> Result<Kernel, &'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512 and its bf16.
            let run = |n| unsafe { x86::dot_bf16(n) };
            return Ok(Kernel { name: "AVX-512 BF16", operations: 16 * 32 * 2, run });
        }
        Err("the processor has no AVX-512 BF16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err("measured on x86 only")
}

/// int8 dot products (`vpdpbusd`); the reason where there are none.
pub(super) fn dot_product() -> Result<Kernel, &'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has AVX-512 and its VNNI.
            let run = |n| unsafe { x86::dot_avx512(n) };
            return Ok(Kernel { name: "AVX-512 VNNI", operations: 16 * 64 * 2, run });
        }
        if is_x86_feature_detected!("avxvnni") {
            // SAFETY: the processor has AVX-VNNI.
            return Ok(Kernel { name: "AVX-VNNI", operations: 12 * 32 * 2, run: |n| unsafe { x86::dot_avx2(n) } });
        }
        Err("the processor has no VNNI")
    }
    #[cfg(not(target_arch = "x86_64"))]
    Err("measured on x86 only")
}

/// Sixteen vectors of four: more than the latency of two units.
const PORTABLE_SUMS: usize = 16 * 4;

fn fma_portable(turns: usize) {
    let (by, plus) = (std::hint::black_box(0.999f32), std::hint::black_box(0.001f32));
    let mut sums = [1.0f32; PORTABLE_SUMS];
    for _ in 0..turns {
        for sum in &mut sums {
            *sum = sum.mul_add(by, plus);
        }
    }
    std::hint::black_box(sums);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    // Sums are independent and more than latency times units (4 x 2), and with the operands they fit the
    // registers: 32 of AVX-512, 16 of AVX2.

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_avx512(turns: usize) {
        let (by, plus) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_set1_ps(1.0); 16];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, by, plus);
            }
        }
        black_box(sums.into_iter().fold(_mm512_setzero_ps(), |a, b| _mm512_add_ps(a, b)));
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_avx2(turns: usize) {
        let (by, plus) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_set1_ps(1.0); 12];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, by, plus);
            }
        }
        black_box(sums.into_iter().fold(_mm256_setzero_ps(), |a, b| _mm256_add_ps(a, b)));
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16(turns: usize) {
        let by = _mm512_set1_ps(black_box(1.0));
        let (a, b) = (_mm512_cvtne2ps_pbh(by, by), _mm512_cvtne2ps_pbh(by, by));
        let mut sums = [_mm512_setzero_ps(); 16];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, b);
            }
        }
        black_box(sums.into_iter().fold(_mm512_setzero_ps(), |a, b| _mm512_add_ps(a, b)));
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn dot_avx512(turns: usize) {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-5)));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_add_epi32(a, b)));
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub(super) fn dot_avx2(turns: usize) {
        let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-5)));
        let mut sums = [_mm256_setzero_si256(); 12];
        for _ in 0..turns {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi32(a, b)));
    }
}
