//! Products with packed weights: bf16 by pairs of input features, bytes and nibbles by fours.
//!
//! A weight is a stream of panels of 32 output features; a panel is a list of blocks of 64 bytes an output
//! feature (nibbles: 32), each two tiles of sixteen features, as x86's matrix unit takes them: `[16][16
//! features][4 bytes]`. Input features past the last one are zero.
//!
//! **Pairs** (bf16): 32 input features a block. Activations are rounded to bf16. The products of even and
//! of odd features of a block are summed separately, each by fused multiply-adds in order from zero; the
//! two sums are added, and that to the output. So does the matrix unit (`TDPBF16PS`, Intel SDM vol. 2), and
//! every other kernel set does the same, so all have the same bits (short of sums below 1e-38, which the
//! unit takes for zero). Products of bf16 are exact in f32. Dot products of bf16 ([`chains`]) take two steps of a sum at
//! once.
//!
//! **Bytes** (q8): 64 input features a block, and after the last block 32 f32 scales. Sums are exact in i32.
//!
//! **Nibbles** (q4): 64 input features a block, the low halves of its bytes the first 32 of them, the high
//! halves the others; after its two tiles the block has the multipliers of both groups, `[2][32]` bytes, and
//! the panel 32 f32 scales as above. A row or two are multiplied with nibbles, more with the bytes that
//! nibbles and multipliers make, which are those of [`Form::Bytes`]: sums are exact in i32 either way.
//!
//! **Eights** (f8): blocks of pairs whose elements have a byte, `[16][16 features][2 bytes]` a tile, and after the last block
//! the scales, 32 f32 for each 128 input features. They are not multiplied: [`eights`] makes pairs of them, in registers for
//! a row or two, of a stretch that stays in the first-level cache for a few rows, and of whole panels for many.
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod chains;
pub(crate) mod eights;
pub(crate) mod ints;
pub(crate) mod pack;
mod pairs;
pub(crate) mod stream;

use crate::simd::{Isa, KernelSet, LANES, Simd};
use anyfleet_tensor::{DType, WeightFormat, quant};

/// Output features of a panel.
pub(crate) const PANEL: usize = 2 * LANES;
/// Bytes of one row of activations in a block: 32 bf16 or 64 bytes.
pub(crate) const ROW: usize = 64;

/// Streams a thread reads from memory at a time.
pub(crate) const STREAMS: usize = 4;

/// What a panel's blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Pairs,
    Bytes,
    Nibbles,
    Eights,
}

impl Form {
    /// Nothing for formats that are not kept in such panels.
    pub(crate) fn of(format: WeightFormat) -> Option<Form> {
        match format {
            WeightFormat::Float(DType::BF16) => Some(Form::Pairs),
            WeightFormat::Q8 => Some(Form::Bytes),
            WeightFormat::Q4 => Some(Form::Nibbles),
            WeightFormat::F8 => Some(Form::Eights),
            _ => None,
        }
    }

    /// The form that rows of activations take which meet it.
    pub(crate) const fn rows(self) -> Form {
        match self {
            Form::Eights => Form::Pairs,
            form => form,
        }
    }

    /// Input features of a block.
    pub(crate) const fn features(self) -> usize {
        match self {
            Form::Pairs | Form::Eights => 32,
            Form::Bytes | Form::Nibbles => 64,
        }
    }

    /// Bytes of a tile of a block.
    pub(crate) const fn tile_bytes(self) -> usize {
        match self {
            Form::Pairs | Form::Bytes => LANES * ROW,
            Form::Nibbles | Form::Eights => LANES * ROW / 2,
        }
    }

    /// Bytes of a block: two tiles, and the multipliers of nibbles.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            Form::Pairs | Form::Bytes | Form::Eights => 2 * self.tile_bytes(),
            Form::Nibbles => 2 * self.tile_bytes() + 2 * PANEL,
        }
    }

    /// Blocks of `cols` input features.
    pub(crate) const fn blocks(self, cols: usize) -> usize {
        cols.div_ceil(self.features())
    }

    /// Bytes after the last block of a panel of `cols` input features.
    pub(crate) const fn tail_bytes(self, cols: usize) -> usize {
        match self {
            Form::Bytes | Form::Nibbles => PANEL * 4,
            Form::Eights => cols.div_ceil(quant::F8_GROUP) * PANEL * 4,
            Form::Pairs => 0,
        }
    }

    /// Where input feature `k` of output feature `n` stands in a panel: the byte, and for nibbles whether it
    /// is the high half.
    pub(crate) const fn place(self, n: usize, k: usize) -> (usize, bool) {
        let (block, k) = (k / self.features() * self.block_bytes(), k % self.features());
        let tile = block + n / LANES * self.tile_bytes();
        let n = n % LANES;
        match self {
            Form::Pairs => (tile + k / 2 * ROW + n * 4 + k % 2 * 2, false),
            Form::Bytes => (tile + k / 4 * ROW + n * 4 + k % 4, false),
            Form::Eights => (tile + k / 2 * (ROW / 2) + n * 2 + k % 2, false),
            Form::Nibbles => (tile + k % quant::GROUP / 4 * ROW + n * 4 + k % 4, k >= quant::GROUP),
        }
    }

    /// Where nibbles keep the multiplier of output feature `n` and group `group`.
    pub(crate) const fn multiplier_place(self, n: usize, group: usize) -> usize {
        group / 2 * self.block_bytes() + 2 * self.tile_bytes() + group % 2 * PANEL + n
    }
}

/// Rows of activations, packed, times some blocks of one panel.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only the matrix unit asks for all of it"))]
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// [`Form::Pairs`] or [`Form::Bytes`].
    pub(crate) form: Form,
    /// Packed rows from the product's first block on: groups of [`group_rows`] rows, in a group
    /// `[blocks][rows of a group][ROW bytes]`; pairs as [`pack::Cells`] says.
    pub(crate) x: *const u8,
    /// Bytes from one group of rows to the next.
    pub(crate) group_bytes: usize,
    /// Rows.
    pub(crate) rows: usize,
    /// Bytes: sums of the activations of 32 input features, from the first block on; two a block.
    pub(crate) sums: *const i32,
    /// From one row's sums to the next.
    pub(crate) sums_stride: usize,
    /// The panel, from the product's first block on.
    pub(crate) w: *const u8,
    /// Its lines are as [`regroup`] leaves them.
    pub(crate) regrouped: bool,
    pub(crate) meanwhile: Meanwhile,
    /// How many blocks.
    pub(crate) blocks: usize,
    /// `[rows][32]`, rows `acc_stride` elements apart: f32, for bytes i32. There are rows up to a multiple
    /// of [`group_rows`].
    pub(crate) acc: *mut f32,
    pub(crate) acc_stride: usize,
    /// Continue the sums in `acc` instead of starting at zero.
    pub(crate) resume: bool,
}

/// What a product asks for while it works.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only the matrix unit asks for all of it"))]
#[derive(Clone, Copy)]
pub(crate) enum Meanwhile {
    /// Everything is at hand.
    Nothing,
    /// The panel is read once: with line `l` of a block a line of stream `l % STREAMS` of what comes later.
    /// Memory serves several streams faster than one.
    Ask([*const u8; STREAMS]),
    /// The panel is read many times, by the matrix unit: with each block a row of the lines that are written to
    /// in the end, `stride` bytes apart, and, for the second-level cache, 256 bytes of later weights.
    Claim { out: *mut u8, stride: usize, later: *const u8 },
}

impl Product {
    /// What vectors ask for while working on line `line` of block `block`.
    #[inline(always)]
    fn ask<S: Simd>(&self, s: S, block: usize, line: usize) {
        if let Some(ahead) = self.asked(block, line) {
            s.prefetch(ahead);
        }
    }

    #[inline(always)]
    fn asked(&self, block: usize, line: usize) -> Option<*const u8> {
        let Meanwhile::Ask(ahead) = self.meanwhile else { return None };
        let start = block * (self.form.block_bytes() / STREAMS);
        Some(ahead[line % STREAMS].wrapping_add(start + line / STREAMS * 64))
    }
}

/// Rows that are packed together.
pub(crate) fn group_rows(kernels: KernelSet) -> usize {
    match kernels.isa() {
        Isa::Amx => 16,
        _ => pairs::group_rows(kernels),
    }
}

/// Whether many rows are multiplied with [`regroup`]ed panels of this form.
pub(crate) fn regroups(kernels: KernelSet, form: Form) -> bool {
    form == Form::Pairs && kernels.isa() == Isa::Avx512Bf16
}

/// Brings whole panels of pairs into the order that chains of dot products take, so that not every group of rows has to.
/// Only where [`regroups`] says so.
///
/// # Safety
/// `bytes` bytes are readable at `from` and writable at `to`, whole blocks of them.
pub(crate) unsafe fn regroup(kernels: KernelSet, from: *const u8, bytes: usize, to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    if let Some(chains) = kernels.chains() {
        // SAFETY: the caller's promise; the set was seen to be there.
        return unsafe { chains::regroup(chains, from, bytes, to) };
    }
    let _ = (from, bytes, to);
    unreachable!("{:?} multiplies panels as they are", kernels.isa());
}

/// Computes products one after the other.
///
/// # Safety
/// The pointers are valid for the shapes given at [`Product`]'s fields, and nothing else accesses
/// `acc` meanwhile.
pub(crate) unsafe fn multiply(kernels: KernelSet, products: impl Iterator<Item = Product>) {
    #[cfg(target_arch = "x86_64")]
    if kernels.isa() == Isa::Amx {
        // SAFETY: the caller's promise; the set was seen to be there.
        return unsafe { amx::multiply(products) };
    }
    for product in products {
        #[cfg(target_arch = "x86_64")]
        if let (Form::Pairs, Some(chains)) = (product.form, kernels.chains()) {
            // SAFETY: the caller's promise.
            unsafe { chains::multiply(chains, &product) };
            continue;
        }
        match product.form {
            // SAFETY: the caller's promise.
            Form::Pairs => unsafe { pairs::multiply(kernels, &product) },
            _ => ints::multiply(kernels, &product),
        }
    }
}

/// The matrix unit of this thread, ready for products of four times sixteen rows with sixteen.
pub(crate) struct Squares {
    #[cfg(target_arch = "x86_64")]
    tiles: amx::Squares,
    #[cfg(not(target_arch = "x86_64"))]
    never: std::convert::Infallible,
}

impl Squares {
    /// Nothing where there is none.
    ///
    /// # Safety
    /// Until it is dropped, this thread computes no [`multiply`] and makes no other.
    pub(crate) unsafe fn new(kernels: KernelSet) -> Option<Squares> {
        match kernels.isa() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set was seen to be there; the caller's promise.
            Isa::Amx => Some(Squares { tiles: unsafe { amx::Squares::new() } }),
            _ => None,
        }
    }

    /// `out[row][other]`, the sums of [`Form::Pairs`]: rows of `blocks` blocks of bf16 where they are, each sixteen
    /// from their first one on `stride` bytes apart, times others `[blocks][pair][other]`.
    ///
    /// # Safety
    /// Rows and others are readable, `4 * 256` sums writable.
    #[inline(always)]
    pub(crate) unsafe fn multiply(
        &self,
        rows: [*const u8; 4],
        stride: usize,
        others: *const u8,
        blocks: usize,
        out: *mut f32,
    ) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise.
        unsafe {
            self.tiles.multiply(rows, stride, others, blocks, out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (rows, stride, others, blocks, out);
            match self.never {}
        }
    }
}
