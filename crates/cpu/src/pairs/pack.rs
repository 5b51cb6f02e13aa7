//! Activations in the order the products read: groups of rows, a block of 32 features at a time.
use super::{BLOCK, group_rows};
use crate::buffer::Allocation;
use crate::plan::Context;
use crate::simd::{Isa, Kernel, KernelSet, LANES, Simd, load_up_to};
use crate::view::View;
use half::bf16;
use std::ops::Range;

/// Packed rows of one operation; the memory is kept from step to step.
#[derive(Default)]
pub(crate) struct Rows {
    memory: Option<Allocation>,
}

/// What is in it.
#[derive(Clone, Copy)]
pub(crate) struct Packed {
    base: *const u8,
    /// Bytes of a group of rows: `[blocks][rows of a group][32]`, bf16 for the matrix unit and the same
    /// values as f32 for the others.
    pub(crate) group_bytes: usize,
    /// Bytes of one block of a group.
    block_bytes: usize,
}

// SAFETY: tasks only read what it points to.
unsafe impl Send for Packed {}
// SAFETY: as above.
unsafe impl Sync for Packed {}

impl Packed {
    /// The group of row `row`, which is its first, from `block` on.
    pub(crate) fn at(&self, kernels: KernelSet, row: usize, block: usize) -> *const u8 {
        self.base.wrapping_add(row / group_rows(kernels) * self.group_bytes + block * self.block_bytes)
    }
}

impl Rows {
    /// Rounds and packs rows of `x`; rows that fill up the last group are zero.
    ///
    /// # Panics
    /// When memory is exhausted.
    pub(crate) fn pack(&mut self, ctx: &Context, x: &View, rows: Range<usize>) -> Packed {
        let (group, blocks) = (group_rows(ctx.kernels), x.cols().div_ceil(BLOCK));
        let size = if ctx.kernels.isa() == Isa::Amx { size_of::<bf16>() } else { size_of::<f32>() };
        let block_bytes = group * BLOCK * size;
        let group_bytes = blocks * block_bytes;
        let groups = rows.len().div_ceil(group);
        let bytes = groups * group_bytes;
        if self.memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            self.memory = None;
            self.memory = Some(Allocation::new(bytes, "packed activations").unwrap_or_else(|e| panic!("{e}")));
        }
        let base = self.memory.as_ref().map_or(std::ptr::null_mut(), Allocation::as_ptr);
        let packed = Packed { base, group_bytes, block_bytes };
        ctx.split(groups, group * x.cols(), |range| {
            for g in range {
                for lane in 0..group {
                    let row = rows.start + g * group + lane;
                    let source = (row < rows.end).then(|| x.row::<f32>(row).cast_const());
                    let target = packed.at(ctx.kernels, g * group, 0).cast_mut().wrapping_add(lane * BLOCK * size);
                    let pack = PackRow { source, k: x.cols(), target, step: block_bytes };
                    match ctx.kernels.isa() {
                        // SAFETY: the row has k elements, and its places in the group belong to this task.
                        #[cfg(target_arch = "x86_64")]
                        Isa::Amx => unsafe { super::amx::pack_row(&pack) },
                        _ => ctx.kernels.run(pack),
                    }
                }
            }
        });
        packed
    }
}

/// One row's way into its group.
pub(crate) struct PackRow {
    /// Nothing for a row of zeros.
    pub(crate) source: Option<*const f32>,
    /// Elements.
    pub(crate) k: usize,
    /// Its place in the first block.
    pub(crate) target: *mut u8,
    /// Bytes from one block to the next.
    pub(crate) step: usize,
}

impl Kernel for PackRow {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, start) in (0..self.k).step_by(LANES).enumerate() {
            let target = self.target.wrapping_add(i / 2 * self.step).cast::<f32>().wrapping_add(i % 2 * LANES);
            // SAFETY: up to k elements are readable, and a block has two places for sixteen.
            unsafe {
                let v = self.source.map_or(s.splat(0.0), |x| load_up_to(s, x.add(start), self.k - start));
                s.store(target, s.round_bf16(v));
            }
        }
        if self.k.div_ceil(LANES) % 2 == 1 {
            let target = self.target.wrapping_add(self.k / BLOCK * self.step).cast::<f32>().wrapping_add(LANES);
            // SAFETY: the second half of the last block.
            unsafe { s.store(target, s.splat(0.0)) };
        }
    }
}
