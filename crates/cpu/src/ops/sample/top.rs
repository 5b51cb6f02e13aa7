//! The highest logits of a row.
use super::blocks::{BLOCK, Block, load};
use crate::simd::{Kernel, LANES, Simd};
use anyfleet_tensor::TOP_LOGPROBS;
use anyfleet_tensor::sampling::clean;

/// Finds the highest cleaned logits with their ids, the lower id first among equals; past the end of a
/// short row, minus infinity and no id.
pub(super) struct Top<'a> {
    pub(super) logits: &'a [f32],
    pub(super) blocks: &'a [Block],
    /// As many as are looked for are not below it.
    pub(super) bar: f32,
}

impl Kernel for Top<'_> {
    type Output = [(f32, u32); TOP_LOGPROBS];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let bar = s.splat(self.bar);
        let mut top = [(f32::NEG_INFINITY, u32::MAX); TOP_LOGPROBS];
        let (mut known, mut lanes) = (0, [0.0; LANES]);
        for (block, logits) in self.logits.chunks(BLOCK).enumerate() {
            // Later ids lose among equals, so only a higher logit can enter a full list.
            let max = self.blocks[block].max;
            if max < self.bar || (known == TOP_LOGPROBS && max <= top[TOP_LOGPROBS - 1].0) {
                continue;
            }
            for (i, logits) in logits.chunks(LANES).enumerate() {
                let v = load(s, logits);
                let mut hits = match known {
                    TOP_LOGPROBS => s.gt_mask(v, s.splat(top[TOP_LOGPROBS - 1].0)),
                    _ => !s.gt_mask(bar, v) & ((1 << logits.len()) - 1),
                };
                if hits == 0 {
                    continue;
                }
                // SAFETY: the array has sixteen elements.
                unsafe { s.store(lanes.as_mut_ptr(), v) };
                while hits != 0 {
                    let lane = hits.trailing_zeros() as usize;
                    hits &= hits - 1;
                    let id = block * BLOCK + i * LANES + lane;
                    insert(&mut top, &mut known, clean(lanes[lane]), id as u32);
                }
            }
        }
        top
    }
}

/// Puts a logit in its place in a list of which `known` are there, if it has one.
fn insert(top: &mut [(f32, u32); TOP_LOGPROBS], known: &mut usize, logit: f32, id: u32) {
    if *known == TOP_LOGPROBS && logit <= top[TOP_LOGPROBS - 1].0 {
        return;
    }
    *known = (*known + 1).min(TOP_LOGPROBS);
    let mut at = *known - 1;
    while at > 0 && top[at - 1].0 < logit {
        top[at] = top[at - 1];
        at -= 1;
    }
    top[at] = (logit, id);
}
