//! Blocks of f8 as the pairs of bf16 that they read as: what is multiplied is never anything else, so products have bf16's
//! bits by construction.
use super::stream::{Stream, load_pair};
use super::{Form, PANEL};
use crate::simd::{Isa, Kernel, KernelSet, LANES, Simd};
use anyfleet_tensor::quant;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

/// Blocks that share scales.
pub(crate) const GROUP: usize = quant::F8_GROUP / Form::Eights.features();

/// Makes blocks of [`Form::Pairs`] of blocks of one panel of [`Form::Eights`]. Whoever makes the value promises memory of
/// these shapes.
pub(crate) struct Widen {
    /// The blocks, of which the first begins a group.
    pub(crate) w: *const u8,
    /// `[groups][32]`, from the first block's group on.
    pub(crate) scales: *const f32,
    pub(crate) blocks: usize,
    /// Asks for as many bytes from here on, which need not be there.
    pub(crate) ahead: *const u8,
    /// As many blocks of pairs.
    pub(crate) out: *mut u8,
}

/// What numbers are loaded times less.
const FACTOR: f32 = 256.0;

impl Widen {
    pub(crate) fn run(self, kernels: KernelSet) {
        #[cfg(target_arch = "x86_64")]
        if matches!(kernels.isa(), Isa::Amx | Isa::Avx512Bf16) && is_x86_feature_detected!("avx512bf16") {
            // SAFETY: both sets have AVX-512, and these instructions were seen to be there.
            return unsafe { widen_bf16(&self) };
        }
        kernels.run(Plain(self));
    }
}

/// The same where rounding to bf16 is an instruction: two thirds of the work.
///
/// # Safety
/// The processor has the features named here, and the promise of [`Widen`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn widen_bf16(work: &Widen) {
    let (from, to) = (Form::Eights, Form::Pairs);
    let place_of_f16 = _mm512_set1_epi16(0xBF80_u16 as i16);
    // Sixteen first elements, and then sixteen second ones, become pairs.
    let pair_up: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
    // SAFETY: the promise of `Widen`: scales of each group, and blocks of bytes and of pairs.
    unsafe {
        let pair_up = _mm512_loadu_si512(pair_up.as_ptr().cast());
        let pairs = |first: __m256i, second: __m256i, scale: __m512| {
            let [first, second] = [first, second].map(|v| _mm512_mul_ps(_mm512_cvtph_ps(v), scale));
            // What is below 2^-126 would become 0, but scales are kept far above.
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
            _mm512_permutexvar_epi16(pair_up, both)
        };
        for first in (0..work.blocks).step_by(GROUP) {
            for tile in 0..2 {
                let scale = _mm512_loadu_ps(work.scales.add(first / GROUP * PANEL + tile * LANES));
                let scale = _mm512_mul_ps(scale, _mm512_set1_ps(FACTOR));
                for block in first..work.blocks.min(first + GROUP) {
                    let place = block * from.block_bytes() + tile * from.tile_bytes();
                    let out = work.out.add(block * to.block_bytes() + tile * to.tile_bytes());
                    for line in (0..from.tile_bytes()).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(work.ahead.wrapping_add(place + line).cast());
                        // Two lines of pairs, as in `load_pairs_f8`.
                        let v = _mm512_loadu_si512(work.w.add(place + line).cast());
                        let even = _mm512_and_si512(_mm512_srai_epi16::<1>(_mm512_slli_epi16::<8>(v)), place_of_f16);
                        let odd = _mm512_and_si512(_mm512_srai_epi16::<1>(v), place_of_f16);
                        let low = pairs(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd), scale);
                        let high =
                            pairs(_mm512_extracti64x4_epi64::<1>(even), _mm512_extracti64x4_epi64::<1>(odd), scale);
                        _mm512_storeu_si512(out.add(2 * line).cast(), low);
                        _mm512_storeu_si512(out.add(2 * line + 64).cast(), high);
                    }
                }
            }
        }
    }
}

/// On any vectors.
struct Plain(Widen);

impl Kernel for Plain {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Plain(work) = self;
        let (from, to) = (Form::Eights, Form::Pairs);
        for first in (0..work.blocks).step_by(GROUP) {
            for tile in 0..2 {
                // SAFETY: a group has a scale for each feature of a tile.
                let scale = unsafe { s.load(work.scales.add(first / GROUP * PANEL + tile * LANES)) };
                let scale = s.mul(scale, s.splat(FACTOR));
                for block in first..work.blocks.min(first + GROUP) {
                    let place = block * from.block_bytes() + tile * from.tile_bytes();
                    let out = work.out.wrapping_add(block * to.block_bytes() + tile * to.tile_bytes());
                    for pair in 0..LANES {
                        let line = place + pair * 2 * LANES;
                        if pair % 2 == 0 {
                            s.prefetch(work.ahead.wrapping_add(line));
                        }
                        // SAFETY: the blocks have these sixteen pairs, here of bytes and there of bf16.
                        unsafe {
                            let (even, odd) = s.load_pairs_f8(work.w.add(line));
                            let pairs = s.join_pairs(s.mul(even, scale), s.mul(odd, scale));
                            s.store(out.add(pair * 4 * LANES).cast(), pairs);
                        }
                    }
                }
            }
        }
    }
}

/// Whether a row or two meet numbers that are widened in registers. Not where rounding to bf16 is an instruction: it makes
/// pairs, and what multiplies there takes pairs.
pub(super) fn in_registers(kernels: KernelSet) -> bool {
    !matches!(kernels.isa(), Isa::Amx | Isa::Avx512Bf16)
}

/// A stream of f8 whose numbers are widened in registers, where all of its rows meet them. The sums are those of
/// [`pairs`](super::pairs), in the same order.
pub(super) struct Streamed(pub(super) Stream);

impl Kernel for Streamed {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the promise of `Stream`.
        unsafe {
            match self.0.rows {
                1 => streamed::<S, 1>(s, &self.0),
                _ => streamed::<S, 2>(s, &self.0),
            }
        }
    }
}

/// Above all scales whose products with numbers of eight bits [`Simd::round_near_bf16`] rounds.
const SMALL: f32 = f32::from_bits((127 + 100) << 23);

/// # Safety
/// The promise of [`Stream`].
#[inline(always)]
unsafe fn streamed<S: Simd, const R: usize>(s: S, stream: &Stream) {
    stream.ask_for_scales(s);
    for first in (0..stream.blocks).step_by(GROUP) {
        let blocks = first..stream.blocks.min(first + GROUP);
        // All panels take turns, so that each is a stream from memory.
        for panel in 0..stream.panels {
            for tile in 0..2 {
                let scales = stream.panel(panel, stream.blocks).cast::<f32>();
                let scales = scales.wrapping_add(first / GROUP * PANEL + tile * LANES);
                s.prefetch(scales.wrapping_add(PANEL).cast());
                // SAFETY: after the last block there are scales for each group; the caller's promise.
                unsafe {
                    let scale = s.load(scales);
                    let large = s.gt_mask(scale, s.splat(SMALL)) | s.gt_mask(s.splat(-SMALL), scale);
                    let scale = s.mul(scale, s.splat(FACTOR));
                    match large {
                        0 => tile_of_group::<S, true, R>(s, stream, blocks.clone(), (panel, tile), scale),
                        _ => tile_of_group::<S, false, R>(s, stream, blocks.clone(), (panel, tile), scale),
                    }
                }
            }
        }
    }
}

/// Adds a tile of blocks that share scales to its sums.
///
/// # Safety
/// The promise of [`Stream`], which has the blocks.
#[inline(always)]
unsafe fn tile_of_group<S: Simd, const NEAR: bool, const R: usize>(
    s: S,
    stream: &Stream,
    blocks: Range<usize>,
    (panel, tile): (usize, usize),
    scale: S::V,
) {
    let form = Form::Eights;
    let mut total = [s.splat(0.0); R];
    if blocks.start > 0 {
        for (r, total) in total.iter_mut().enumerate() {
            // SAFETY: the sums of this panel and row.
            *total = unsafe { s.load(stream.acc(r, panel, tile)) };
        }
    }
    for block in blocks {
        let (ahead, stride) = stream.later(block);
        let ahead = ahead.wrapping_add(panel * stride + tile * form.tile_bytes());
        let w = stream.panel(panel, block).wrapping_add(tile * form.tile_bytes());
        let x: [_; R] = std::array::from_fn(|r| stream.x(r, block));
        let mut even = [s.splat(0.0); R];
        let mut odd = even;
        for pair in 0..LANES {
            let line = pair * 2 * LANES;
            if pair % 2 == 0 {
                s.prefetch(ahead.wrapping_add(line));
            }
            // SAFETY: the tile has sixteen pairs.
            let (w0, w1) = unsafe { s.load_pairs_f8(w.wrapping_add(line)) };
            let (w0, w1) = (s.mul(w0, scale), s.mul(w1, scale));
            let (w0, w1) = match NEAR {
                true => (s.round_near_bf16(w0), s.round_near_bf16(w1)),
                false => s.split_pairs(s.join_pairs(w0, w1)),
            };
            for (r, &x) in x.iter().enumerate() {
                // SAFETY: the block has sixteen pairs of a row.
                let (x0, x1) = unsafe { load_pair::<S, false>(s, x, pair) };
                even[r] = s.fma(x0, w0, even[r]);
                odd[r] = s.fma(x1, w1, odd[r]);
            }
        }
        for (r, total) in total.iter_mut().enumerate() {
            *total = s.add(*total, s.add(even[r], odd[r]));
        }
    }
    for (r, total) in total.iter().enumerate() {
        // SAFETY: the sums of this panel and row.
        unsafe { s.store(stream.acc(r, panel, tile), *total) };
    }
}
