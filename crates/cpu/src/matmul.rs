//! The register-blocked product that [`linear`](crate::ops::linear) and
//! [`attention`](crate::ops::attention) are made of.
//!
//! An output element has one f32 accumulator that takes `x[k] * w[k]` for k = 0, 1, 2, ... by fused
//! multiply-add. How many rows and panels a tile has, where K is cut, and the instruction set change
//! which elements are computed side by side, never the order within one.
use crate::simd::{Cell, Kernel, KernelSet, LANES, Simd};

/// K steps whose x values lie together: row `r` of a block keeps them at `r * K_BLOCK`, so that the
/// kernel addresses all rows of a block by constants.
pub(crate) const K_BLOCK: usize = 256;

/// Some rows times some panels.
pub(crate) struct Block<C> {
    /// `[ceil(k / K_BLOCK)][rows][K_BLOCK]`: see [`pack_rows`]. For a single row, that is the row.
    pub(crate) x: *const f32,
    /// Rows: a value of [`block_rows`].
    pub(crate) rows: usize,
    /// `[panels][k][16]`, panels `panel_stride` elements apart.
    pub(crate) w: *const C,
    pub(crate) panel_stride: usize,
    pub(crate) panels: usize,
    pub(crate) k: usize,
    /// `[rows][panels * 16]`, rows `acc_stride` elements apart.
    pub(crate) acc: *mut f32,
    pub(crate) acc_stride: usize,
    /// Continue the sums in `acc` instead of starting at zero.
    pub(crate) resume: bool,
}

/// Row counts there are kernels for, highest first.
const WIDE_ROWS: [usize; 7] = [12, 8, 6, 4, 3, 2, 1];
const NARROW_ROWS: [usize; 5] = [6, 4, 3, 2, 1];

/// Rows of the next block when `left > 0` rows are left.
pub(crate) fn block_rows(kernels: KernelSet, left: usize) -> usize {
    let sizes: &[usize] = if kernels.wide() { &WIDE_ROWS } else { &NARROW_ROWS };
    sizes.iter().copied().find(|&rows| rows <= left).unwrap_or(1)
}

/// Most rows a block can have.
pub(crate) fn max_block_rows(kernels: KernelSet) -> usize {
    block_rows(kernels, usize::MAX)
}

/// The blocks that cover `rows` rows: (first row, rows).
pub(crate) fn blocks(kernels: KernelSet, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        (first < rows).then(|| {
            let size = block_rows(kernels, rows - first);
            first += size;
            (first - size, size)
        })
    })
}

/// Floats of the packed form of one row.
pub(crate) fn packed_k(k: usize) -> usize {
    k.next_multiple_of(K_BLOCK)
}

/// Copies rows into the blocks' order: the block that starts at row `r` lies at `r * packed_k(k)`.
/// `row(r)` gives the first of `k` elements of row `r`.
///
/// # Safety
/// The rows are readable and `out` has `rows * packed_k(k)` elements.
pub(crate) unsafe fn pack_rows(
    kernels: KernelSet,
    rows: usize,
    k: usize,
    row: impl Fn(usize) -> *const f32,
    out: &mut [f32],
) {
    assert!(out.len() >= rows * packed_k(k));
    for (first, size) in blocks(kernels, rows) {
        for r in 0..size {
            let source = row(first + r);
            for start in (0..k).step_by(K_BLOCK) {
                let target = first * packed_k(k) + start * size + r * K_BLOCK;
                // SAFETY: `start * size + r * K_BLOCK + K_BLOCK <= size * packed_k(k)`, and the
                // source has k elements.
                unsafe {
                    let target = out.as_mut_ptr().add(target);
                    target.copy_from_nonoverlapping(source.add(start), K_BLOCK.min(k - start));
                }
            }
        }
    }
}

/// Computes a block.
///
/// # Safety
/// The pointers are valid for the shapes given at [`Block`]'s fields, and nothing else accesses `acc`
/// meanwhile.
pub(crate) unsafe fn multiply<C: Cell>(kernels: KernelSet, block: &Block<C>) {
    macro_rules! by_shape {
        ($($rows:literal x $panels:literal),*) => {
            match (block.rows, tile_panels(kernels, block.rows, block.panels)) {
                $(($rows, $panels) => kernels.run(Tile::<C, $rows, $panels>(block)),)*
                (rows, panels) => unreachable!("matmul: no kernel for {rows} rows x {panels} panels"),
            }
        };
    }
    by_shape!(1 x 8, 1 x 4, 2 x 4, 2 x 2, 3 x 4, 3 x 2, 4 x 4, 4 x 2, 4 x 1, 6 x 4, 6 x 2, 6 x 1, 8 x 2, 12 x 2);
}

/// Panels side by side in a tile: enough independent sums to hide the latency of an addition, and
/// no more than there are registers for.
fn tile_panels(kernels: KernelSet, rows: usize, panels: usize) -> usize {
    match (kernels.wide(), rows) {
        (true, 8..) => 2,
        (true, 3..) if panels <= 2 => 2,
        (true, 1) => 8,
        (true, _) => 4,
        (false, 1) => 4,
        (false, 2 | 3) => 2,
        (false, _) => 1,
    }
}

/// Whether wide sets use the shape; they share one with the others.
const fn is_wide_shape(rows: usize, panels: usize) -> bool {
    rows * panels > 6
}
const SHARED_SHAPE: (usize, usize) = (3, 2);

/// Elements ahead of their use that single rows, which wait for memory, ask for.
const PREFETCH: usize = 64 * LANES;

/// `R` rows and `P` panels at a time, over all panels of a block.
struct Tile<'a, C, const R: usize, const P: usize>(&'a Block<C>);

impl<C: Cell, const R: usize, const P: usize> Kernel for Tile<'_, C, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Shapes of the other kind of set need no code.
        if S::WIDE != is_wide_shape(R, P) && (R, P) != SHARED_SHAPE {
            unreachable!("matmul: {R} x {P} is for other registers");
        }
        let b = self.0;
        let mut panel = 0;
        while panel < b.panels {
            let count = P.min(b.panels - panel);
            // SAFETY: the promise of `multiply`'s caller; past the last panel, its sums are computed
            // again and dropped.
            unsafe {
                let first = b.w.add(panel * b.panel_stride);
                let mut w = [first; P];
                for (p, w) in w.iter_mut().enumerate() {
                    *w = first.add(p.min(count - 1) * b.panel_stride);
                }
                tile::<S, C, R, P>(s, b, w, count, b.acc.add(panel * LANES));
            }
            panel += P;
        }
    }
}

/// # Safety
/// As for [`multiply`]; `w` are panels, of which `count` are stored at `acc`.
#[inline(always)]
unsafe fn tile<S: Simd, C: Cell, const R: usize, const P: usize>(
    s: S,
    b: &Block<C>,
    w: [*const C; P],
    count: usize,
    acc: *mut f32,
) {
    let mut sums = [[s.splat(0.0); P]; R];
    // SAFETY: `k` elements of every row and panel are readable, `count` vectors per row at `acc`.
    unsafe {
        if b.resume {
            for (r, row) in sums.iter_mut().enumerate() {
                for (p, sum) in row.iter_mut().enumerate().take(count) {
                    *sum = s.load(acc.add(r * b.acc_stride + p * LANES));
                }
            }
        }
        let mut x = b.x;
        let mut k = 0;
        while k < b.k {
            let end = b.k.min(k + K_BLOCK);
            for i in 0..end - k {
                let mut column = [s.splat(0.0); P];
                for (p, v) in column.iter_mut().enumerate() {
                    let source = w[p].add((k + i) * LANES);
                    if R == 1 && size_of::<C>() < 4 {
                        s.prefetch(source.wrapping_add(PREFETCH).cast());
                    }
                    *v = C::load(s, source);
                }
                for (r, row) in sums.iter_mut().enumerate() {
                    let xv = s.splat(*x.add(r * K_BLOCK + i));
                    for (p, sum) in row.iter_mut().enumerate() {
                        *sum = s.fma(xv, column[p], *sum);
                    }
                }
            }
            x = x.add(R * K_BLOCK);
            k = end;
        }
        for (r, row) in sums.iter().enumerate() {
            for (p, sum) in row.iter().enumerate().take(count) {
                s.store(acc.add(r * b.acc_stride + p * LANES), *sum);
            }
        }
    }
}
