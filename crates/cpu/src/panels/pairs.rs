//! The product on vector registers: weights widened, a sum each for even and odd features.
use super::{Form, PANEL, Product};
use crate::simd::{Kernel, KernelSet, LANES, Simd};

const BLOCK: usize = Form::Pairs.features();
/// Elements of a tile, and of a block of a panel.
const TILE: usize = Form::Pairs.tile_bytes() / 2;
const STEP: usize = Form::Pairs.block_bytes() / 2;

const WIDE_ROWS: usize = 6;
const NARROW_ROWS: usize = 2;

pub(super) fn group_rows(kernels: KernelSet) -> usize {
    if kernels.wide() { WIDE_ROWS } else { NARROW_ROWS }
}

/// # Safety
/// As for [`super::multiply`].
pub(super) unsafe fn multiply(kernels: KernelSet, product: &Product) {
    let group = group_rows(kernels);
    for first in (0..product.rows).step_by(group) {
        let group = Group {
            x: product.x.wrapping_add(first / group * product.group_bytes).cast(),
            acc: product.acc.wrapping_add(first * product.acc_stride),
            product,
        };
        macro_rules! by_rows {
            ($($rows:literal),*) => {
                match (product.rows - first, kernels.wide()) {
                    $(($rows, true) => kernels.run(Wide::<$rows>(group)),)*
                    (_, true) => kernels.run(Wide::<WIDE_ROWS>(group)),
                    (1, false) => kernels.run(Narrow::<1>(group)),
                    (_, false) => kernels.run(Narrow::<NARROW_ROWS>(group)),
                }
            };
        }
        by_rows!(1, 2, 3, 4, 5);
    }
}

/// A group's rows, `[blocks][rows of a group][32]`, and their sums.
struct Group<'a> {
    x: *const f32,
    acc: *mut f32,
    product: &'a Product,
}

/// `R` rows of a group of six, both tiles of the panel at a time.
struct Wide<'a, const R: usize>(Group<'a>);
/// `R` rows of a group of two, one tile at a time.
struct Narrow<'a, const R: usize>(Group<'a>);

impl<const R: usize> Kernel for Wide<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::WIDE {
            // SAFETY: the promise of `multiply`'s caller.
            unsafe { rows::<S, R, 2>(s, &self.0, WIDE_ROWS, 0) };
        }
    }
}

impl<const R: usize> Kernel for Narrow<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if !S::WIDE {
            // SAFETY: the promise of `multiply`'s caller.
            unsafe {
                rows::<S, R, 1>(s, &self.0, NARROW_ROWS, 0);
                rows::<S, R, 1>(s, &self.0, NARROW_ROWS, 1);
            }
        }
    }
}

/// `R` rows times `T` tiles of every block, from tile `tile` on.
///
/// # Safety
/// As for [`super::multiply`].
#[inline(always)]
unsafe fn rows<S: Simd, const R: usize, const T: usize>(s: S, group: &Group<'_>, group_rows: usize, tile: usize) {
    let product = group.product;
    let acc = |r: usize, t: usize| group.acc.wrapping_add(r * product.acc_stride + (tile + t) * LANES);
    for block in 0..product.blocks {
        let x = group.x.wrapping_add(block * group_rows * BLOCK);
        let w = product.w.cast::<half::bf16>().wrapping_add(block * STEP + tile * TILE);
        let mut even = [[s.splat(0.0); T]; R];
        let mut odd = even;
        for pair in 0..BLOCK / 2 {
            let mut weights = [(s.splat(0.0), s.splat(0.0)); T];
            for (t, weights) in weights.iter_mut().enumerate() {
                let source = w.wrapping_add(t * TILE + pair * PANEL);
                product.ask(s, block, (tile + t) * LANES + pair);
                // SAFETY: the block has these 32 elements.
                *weights = unsafe { s.load_pairs(source) };
            }
            for r in 0..R {
                // SAFETY: the block has 32 elements of this row.
                let (x0, x1) = unsafe { (*x.add(r * BLOCK + 2 * pair), *x.add(r * BLOCK + 2 * pair + 1)) };
                let (x0, x1) = (s.splat(x0), s.splat(x1));
                for (t, &(w0, w1)) in weights.iter().enumerate() {
                    even[r][t] = s.fma(x0, w0, even[r][t]);
                    odd[r][t] = s.fma(x1, w1, odd[r][t]);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                let sum = s.add(even[r][t], odd[r][t]);
                // SAFETY: `acc` has these sixteen elements.
                unsafe {
                    let before = if block > 0 || product.resume { s.load(acc(r, t)) } else { s.splat(0.0) };
                    s.store(acc(r, t), s.add(before, sum));
                }
            }
        }
    }
}
