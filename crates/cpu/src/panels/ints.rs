//! Products of bytes on vector registers, and how nibbles become bytes.
use super::{Form, Product, ROW, group_rows};
use crate::simd::dots::{DotKernel, Dots};
use crate::simd::{KernelSet, LANES, Simd};

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
        unsafe { self.bytes::<D, R, T>(d, x, first, tile) };
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
                        p.ask(d.float(), block, (tile + t) * LANES + j);
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
}

/// Makes blocks of bytes ([`Form::Bytes`]) of the nibbles of some panels. Whoever makes the value promises
/// panels and room of these shapes.
pub(crate) struct Expand {
    /// The first panel, and bytes from one to the next.
    pub(crate) w: *const u8,
    pub(crate) panel_stride: usize,
    pub(crate) panels: usize,
    /// Blocks of a panel.
    pub(crate) blocks: usize,
    /// `[panels][blocks]` of bytes.
    pub(crate) out: *mut u8,
}

/// Panels read at a time, each as a stream.
const STREAMS: usize = 4;
/// Blocks between asking and use.
const AHEAD: usize = 4;

impl DotKernel for Expand {
    #[inline(always)]
    fn run<D: Dots>(self, d: D) {
        let (from, to) = (Form::Nibbles, Form::Bytes);
        for first in (0..self.panels).step_by(STREAMS) {
            let panels = first..self.panels.min(first + STREAMS);
            for block in 0..self.blocks {
                for panel in panels.clone() {
                    let w = self.w.wrapping_add(panel * self.panel_stride + block * from.block_bytes());
                    let out = self.out.wrapping_add((panel * self.blocks + block) * to.block_bytes());
                    for line in (0..from.block_bytes()).step_by(64) {
                        d.float().prefetch(w.wrapping_add(AHEAD * from.block_bytes() + line));
                    }
                    for tile in 0..2 {
                        let multipliers =
                            [0, 1].map(|group| w.wrapping_add(from.multiplier_place(tile * LANES, group)).cast());
                        let (w, out) =
                            (w.wrapping_add(tile * from.tile_bytes()), out.wrapping_add(tile * to.tile_bytes()));
                        // SAFETY: see the type; a tile of nibbles has eight lines, one of bytes sixteen.
                        unsafe { d.expand(w, multipliers, out) };
                    }
                }
            }
        }
    }
}
