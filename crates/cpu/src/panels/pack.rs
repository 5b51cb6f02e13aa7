//! Activations in the order the products read: groups of rows, a block of input features at a time.
use super::{Form, ROW, group_rows, stream};
use crate::buffer::Allocation;
use crate::plan::Context;
use crate::simd::{Isa, Kernel, KernelSet, LANES, Simd, load_up_to};
use crate::view::Chosen;
use anyfleet_tensor::quant;
use half::bf16;
use std::ops::Range;

/// Packed rows of one operation; the memory is kept from step to step.
#[derive(Default)]
pub(crate) struct Rows {
    memory: Option<Allocation>,
    /// Scale of each packed row.
    scales: Vec<f32>,
    /// First packed row of each row, and the end.
    starts: Vec<u32>,
    /// Per packed row, sums of 32 input features at a time.
    sums: Vec<i32>,
}

/// How rows of [`Form::Pairs`] are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cells {
    /// f32, for multiply-adds.
    F32,
    /// bf16, for the matrix unit.
    Bf16,
    /// bf16 in the order of [`CHAINED`](crate::simd::CHAINED), for dot products.
    Chained,
}

impl Cells {
    pub(crate) fn of(kernels: KernelSet) -> Cells {
        match kernels.isa() {
            Isa::Amx => Cells::Bf16,
            Isa::Avx512Bf16 => Cells::Chained,
            _ => Cells::F32,
        }
    }

    /// Bytes of a row in a block.
    pub(crate) fn row_bytes(self) -> usize {
        if self == Cells::F32 { 2 * ROW } else { ROW }
    }
}

/// What is in it.
#[derive(Clone, Copy)]
pub(crate) struct Packed<'a> {
    kernels: KernelSet,
    form: Form,
    base: *const u8,
    /// Bytes of a group of rows: `[blocks][rows of a group]`[`[ROW]`](ROW); pairs as [`Cells`] says.
    pub(crate) group_bytes: usize,
    /// Bytes of one block of a group.
    pub(crate) block_bytes: usize,
    scales: &'a [f32],
    starts: &'a [u32],
    pub(crate) sums: *const i32,
    pub(crate) sums_stride: usize,
}

// SAFETY: tasks only read what it points to.
unsafe impl Send for Packed<'_> {}
// SAFETY: as above.
unsafe impl Sync for Packed<'_> {}

impl Packed<'_> {
    /// The first group of rows, from `block` on.
    #[inline]
    pub(crate) fn at(&self, block: usize) -> *const u8 {
        self.base.wrapping_add(block * self.block_bytes)
    }

    /// The sums of the first row, from `block` on.
    #[inline]
    pub(crate) fn sums_at(&self, block: usize) -> *const i32 {
        self.sums.wrapping_add(2 * block)
    }

    /// Bytes of a row in a block.
    #[inline]
    pub(crate) fn row_bytes(&self) -> usize {
        self.block_bytes / group_rows(self.kernels)
    }

    /// Packed rows: more than rows where some have a rest.
    #[inline]
    pub(crate) fn rows(&self) -> usize {
        self.starts.last().map_or(0, |&n| n as usize)
    }

    /// The packed row of row `row`, its scale, and that of its rest, which is the packed row after it.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> (usize, f32, Option<f32>) {
        let (start, end) = (self.starts[row] as usize, self.starts[row + 1] as usize);
        match self.form {
            Form::Pairs => (start, 1.0, None),
            _ => (start, self.scales[start], (end - start == 2).then(|| self.scales[start + 1])),
        }
    }

    /// The packed rows of rows `rows`.
    pub(crate) fn packed(&self, rows: Range<usize>) -> Range<usize> {
        self.starts[rows.start] as usize..self.starts[rows.end] as usize
    }

    /// Whether these packed rows are in one group.
    pub(crate) fn together(&self, packed: &Range<usize>) -> bool {
        let group = group_rows(self.kernels);
        packed.start / group == packed.end.saturating_sub(1) / group
    }

    /// Where packed row `row` begins.
    #[inline]
    pub(crate) fn place(&self, row: usize) -> *const u8 {
        self.target(row)
    }

    #[inline]
    fn target(&self, row: usize) -> *mut u8 {
        let group = group_rows(self.kernels);
        self.base.cast_mut().wrapping_add(row / group * self.group_bytes + row % group * self.row_bytes())
    }
}

/// Makes a pointer into disjoint places of a list shareable between tasks.
#[derive(Clone, Copy)]
struct Places<T>(*mut T);
// SAFETY: every task writes its own places.
unsafe impl<T> Send for Places<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Places<T> {}

impl<T> Places<T> {
    /// Place `i`, which exists.
    fn at(self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }

    /// # Safety
    /// Place `i` exists and belongs to the caller's task.
    unsafe fn set(self, i: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i).write(value) }
    }
}

impl Rows {
    /// Rounds or quantizes rows of `x` and packs them.
    ///
    /// # Panics
    /// When memory is exhausted.
    pub(crate) fn pack(&mut self, ctx: &Context, form: Form, x: &Chosen, rows: Range<usize>) -> Packed<'_> {
        self.pack_for(ctx, form, x, rows, stream::ROWS)
    }

    /// As [`Rows::pack`], for products of which each takes a row or two ([`stream::ROWS`]).
    ///
    /// # Panics
    /// When memory is exhausted.
    pub(crate) fn pack_for_streams(&mut self, ctx: &Context, form: Form, x: &Chosen, rows: Range<usize>) -> Packed<'_> {
        self.pack_for(ctx, form, x, rows, usize::MAX)
    }

    /// Up to `streamed` packed rows are not for the matrix unit.
    fn pack_for(&mut self, ctx: &Context, form: Form, x: &Chosen, rows: Range<usize>, streamed: usize) -> Packed<'_> {
        let (group, blocks) = (group_rows(ctx.kernels), form.blocks(x.cols()));
        self.measure(ctx, form, x, rows.clone());
        let packed_rows = self.starts.last().map_or(0, |&n| n as usize);
        let cells = Cells::of(ctx.kernels);
        let row_bytes = if form == Form::Pairs { cells.row_bytes() } else { ROW };
        let block_bytes = group * row_bytes;
        let group_bytes = blocks * block_bytes;
        let bytes = packed_rows.div_ceil(group) * group_bytes;
        if self.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            self.memory = None;
            self.memory = Some(Allocation::new(bytes, "packed activations").unwrap_or_else(|e| panic!("{e}")));
        }
        // The matrix unit, which takes all but a row or two, multiplies signed bytes.
        let tiles = ctx.kernels.isa() == Isa::Amx && packed_rows > streamed;
        let sums_stride = if form == Form::Pairs || tiles { 0 } else { 2 * blocks };
        self.sums.resize(packed_rows * sums_stride, 0);
        let (sums, scales) = (Places(self.sums.as_mut_ptr()), Places(self.scales.as_mut_ptr()));
        let mut packed = Packed {
            kernels: ctx.kernels,
            form,
            base: self.memory.as_ref().map_or(std::ptr::null(), |memory| memory.as_ptr().cast_const()),
            group_bytes,
            block_bytes,
            scales: &[],
            starts: &self.starts,
            sums: self.sums.as_ptr(),
            sums_stride,
        };
        ctx.split(rows.len(), x.cols(), |range| {
            for i in range {
                let (source, k) = (x.row::<f32>(rows.start + i).cast_const(), x.cols());
                let start = packed.starts[i] as usize;
                if form == Form::Pairs {
                    let (target, step) = (packed.target(start), block_bytes);
                    ctx.kernels.run(PackPairs { source, k, target, step, cells });
                    continue;
                }
                // SAFETY: `measure` filled the scales of the rows; the packed rows of a row are this task's.
                unsafe {
                    let scale = *scales.at(start);
                    let has_rest = packed.starts[i + 1] as usize - start == 2;
                    let wanted = |row| if sums_stride == 0 { std::ptr::null_mut() } else { sums.at(row * sums_stride) };
                    let place = |row: usize| (packed.target(row), wanted(row));
                    let rest = has_rest.then(|| place(start + 1));
                    let (target, sums) = place(start);
                    let pack = PackBytes { source, k, scale, target, sums, rest, step: block_bytes };
                    let rest_scale = ctx.kernels.run(pack);
                    if has_rest {
                        scales.set(start + 1, rest_scale);
                    }
                }
            }
        });
        packed.scales = &self.scales;
        packed
    }

    /// Finds the scale of every row and which rows have a rest; lists where their packed rows begin.
    fn measure(&mut self, ctx: &Context, form: Form, x: &Chosen, rows: Range<usize>) {
        self.starts.clear();
        if form == Form::Pairs {
            return self.starts.extend(0..=rows.len() as u32);
        }
        // First the scales one after the other, and 1 or 2 in `starts`.
        self.scales.clear();
        self.scales.resize(2 * rows.len(), 0.0);
        self.starts.resize(rows.len() + 1, 0);
        let (scales, starts) = (Places(self.scales.as_mut_ptr()), Places(self.starts.as_mut_ptr()));
        ctx.split(rows.len(), x.cols(), |range| {
            for i in range {
                let (source, k) = (x.row::<f32>(rows.start + i).cast_const(), x.cols());
                let (scale, has_rest) = ctx.kernels.run(Measure { source, k });
                // SAFETY: there are places for every row.
                unsafe {
                    scales.set(i, scale);
                    starts.set(i, 1 + u32::from(has_rest));
                }
            }
        });
        // Then, from the back, so that nothing is overwritten before it moved.
        let total: u32 = self.starts[..rows.len()].iter().sum();
        let mut next = total;
        self.starts[rows.len()] = total;
        for i in (0..rows.len()).rev() {
            next -= self.starts[i];
            self.starts[i] = next;
            self.scales[next as usize] = self.scales[i];
        }
    }
}

/// A row's scale, and whether it has a rest: the decisions of [`quant::ByteRow`].
struct Measure {
    /// `k` elements.
    source: *const f32,
    k: usize,
}

impl Kernel for Measure {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, bool) {
        let (mut sum, mut most) = (s.splat(0.0), s.splat(0.0));
        for start in (0..self.k).step_by(LANES) {
            // SAFETY: `k - start` elements are left.
            let v = unsafe { load_up_to(s, self.source.add(start), self.k - start) };
            let magnitude = s.max(v, s.sub(s.splat(0.0), v));
            sum = s.add(sum, magnitude);
            most = s.max(magnitude, most);
        }
        let (sum, most) = (s.reduce_add(sum), s.reduce_max(most));
        if !sum.is_finite() {
            return (f32::NAN, false);
        }
        (most / quant::BYTE, most > quant::OUTLIER * (sum / self.k as f32))
    }
}

/// One row's way into its group, rounded to bf16, zeros up to whole blocks. Whoever makes the value promises
/// `k` elements, and the row's places in each block, which belong to this task.
pub(crate) struct PackPairs {
    pub(crate) source: *const f32,
    pub(crate) k: usize,
    /// Its place in the first block.
    pub(crate) target: *mut u8,
    /// Bytes from one block to the next.
    pub(crate) step: usize,
    pub(crate) cells: Cells,
}

impl Kernel for PackPairs {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for start in (0..self.k.next_multiple_of(2 * LANES)).step_by(LANES) {
            let place = self.target.wrapping_add(start / (2 * LANES) * self.step);
            // SAFETY: see the type.
            unsafe {
                let v = load_up_to(s, self.source.wrapping_add(start), self.k.saturating_sub(start));
                store_pairs(s, place, start % (2 * LANES), self.cells, v);
            }
        }
    }
}

/// Stores sixteen columns of a row of a block, rounded to bf16.
///
/// # Safety
/// The row at `place` has these columns.
#[inline(always)]
pub(crate) unsafe fn store_pairs<S: Simd>(s: S, place: *mut u8, column: usize, cells: Cells, v: S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        match cells {
            Cells::F32 => s.store(place.cast::<f32>().add(column), s.round_bf16(v)),
            Cells::Bf16 => s.store_bf16(place.cast::<bf16>().add(column), v),
            Cells::Chained => s.store_chained(place.cast::<bf16>().add(column), v),
        }
    }
}

/// One row's way into its group as bytes, with the sums of 32 of them at a time.
struct PackBytes {
    /// `k` elements.
    source: *const f32,
    k: usize,
    scale: f32,
    target: *mut u8,
    /// Two for each block; null where nobody wants them.
    sums: *mut i32,
    /// Target and sums of the rest.
    rest: Option<(*mut u8, *mut i32)>,
    /// Bytes from one block to the next.
    step: usize,
}

impl Kernel for PackBytes {
    /// The scale of the rest.
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let scale = if self.scale.is_nan() { 0.0 } else { self.scale };
        let inverse = quant::inverse(scale);
        let whole = Bytes { scale, inverse, left: None };
        // SAFETY: the places of a row as wide as the source.
        unsafe { self.write(s, &whole, self.target, self.sums) };
        let Some((target, sums)) = self.rest else { return 0.0 };
        let mut most = s.splat(0.0);
        for start in (0..self.k).step_by(LANES) {
            let v = whole.left(s, self.load(s, start));
            most = s.max(s.max(v, s.sub(s.splat(0.0), v)), most);
        }
        let scale = s.reduce_max(most) / quant::BYTE;
        let rest = Bytes { scale, inverse: quant::inverse(scale), left: Some((whole.scale, whole.inverse)) };
        // SAFETY: as above.
        unsafe { self.write(s, &rest, target, sums) };
        scale
    }
}

/// How numbers become bytes.
struct Bytes {
    scale: f32,
    inverse: f32,
    /// Scale and its inverse of the bytes whose error these are.
    left: Option<(f32, f32)>,
}

impl Bytes {
    #[inline(always)]
    fn of<S: Simd>(&self, s: S, v: S::V) -> S::V {
        let v = match self.left {
            None => v,
            Some((scale, inverse)) => Bytes { scale, inverse, left: None }.left(s, v),
        };
        to_bytes(s, v, s.splat(self.inverse))
    }

    /// What the bytes leave of numbers.
    #[inline(always)]
    fn left<S: Simd>(&self, s: S, v: S::V) -> S::V {
        let bytes = to_bytes(s, v, s.splat(self.inverse));
        s.fma(s.sub(s.splat(0.0), bytes), s.splat(self.scale), v)
    }
}

impl PackBytes {
    /// Sixteen elements; of a row without a scale nothing is kept.
    #[inline(always)]
    fn load<S: Simd>(&self, s: S, start: usize) -> S::V {
        if self.scale.is_nan() {
            return s.splat(0.0);
        }
        // SAFETY: up to k elements are readable.
        unsafe { load_up_to(s, self.source.wrapping_add(start), self.k.saturating_sub(start)) }
    }

    /// Writes the row, whole blocks of it, and where they are wanted its sums by 32.
    ///
    /// # Safety
    /// `target` has the row's places in each block, `sums`, if not null, two for each block.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, s: S, bytes: &Bytes, target: *mut u8, sums: *mut i32) {
        for (i, start) in (0..self.k.next_multiple_of(ROW)).step_by(quant::GROUP).enumerate() {
            let place = target.wrapping_add(i / 2 * self.step + i % 2 * quant::GROUP).cast::<i8>();
            let (a, b) = (bytes.of(s, self.load(s, start)), bytes.of(s, self.load(s, start + LANES)));
            // SAFETY: the caller's promise.
            unsafe {
                s.store_i8(place, a);
                s.store_i8(place.add(LANES), b);
                if !sums.is_null() {
                    // Whole numbers below 2^24: exact in any order.
                    *sums.add(i) = s.reduce_add(s.add(a, b)) as i32;
                }
            }
        }
    }
}

/// `round(v * inverse)` in -127..=127.
#[inline(always)]
fn to_bytes<S: Simd>(s: S, v: S::V, inverse: S::V) -> S::V {
    let round = s.splat(quant::ROUND);
    let whole = s.sub(s.add(s.mul(v, inverse), round), round);
    let low = s.max(whole, s.splat(-quant::BYTE));
    s.select_gt(low, s.splat(quant::BYTE), s.splat(quant::BYTE), low)
}
