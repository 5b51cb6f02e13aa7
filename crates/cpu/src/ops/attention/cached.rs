//! Keys and values where they are cached: found once for a chunk, and asked for before they are read.
use super::{AttentionOp, CHUNK, Task};
use crate::plan::Context;
use crate::simd::{Kernel, LANES, Simd};
use std::ops::Range;

/// Where the caches keep the tokens of a chunk.
pub(super) struct Cached<C> {
    /// Keys and values.
    cells: [*const C; 2],
    /// Of bytes; null for other cells.
    scales: [*const f32; 2],
    size: usize,
    /// Their place in both caches, in heads; or [`NOT_NEEDED`].
    tokens: [usize; CHUNK],
    pub(super) needed: Range<usize>,
}

const NOT_NEEDED: usize = usize::MAX;

impl<C> Cached<C> {
    #[inline(always)]
    pub(super) fn key(&self, i: usize) -> CachedRow<C> {
        self.row(i, 0)
    }

    #[inline(always)]
    pub(super) fn value(&self, i: usize) -> CachedRow<C> {
        self.row(i, 1)
    }

    #[inline(always)]
    fn row(&self, i: usize, cache: usize) -> CachedRow<C> {
        match self.tokens[i] {
            NOT_NEEDED => CachedRow { cells: std::ptr::null(), scale: std::ptr::null() },
            token => CachedRow {
                cells: self.cells[cache].wrapping_add(token * self.size),
                scale: self.scales[cache].wrapping_add(token),
            },
        }
    }

    /// Asks for part `part` of `parts` of sixteen tokens' keys (0) or values (1).
    #[inline(always)]
    pub(super) fn ask<S: Simd>(&self, s: S, tile: usize, cache: usize, part: usize, parts: usize) {
        let tokens = &self.tokens[tile * LANES..][..LANES];
        let (bytes, first) = (self.size * size_of::<C>(), self.row(tile * LANES, cache));
        if first.is_needed() && tokens[LANES - 1] == tokens[0] + LANES - 1 {
            // One after the other in a page.
            let (start, end) = (LANES * bytes * part / parts, LANES * bytes * (part + 1) / parts);
            let cells = first.cells.cast::<u8>();
            (start / 64 * 64..end).step_by(64).for_each(|at| s.prefetch(cells.wrapping_add(at)));
        } else {
            for i in tile * LANES..(tile + 1) * LANES {
                let row = self.row(i, cache);
                if row.is_needed() {
                    let (start, end) = (bytes * part / parts, bytes * (part + 1) / parts);
                    let cells = row.cells.cast::<u8>();
                    (start..end).step_by(64).for_each(|at| s.prefetch(cells.wrapping_add(at)));
                }
            }
        }
        if !self.scales[cache].is_null() && part == 0 && first.is_needed() {
            s.prefetch(first.scale.cast());
        }
    }
}

/// Where the cache keeps one head of one token.
#[derive(Clone, Copy)]
pub(super) struct CachedRow<C> {
    /// Null where it is not needed.
    pub(super) cells: *const C,
    /// Of bytes; without meaning for other cells.
    pub(super) scale: *const f32,
}

impl<C> CachedRow<C> {
    #[inline(always)]
    pub(super) fn is_needed(&self) -> bool {
        !self.cells.is_null()
    }
}

impl AttentionOp {
    /// Where the caches keep the `needed` tokens of the chunk at `start`.
    pub(super) fn cached<C: Copy>(&self, task: &Task, start: usize, needed: Range<usize>) -> Cached<C> {
        let scales = self.scales.as_ref().map(|scales| scales.each_ref().map(|view| view.row::<f32>(0).cast_const()));
        let mut cached = Cached {
            cells: [&self.k_cache, &self.v_cache].map(|view| view.row::<C>(0).cast_const()),
            scales: scales.unwrap_or([std::ptr::null(); 2]),
            size: self.size,
            tokens: [NOT_NEEDED; CHUNK],
            needed: needed.clone(),
        };
        let mut i = needed.start;
        while i < needed.end {
            let (page, offset) = self.locate(task, start + i);
            let run = (self.page_size - offset).min(needed.end - i);
            // Head, and offset + j, are below the page's dimensions.
            let head = task.group * self.kv_heads / self.groups;
            let first = (page * self.kv_heads + head) * self.page_size + offset;
            cached.tokens[i..i + run].iter_mut().enumerate().for_each(|(j, token)| *token = first + j);
            i += run;
        }
        cached
    }

    /// The page that holds the token at `position`, and the token's offset in it.
    fn locate(&self, task: &Task, position: usize) -> (usize, usize) {
        let (index, offset) = (position / self.page_size, position % self.page_size);
        let first = task.seq.first_page as usize;
        assert!(index >= first, "attention: position {position} lies before the sequence's first page {first}");
        let page = self.table.u32_at(task.seq.table_start as usize + index - first) as usize;
        let pages = self.k_cache.rows();
        assert!(page < pages, "attention: page {page} of {pages}");
        (page, offset)
    }

    /// Asks for the cache lines of a chunk.
    pub(super) fn ask<C: Copy>(&self, ctx: &Context, rows: &Cached<C>) {
        ctx.kernels.run(Prefetch { rows });
    }
}

/// Asks for a chunk's cache lines.
struct Prefetch<'a, C> {
    rows: &'a Cached<C>,
}

impl<C> Kernel for Prefetch<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for tile in 0..CHUNK / LANES {
            self.rows.ask(s, tile, 0, 0, 1);
            self.rows.ask(s, tile, 1, 0, 1);
        }
    }
}
