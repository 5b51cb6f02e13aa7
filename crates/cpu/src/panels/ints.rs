//! Products of bytes and nibbles on vector registers.
use super::{Form, PANEL, Product, ROW, group_rows};
use crate::simd::dots::{DotKernel, Dots};
use crate::simd::{KernelSet, LANES, Simd};
use half::bf16;

/// Rows at a time: where there are 32 registers, and elsewhere.
const WIDE_ROWS: usize = 4;
const NARROW_ROWS: usize = 2;

/// What makes the value promises the shapes of [`Product`].
pub(super) fn multiply(kernels: KernelSet, product: &Product) {
    kernels.dots(Work { product, group: group_rows(kernels) });
}

struct Work<'a> {
    product: &'a Product,
    /// Rows that are packed together.
    group: usize,
}

impl DotKernel for Work<'_> {
    #[inline(always)]
    fn run<D: Dots>(self, d: D) {
        // The branches are constant: of each set only its own shapes are compiled.
        if D::Float::WIDE {
            for first in (0..self.product.rows).step_by(WIDE_ROWS) {
                // SAFETY: see `multiply`.
                unsafe {
                    match self.product.rows - first {
                        1 => self.rows::<D, 1, 2>(d, first, 0),
                        2 => self.rows::<D, 2, 2>(d, first, 0),
                        3 => self.rows::<D, 3, 2>(d, first, 0),
                        _ => self.rows::<D, WIDE_ROWS, 2>(d, first, 0),
                    }
                }
            }
        } else {
            for first in (0..self.product.rows).step_by(NARROW_ROWS) {
                for tile in 0..2 {
                    // SAFETY: see `multiply`.
                    unsafe {
                        match self.product.rows - first {
                            1 => self.rows::<D, 1, 1>(d, first, tile),
                            _ => self.rows::<D, NARROW_ROWS, 1>(d, first, tile),
                        }
                    }
                }
            }
        }
    }
}

impl Work<'_> {
    /// `R` rows times `T` tiles of every block, from tile `tile` on.
    ///
    /// # Safety
    /// As for [`super::multiply`].
    #[inline(always)]
    unsafe fn rows<D: Dots, const R: usize, const T: usize>(&self, d: D, first: usize, tile: usize) {
        let x: [*const u8; R] = std::array::from_fn(|r| {
            let row = first + r;
            self.product.x.wrapping_add(row / self.group * self.product.group_bytes + row % self.group * ROW)
        });
        // SAFETY: the caller's promise.
        unsafe {
            match self.product.form {
                Form::Nibbles => self.nibbles::<D, R, T>(d, x, first, tile),
                _ => self.bytes::<D, R, T>(d, x, first, tile),
            }
        }
    }

    fn acc(&self, row: usize, tile: usize) -> *mut f32 {
        self.product.acc.wrapping_add(row * self.product.acc_stride + tile * LANES)
    }

    /// The sum of row `row`'s activations in 32 input features.
    ///
    /// # Safety
    /// As for [`super::multiply`].
    #[inline(always)]
    unsafe fn sum(&self, row: usize, group: usize) -> i32 {
        // SAFETY: the row has two sums for each block.
        unsafe { *self.product.sums.add(row * self.product.sums_stride + group) }
    }

    /// # Safety
    /// As for [`super::multiply`].
    #[inline(always)]
    unsafe fn bytes<D: Dots, const R: usize, const T: usize>(
        &self,
        d: D,
        mut x: [*const u8; R],
        first: usize,
        tile: usize,
    ) {
        let p = self.product;
        let mut w = p.w.wrapping_add(tile * Form::Bytes.tile_bytes());
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc: [[D::Sums; T]; R] =
                std::array::from_fn(|r| {
                    std::array::from_fn(|t| {
                        if p.resume { d.load(self.acc(first + r, tile + t).cast()) } else { d.splat(0) }
                    })
                });
            for block in 0..p.blocks {
                for j in 0..LANES {
                    let weights: [D::Weights; T] = std::array::from_fn(|t| {
                        let line = t * Form::Bytes.tile_bytes() + j * ROW;
                        d.float().prefetch(p.ahead_of(block, (tile + t) * LANES + j));
                        d.bytes(w.wrapping_add(line))
                    });
                    for (acc, x) in acc.iter_mut().zip(x) {
                        for (acc, &weights) in acc.iter_mut().zip(&weights) {
                            *acc = d.dot(*acc, weights, x.add(4 * j).cast());
                        }
                    }
                }
                if D::BYTE_OFFSET != 0 {
                    for (r, acc) in acc.iter_mut().enumerate() {
                        let sum = self.sum(first + r, 2 * block) + self.sum(first + r, 2 * block + 1);
                        let offset = d.splat(-D::BYTE_OFFSET * sum);
                        acc.iter_mut().for_each(|acc| *acc = d.add(*acc, offset));
                    }
                }
                w = w.wrapping_add(Form::Bytes.block_bytes());
                x = x.map(|x| x.wrapping_add(self.group * ROW));
            }
            for (r, acc) in acc.iter().enumerate() {
                acc.iter().enumerate().for_each(|(t, acc)| d.store(self.acc(first + r, tile + t).cast(), *acc));
            }
        }
    }

    /// # Safety
    /// As for [`super::multiply`].
    #[inline(always)]
    unsafe fn nibbles<D: Dots, const R: usize, const T: usize>(
        &self,
        d: D,
        mut x: [*const u8; R],
        first: usize,
        tile: usize,
    ) {
        let (p, s) = (self.product, d.float());
        let mut w = p.w;
        // SAFETY: the caller's promise.
        unsafe {
            let mut total: [[<D::Float as Simd>::V; T]; R] = std::array::from_fn(|r| {
                std::array::from_fn(|t| if p.resume { s.load(self.acc(first + r, tile + t)) } else { s.splat(0.0) })
            });
            for block in 0..p.blocks {
                // The lines of the scales.
                (LANES..LANES + 2).for_each(|line| s.prefetch(p.ahead_of(block, line)));
                // Of each row in each tile: the sums of both groups.
                let mut acc: [[[D::Sums; 2]; R]; T] = std::array::from_fn(|_| {
                    std::array::from_fn(|r| {
                        std::array::from_fn(|g| match D::NIBBLE_OFFSET {
                            0 => d.splat(0),
                            offset => d.splat(-offset * self.sum(first + r, 2 * block + g)),
                        })
                    })
                });
                for j in 0..LANES / 2 {
                    for (t, acc) in acc.iter_mut().enumerate() {
                        let line = (tile + t) * Form::Nibbles.tile_bytes() + j * ROW;
                        s.prefetch(p.ahead_of(block, (tile + t) * LANES / 2 + j));
                        let (low, high) = d.nibbles(w.wrapping_add(line));
                        for ([first, second], x) in acc.iter_mut().zip(x) {
                            *first = d.dot(*first, low, x.add(4 * j).cast());
                            *second = d.dot(*second, high, x.add(ROW / 2 + 4 * j).cast());
                        }
                    }
                }
                for g in 0..2 {
                    for (t, acc) in acc.iter().enumerate() {
                        let scales = 2 * Form::Nibbles.tile_bytes() + (g * PANEL + (tile + t) * LANES) * 2;
                        let scales = s.load_bf16(w.wrapping_add(scales).cast::<bf16>());
                        for (total, acc) in total.iter_mut().zip(acc) {
                            total[t] = s.fma(d.to_float(acc[g]), scales, total[t]);
                        }
                    }
                }
                w = w.wrapping_add(Form::Nibbles.block_bytes());
                x = x.map(|x| x.wrapping_add(self.group * ROW));
            }
            for (r, total) in total.iter().enumerate() {
                total.iter().enumerate().for_each(|(t, total)| s.store(self.acc(first + r, tile + t), *total));
            }
        }
    }
}
