//! Blocks of f8 as the pairs of bf16 that they read as: what is multiplied is never anything else, so products have bf16's
//! bits by construction.
use super::{Form, PANEL};
use crate::simd::{Kernel, LANES, Simd};
use anyfleet_tensor::quant;

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

impl Kernel for Widen {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (from, to) = (Form::Eights, Form::Pairs);
        for first in (0..self.blocks).step_by(GROUP) {
            for tile in 0..2 {
                // SAFETY: a group has a scale for each feature of a tile.
                let scale = unsafe { s.load(self.scales.add(first / GROUP * PANEL + tile * LANES)) };
                // Numbers are loaded times 2^-8.
                let scale = s.mul(scale, s.splat(256.0));
                for block in first..self.blocks.min(first + GROUP) {
                    let place = block * from.block_bytes() + tile * from.tile_bytes();
                    let out = self.out.wrapping_add(block * to.block_bytes() + tile * to.tile_bytes());
                    for pair in 0..LANES {
                        let line = place + pair * 2 * LANES;
                        if pair % 2 == 0 {
                            s.prefetch(self.ahead.wrapping_add(line));
                        }
                        // SAFETY: the blocks have these sixteen pairs, here of bytes and there of bf16.
                        unsafe {
                            let (even, odd) = s.load_pairs_f8(self.w.add(line));
                            let pairs = s.join_pairs(s.mul(even, scale), s.mul(odd, scale));
                            s.store(out.add(pair * 4 * LANES).cast(), pairs);
                        }
                    }
                }
            }
        }
    }
}
