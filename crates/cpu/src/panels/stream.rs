//! A row or two times several panels at a time, each read from memory as a stream of its own.
//!
//! One row is over as soon as the weights have come by, so what counts is that memory is never idle: several
//! streams a thread keep more reads under way than one, and each line is asked for a few blocks before it
//! is used, past the end of the panels with those that come after them. The sums are those of
//! [`pairs`](super::pairs) and [`ints`](super::ints), in the same order.
#![expect(clippy::needless_range_loop, reason = "rows, panels and tiles count places of several arrays")]
#[cfg(target_arch = "x86_64")]
use super::chains;
use super::{Form, PANEL, STREAMS, eights};
use crate::simd::dots::{DotKernel, Dots};
use crate::simd::{Isa, Kernel, KernelSet, LANES, Simd};
use half::bf16;

/// Most packed rows: more are better multiplied together.
pub(crate) const ROWS: usize = 2;

/// Panels at a time where there are 32 wide registers, and elsewhere.
const WIDE: usize = 6;
const NARROW: usize = 2;

/// Whether [`Stream`] takes panels of this form.
pub(crate) fn takes(kernels: KernelSet, form: Form) -> bool {
    form != Form::Eights || eights::in_registers(kernels)
}

/// Groups of `panels` panels at a time, the largest first; [`Stream`] takes no other number.
pub(crate) fn width(kernels: KernelSet, form: Form, panels: usize) -> usize {
    if form == Form::Eights {
        return panels.min(STREAMS);
    }
    let sizes: &[usize] = if kernels.wide() { &[WIDE, 4, 2, 1] } else { &[NARROW, 1] };
    sizes.iter().copied().find(|&size| size <= panels).unwrap_or(1)
}

/// Packed rows times [`width`] panels. Whoever makes the value promises memory of these shapes, and that
/// nobody else uses the sums meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    /// One that the set [`takes`].
    pub(crate) form: Form,
    /// Rows, at most [`ROWS`].
    pub(crate) rows: usize,
    /// The first row in the first block; bytes from one block, and one row of a block, to the next.
    pub(crate) x: *const u8,
    pub(crate) x_block: usize,
    pub(crate) x_row: usize,
    /// Bytes and nibbles: sums of the activations of 32 input features, `[rows][sums_stride]`.
    pub(crate) sums: *const i32,
    pub(crate) sums_stride: usize,
    /// The panels, `panel_stride` bytes apart.
    pub(crate) w: *const u8,
    pub(crate) panel_stride: usize,
    pub(crate) panels: usize,
    /// Blocks of a panel.
    pub(crate) blocks: usize,
    /// What is read after them, and how far apart.
    pub(crate) next: *const u8,
    pub(crate) next_stride: usize,
    /// `[rows][panels * 32]`: f32, for integers i32.
    pub(crate) acc: *mut f32,
}

impl Stream {
    /// Blocks between asking and use: four kilobytes.
    const fn distance(form: Form) -> usize {
        match form {
            Form::Pairs | Form::Bytes => 2,
            Form::Nibbles | Form::Eights => 4,
        }
    }

    /// The panels' blocks to ask for while working on block `block`.
    #[inline(always)]
    pub(super) fn ahead<const P: usize>(&self, block: usize) -> [*const u8; P] {
        let (first, stride) = self.later(block);
        std::array::from_fn(|p| first.wrapping_add(p * stride))
    }

    /// That of the first panel, and how far apart they are.
    #[inline(always)]
    pub(super) fn later(&self, block: usize) -> (*const u8, usize) {
        let later = block + Self::distance(self.form);
        let (base, stride, block) = if later < self.blocks {
            (self.w, self.panel_stride, later)
        } else {
            (self.next, self.next_stride, later - self.blocks)
        };
        (base.wrapping_add(block * self.form.block_bytes()), stride)
    }

    pub(super) fn panel(&self, p: usize, block: usize) -> *const u8 {
        self.w.wrapping_add(p * self.panel_stride + block * self.form.block_bytes())
    }

    /// Asks for the scales that end the panels.
    #[inline(always)]
    pub(super) fn ask_for_scales<S: Simd>(&self, s: S) {
        for p in 0..self.panels {
            (0..PANEL * 4).step_by(64).for_each(|i| s.prefetch(self.panel(p, self.blocks).wrapping_add(i)));
        }
    }

    pub(super) fn acc(&self, row: usize, panel: usize, tile: usize) -> *mut f32 {
        self.acc.wrapping_add((row * self.panels + panel) * PANEL + tile * LANES)
    }

    pub(super) fn x(&self, row: usize, block: usize) -> *const u8 {
        self.x.wrapping_add(block * self.x_block + row * self.x_row)
    }

    pub(crate) fn run(self, kernels: KernelSet) {
        #[cfg(target_arch = "x86_64")]
        if let (Form::Pairs, Some(chains)) = (self.form, kernels.chains()) {
            return chains::run(chains, &self);
        }
        match self.form {
            Form::Pairs if kernels.isa() == Isa::Amx => kernels.run(Pairs::<true>(self)),
            Form::Pairs => kernels.run(Pairs::<false>(self)),
            Form::Bytes | Form::Nibbles => kernels.dots(Integers(self)),
            Form::Eights => kernels.run(eights::Streamed(self)),
        }
    }
}

/// Calls `$call` with the number of rows and panels as constants.
macro_rules! by_shape {
    ($wide:expr, $stream:expr, $call:ident, $($arg:expr),*) => {
        // Of each set only its own shapes are compiled.
        if $wide {
            match ($stream.rows, $stream.panels) {
                (1, WIDE) => $call::<_, 1, WIDE>($($arg),*),
                (1, 4) => $call::<_, 1, 4>($($arg),*),
                (1, 2) => $call::<_, 1, 2>($($arg),*),
                (1, _) => $call::<_, 1, 1>($($arg),*),
                (_, WIDE) => $call::<_, 2, WIDE>($($arg),*),
                (_, 4) => $call::<_, 2, 4>($($arg),*),
                (_, 2) => $call::<_, 2, 2>($($arg),*),
                _ => $call::<_, 2, 1>($($arg),*),
            }
        } else {
            match ($stream.rows, $stream.panels) {
                (1, NARROW) => $call::<_, 1, NARROW>($($arg),*),
                (1, _) => $call::<_, 1, 1>($($arg),*),
                (_, NARROW) => $call::<_, 2, NARROW>($($arg),*),
                _ => $call::<_, 2, 1>($($arg),*),
            }
        }
    };
}

/// Whether rows are bf16, as for the matrix unit, or f32.
struct Pairs<const BF16: bool>(Stream);

impl<const BF16: bool> Kernel for Pairs<BF16> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: the promise of `Stream`.
        unsafe {
            if BF16 {
                by_shape!(S::WIDE, self.0, pairs_of_bf16, s, &self.0)
            } else {
                by_shape!(S::WIDE, self.0, pairs_of_f32, s, &self.0)
            }
        }
    }
}

/// # Safety
/// The promise of [`Stream`], whose rows are bf16.
#[inline(always)]
unsafe fn pairs_of_bf16<S: Simd, const R: usize, const P: usize>(s: S, stream: &Stream) {
    // SAFETY: the caller's promise.
    unsafe { pairs::<S, true, R, P>(s, stream) }
}

/// # Safety
/// The promise of [`Stream`], whose rows are f32.
#[inline(always)]
unsafe fn pairs_of_f32<S: Simd, const R: usize, const P: usize>(s: S, stream: &Stream) {
    // SAFETY: the caller's promise.
    unsafe { pairs::<S, false, R, P>(s, stream) }
}

/// Pair `pair` of a row's block in all lanes.
///
/// # Safety
/// The block has it.
#[inline(always)]
pub(super) unsafe fn load_pair<S: Simd, const BF16: bool>(s: S, x: *const u8, pair: usize) -> (S::V, S::V) {
    // SAFETY: the caller's promise.
    unsafe {
        if BF16 {
            let [x0, x1] = x.cast::<[bf16; 2]>().add(pair).read();
            (s.splat(x0.to_f32()), s.splat(x1.to_f32()))
        } else {
            let [x0, x1] = x.cast::<[f32; 2]>().add(pair).read();
            (s.splat(x0), s.splat(x1))
        }
    }
}

/// # Safety
/// The promise of [`Stream`], whose rows are bf16 or f32.
#[inline(always)]
unsafe fn pairs<S: Simd, const BF16: bool, const R: usize, const P: usize>(s: S, stream: &Stream) {
    let mut total = [[[s.splat(0.0); 2]; P]; R];
    for block in 0..stream.blocks {
        let ahead: [_; P] = stream.ahead(block);
        let w: [_; P] = std::array::from_fn(|p| stream.panel(p, block));
        let x: [_; R] = std::array::from_fn(|r| stream.x(r, block));
        for tile in 0..2 {
            let mut even = [[s.splat(0.0); P]; R];
            let mut odd = even;
            for pair in 0..LANES {
                let line = tile * Form::Pairs.tile_bytes() + pair * 64;
                let mut pairs = [(s.splat(0.0), s.splat(0.0)); R];
                for r in 0..R {
                    // SAFETY: the block has sixteen pairs of a row.
                    pairs[r] = unsafe { load_pair::<S, BF16>(s, x[r], pair) };
                }
                for p in 0..P {
                    s.prefetch(ahead[p].wrapping_add(line));
                    // SAFETY: the block has these 32 elements.
                    let (w0, w1) = unsafe { s.load_pairs(w[p].wrapping_add(line).cast()) };
                    for r in 0..R {
                        even[r][p] = s.fma(pairs[r].0, w0, even[r][p]);
                        odd[r][p] = s.fma(pairs[r].1, w1, odd[r][p]);
                    }
                }
            }
            for r in 0..R {
                for p in 0..P {
                    total[r][p][tile] = s.add(total[r][p][tile], s.add(even[r][p], odd[r][p]));
                }
            }
        }
    }
    for (r, total) in total.iter().enumerate() {
        for (p, total) in total.iter().enumerate() {
            // SAFETY: the sums of this panel and row.
            total.iter().enumerate().for_each(|(tile, total)| unsafe { s.store(stream.acc(r, p, tile), *total) });
        }
    }
}

struct Integers(Stream);

impl DotKernel for Integers {
    #[inline(always)]
    fn run<D: Dots>(self, d: D) {
        // SAFETY: the promise of `Stream`.
        unsafe {
            if self.0.form == Form::Bytes {
                by_shape!(D::Float::WIDE, self.0, bytes, d, &self.0)
            } else {
                by_shape!(D::Float::WIDE, self.0, nibbles, d, &self.0)
            }
        }
    }
}

/// # Safety
/// The promise of [`Stream`].
#[inline(always)]
unsafe fn bytes<D: Dots, const R: usize, const P: usize>(d: D, stream: &Stream) {
    let s = d.float();
    let mut acc: [[[D::Sums; 2]; P]; R] = std::array::from_fn(|r| {
        let sums = stream.sums.wrapping_add(r * stream.sums_stride);
        let offset = match D::BYTE_OFFSET {
            0 => 0,
            // SAFETY: a row has two sums a block.
            offset => -offset * (0..2 * stream.blocks).map(|i| unsafe { *sums.add(i) }).sum::<i32>(),
        };
        [[d.splat(offset); 2]; P]
    });
    stream.ask_for_scales(s);
    for block in 0..stream.blocks {
        let ahead: [_; P] = stream.ahead(block);
        let w: [_; P] = std::array::from_fn(|p| stream.panel(p, block));
        let x: [_; R] = std::array::from_fn(|r| stream.x(r, block));
        for tile in 0..2 {
            for four in 0..LANES {
                let line = tile * Form::Bytes.tile_bytes() + four * 64;
                for p in 0..P {
                    s.prefetch(ahead[p].wrapping_add(line));
                    // SAFETY: the block has these 64 bytes, and a row's block four at this place.
                    unsafe {
                        let w = d.bytes(w[p].wrapping_add(line));
                        for r in 0..R {
                            acc[r][p][tile] = d.dot(acc[r][p][tile], w, x[r].wrapping_add(4 * four).cast());
                        }
                    }
                }
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (p, acc) in acc.iter().enumerate() {
            // SAFETY: the sums of this panel and row.
            acc.iter().enumerate().for_each(|(tile, acc)| unsafe { d.store(stream.acc(r, p, tile).cast(), *acc) });
        }
    }
}

/// # Safety
/// The promise of [`Stream`].
#[inline(always)]
unsafe fn nibbles<D: Dots, const R: usize, const P: usize>(d: D, stream: &Stream) {
    let s = d.float();
    let mut total = [[[d.splat(0); 2]; P]; R];
    stream.ask_for_scales(s);
    for block in 0..stream.blocks {
        let ahead: [_; P] = stream.ahead(block);
        let w: [_; P] = std::array::from_fn(|p| stream.panel(p, block));
        let x: [_; R] = std::array::from_fn(|r| stream.x(r, block));
        // The line of the multipliers.
        ahead.iter().for_each(|ahead| s.prefetch(ahead.wrapping_add(2 * Form::Nibbles.tile_bytes())));
        // Of each row, what the sums of both groups begin with.
        let start: [[i32; 2]; R] = std::array::from_fn(|r| {
            std::array::from_fn(|g| match D::NIBBLE_OFFSET {
                0 => 0,
                // SAFETY: a row has two sums a block.
                offset => -offset * unsafe { *stream.sums.add(r * stream.sums_stride + 2 * block + g) },
            })
        });
        for tile in 0..2 {
            let mut acc: [[[D::Sums; 2]; P]; R] = std::array::from_fn(|r| [start[r].map(|start| d.splat(start)); P]);
            for four in 0..LANES / 2 {
                let line = tile * Form::Nibbles.tile_bytes() + four * 64;
                for p in 0..P {
                    s.prefetch(ahead[p].wrapping_add(line));
                    // SAFETY: the block has these 64 bytes, and a row's block four at both places.
                    unsafe {
                        let (low, high) = d.nibbles(w[p].wrapping_add(line));
                        for r in 0..R {
                            let (x, [first, second]) = (x[r].wrapping_add(4 * four), &mut acc[r][p]);
                            *first = d.dot(*first, low, x.cast());
                            *second = d.dot(*second, high, x.wrapping_add(32).cast());
                        }
                    }
                }
            }
            for g in 0..2 {
                for p in 0..P {
                    let m = w[p].wrapping_add(Form::Nibbles.multiplier_place(tile * LANES, g)).cast();
                    for r in 0..R {
                        // SAFETY: the block has these multipliers.
                        total[r][p][tile] = unsafe { d.add_times(total[r][p][tile], acc[r][p][g], m) };
                    }
                }
            }
        }
    }
    for (r, total) in total.iter().enumerate() {
        for (p, total) in total.iter().enumerate() {
            // SAFETY: the sums of this panel and row.
            total.iter().enumerate().for_each(|(t, total)| unsafe { d.store(stream.acc(r, p, t).cast(), *total) });
        }
    }
}
