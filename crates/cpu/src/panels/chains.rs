//! The sums of [`pairs`](super::pairs), bit for bit, with the processor's dot products of bf16.
//!
//! `VDPBF16PS` adds the product of the second elements of two pairs to a sum and then that of the first ones, each as a fused
//! multiply-add (Intel SDM vol. 2; AMD's does the same: the naive twins of `linear` and `attention` hold it to that). What
//! is wanted are two sums, of a block's even and of its odd features. So features change places: of each four, the even
//! ones become one pair, the odd ones another, the earlier feature second. One instruction then takes two steps of a sum.
//! As the matrix unit does, it takes numbers below 1e-38 for zero.
//!
//! For processors whose dot products are as fast as their multiply-adds: AMD's from Zen 4 on.
#![expect(clippy::needless_range_loop, reason = "rows, panels and tiles count places of several arrays")]
use super::stream::Stream;
use super::{Form, PANEL, Product, ROW};
use crate::simd::{Chains, LANES};
use std::arch::x86_64::*;

/// Rows that are packed together, and multiplied at a time.
pub(super) const ROWS: usize = 6;

/// Lines of a tile, two for each four features.
const LINES: usize = LANES;

/// As [`super::regroup`].
///
/// # Safety
/// The same.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn regroup(chains: Chains, from: *const u8, bytes: usize, to: *mut u8) {
    /// Bytes between asking and use.
    const AHEAD: usize = 2048;
    for start in (0..bytes).step_by(2 * ROW) {
        for line in [start, start + ROW] {
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD + line).cast());
        }
        // SAFETY: the caller's promise; blocks are an even number of lines.
        unsafe {
            let (first, second) = (from.add(start), from.add(start + ROW));
            let (even, odd) = pairs(chains, _mm512_loadu_si512(first.cast()), _mm512_loadu_si512(second.cast()));
            _mm512_storeu_si512(to.add(start).cast(), std::mem::transmute::<__m512bh, __m512i>(even));
            _mm512_storeu_si512(to.add(start + ROW).cast(), std::mem::transmute::<__m512bh, __m512i>(odd));
        }
    }
}

/// Two lines of sixteen pairs: the even features of each four, then the odd ones, the later feature first.
#[inline(always)]
fn pairs(_: Chains, first: __m512i, second: __m512i) -> (__m512bh, __m512bh) {
    // SAFETY: the argument proves the instructions; any bits are sixteen pairs.
    unsafe {
        let even = _mm512_mask_mov_epi16(_mm512_slli_epi32::<16>(first), 0x5555_5555, second);
        let odd = _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(second), 0xAAAA_AAAA, first);
        (std::mem::transmute::<__m512i, __m512bh>(even), std::mem::transmute::<__m512i, __m512bh>(odd))
    }
}

/// Lines `2 * four` and the next of a tile, regrouped if they are not.
///
/// # Safety
/// The tile has them.
#[inline(always)]
unsafe fn weights<const REGROUPED: bool>(chains: Chains, tile: *const u8, four: usize) -> (__m512bh, __m512bh) {
    // SAFETY: the caller's promise; any bits are pairs.
    unsafe {
        let line = tile.add(2 * four * ROW);
        let (first, second) = (_mm512_loadu_si512(line.cast()), _mm512_loadu_si512(line.add(ROW).cast()));
        match REGROUPED {
            true => (std::mem::transmute::<__m512i, __m512bh>(first), std::mem::transmute::<__m512i, __m512bh>(second)),
            false => pairs(chains, first, second),
        }
    }
}

/// A row's pair of even and of odd features of four `four`, in all lanes.
///
/// # Safety
/// The row at `x` has it.
#[inline(always)]
unsafe fn activations(x: *const u8, four: usize) -> (__m512bh, __m512bh) {
    // SAFETY: the caller's promise; any bits are pairs.
    unsafe {
        // Sixteen features lie together.
        let x = x.cast::<i32>().add(four / 4 * 8 + four % 4);
        let (even, odd) = (_mm512_set1_epi32(x.read_unaligned()), _mm512_set1_epi32(x.add(4).read_unaligned()));
        (std::mem::transmute::<__m512i, __m512bh>(even), std::mem::transmute::<__m512i, __m512bh>(odd))
    }
}

/// `before + (even + odd)`.
#[inline(always)]
fn sum(_: Chains, before: __m512, (even, odd): (__m512, __m512)) -> __m512 {
    // SAFETY: the argument proves the instructions.
    unsafe { _mm512_add_ps(before, _mm512_add_ps(even, odd)) }
}

/// # Safety
/// As for [`super::multiply`].
pub(super) unsafe fn multiply(chains: Chains, product: &Product) {
    for first in (0..product.rows).step_by(ROWS) {
        let group = Group {
            x: product.x.wrapping_add(first / ROWS * product.group_bytes),
            acc: product.acc.wrapping_add(first * product.acc_stride),
            product,
        };
        let kernels = if product.regrouped { REGROUPED } else { AS_THEY_ARE };
        // SAFETY: the set was seen to be there; the caller's promise.
        unsafe { kernels[(product.rows - first).min(ROWS) - 1](chains, &group) };
    }
}

/// [`rows`] of one row to [`ROWS`].
type ByRows = [unsafe fn(Chains, &Group<'_>); ROWS];

const fn by_rows<const REGROUPED: bool>() -> ByRows {
    [
        rows::<1, REGROUPED>,
        rows::<2, REGROUPED>,
        rows::<3, REGROUPED>,
        rows::<4, REGROUPED>,
        rows::<5, REGROUPED>,
        rows::<ROWS, REGROUPED>,
    ]
}

/// For panels that are regrouped, and for those that are not.
const REGROUPED: ByRows = by_rows::<true>();
const AS_THEY_ARE: ByRows = by_rows::<false>();

/// A group's rows, `[blocks][ROWS][ROW bytes]`, and their sums.
struct Group<'a> {
    x: *const u8,
    acc: *mut f32,
    product: &'a Product,
}

/// `R` rows times both tiles of every block.
///
/// # Safety
/// As for [`super::multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn rows<const R: usize, const REGROUPED: bool>(chains: Chains, group: &Group<'_>) {
    let product = group.product;
    for block in 0..product.blocks {
        let x = group.x.wrapping_add(block * ROWS * ROW);
        let w = product.w.wrapping_add(block * Form::Pairs.block_bytes());
        let mut sums = [[(_mm512_setzero_ps(), _mm512_setzero_ps()); 2]; R];
        for four in 0..LINES / 2 {
            for line in [2 * four, 2 * four + 1, LINES + 2 * four, LINES + 2 * four + 1] {
                ask(product, block, line);
            }
            // SAFETY: a block has two tiles. A closure would be compiled without the instructions.
            let tiles = unsafe {
                let second = w.wrapping_add(Form::Pairs.tile_bytes());
                [weights::<REGROUPED>(chains, w, four), weights::<REGROUPED>(chains, second, four)]
            };
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the block has 32 elements of this row.
                let x = unsafe { activations(x.wrapping_add(r * ROW), four) };
                for (sums, w) in sums.iter_mut().zip(tiles) {
                    sums.0 = _mm512_dpbf16_ps(sums.0, w.0, x.0);
                    sums.1 = _mm512_dpbf16_ps(sums.1, w.1, x.1);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (t, &sums) in sums.iter().enumerate() {
                let acc = group.acc.wrapping_add(r * product.acc_stride + t * LANES);
                // SAFETY: `acc` has these sixteen elements.
                unsafe {
                    let before = if block > 0 || product.resume { _mm512_loadu_ps(acc) } else { _mm512_setzero_ps() };
                    _mm512_storeu_ps(acc, sum(chains, before, sums));
                }
            }
        }
    }
}

/// What vectors ask for while working on line `line` of block `block`.
#[inline(always)]
fn ask(product: &Product, block: usize, line: usize) {
    if let Some(p) = product.asked(block, line) {
        // SAFETY: asking for a line reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
    }
}

/// A row or two times the stream's panels; whoever made it promised the shapes.
pub(super) fn run(chains: Chains, work: &Stream) {
    let kernel: unsafe fn(Chains, &Stream) = match (work.rows, work.panels) {
        (1, 1) => stream::<1, 1>,
        (1, 2) => stream::<1, 2>,
        (1, 4) => stream::<1, 4>,
        (1, _) => stream::<1, 6>,
        (_, 1) => stream::<2, 1>,
        (_, 2) => stream::<2, 2>,
        (_, 4) => stream::<2, 4>,
        _ => stream::<2, 6>,
    };
    // SAFETY: the set was seen to be there; the promise of `Stream`, whose groups have no other sizes.
    unsafe { kernel(chains, work) }
}

/// A row or two times `P` panels: the sums of the stream.
///
/// # Safety
/// The promise of [`Stream`], whose rows are packed for this set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn stream<const R: usize, const P: usize>(chains: Chains, stream: &Stream) {
    let mut total = [[[_mm512_setzero_ps(); 2]; P]; R];
    for block in 0..stream.blocks {
        let ahead: [_; P] = stream.ahead(block);
        let w: [_; P] = std::array::from_fn(|p| stream.panel(p, block));
        for tile in 0..2 {
            let start = tile * Form::Pairs.tile_bytes();
            let mut sums = [[(_mm512_setzero_ps(), _mm512_setzero_ps()); P]; R];
            for four in 0..LINES / 2 {
                // SAFETY: the block has sixteen pairs of a row.
                let mut x = [unsafe { activations(stream.x(0, block), four) }; R];
                for r in 1..R {
                    // SAFETY: as above.
                    x[r] = unsafe { activations(stream.x(r, block), four) };
                }
                for p in 0..P {
                    for line in [2 * four, 2 * four + 1] {
                        _mm_prefetch::<_MM_HINT_T0>(ahead[p].wrapping_add(start + line * ROW).cast());
                    }
                    // SAFETY: the block has this tile.
                    let w = unsafe { weights::<false>(chains, w[p].wrapping_add(start), four) };
                    for r in 0..R {
                        sums[r][p].0 = _mm512_dpbf16_ps(sums[r][p].0, w.0, x[r].0);
                        sums[r][p].1 = _mm512_dpbf16_ps(sums[r][p].1, w.1, x[r].1);
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    total[r][p][tile] = sum(chains, total[r][p][tile], sums[r][p]);
                }
            }
        }
    }
    for (r, total) in total.iter().enumerate() {
        for (p, total) in total.iter().enumerate() {
            for (tile, &total) in total.iter().enumerate() {
                // SAFETY: the sums of this panel and row.
                unsafe { _mm512_storeu_ps(stream.acc(r, p, tile), total) };
            }
        }
    }
}

const _: () = assert!(PANEL == 2 * LANES && ROW == 4 * LANES);
