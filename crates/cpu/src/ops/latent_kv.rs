//! `latent_kv`: norm of latents, rotation, and the store into the cache of latents.
use super::rope_kv::{Head, KvCell, NO_SLOT, Place};
use crate::CpuBackend;
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{F8, Kernel, LANES, Simd};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::LatentKv;
use anyfleet_tensor::{DType, Live, Result};
use half::{bf16, f16};

pub(crate) struct LatentKvOp {
    q: View,
    cache: View,
    queries: View,
    kv: View,
    norm: View,
    table: View,
    positions: View,
    slots: View,
    eps: f32,
    interleaved: bool,
    /// Elements of a latent, of a token in the cache, and tokens per page.
    rank: usize,
    size: usize,
    page_size: usize,
    live: Live,
}

impl LatentKvOp {
    pub(crate) fn new(op: &LatentKv<'_, CpuBackend>) -> Result<Self> {
        const OP: &str = "latent_kv";
        let view = |tensor| View::new(OP, tensor);
        let this = LatentKvOp {
            q: view(op.q)?,
            cache: view(op.cache)?,
            queries: view(op.queries)?,
            kv: view(op.kv)?,
            norm: view(op.norm)?,
            table: view(op.rope.table)?,
            positions: view(op.positions)?,
            slots: view(op.slots)?,
            eps: op.eps,
            interleaved: op.rope.interleaved,
            rank: op.norm.len(),
            size: op.cache.dim(3),
            page_size: op.cache.dim(2),
            live: op.live,
        };
        for out in [&this.q, &this.cache] {
            [&this.queries, &this.kv].into_iter().try_for_each(|input| check_apart(OP, out, input))?;
        }
        check_apart(OP, &this.q, &this.cache)?;
        Ok(this)
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.q.rows());
        let heads = self.q.cols() / self.size;
        ctx.split(rows, 2 * (self.size + heads * (self.size - self.rank)), |range| {
            with_scratch([self.size.next_multiple_of(LANES)], |[head]| {
                for row in range {
                    match self.cache.dtype() {
                        DType::F32 => self.row::<f32>(ctx, row, head),
                        DType::BF16 => self.row::<bf16>(ctx, row, head),
                        DType::F8 => self.row::<F8>(ctx, row, head),
                        _ => self.row::<f16>(ctx, row, head),
                    }
                }
            });
        });
    }

    /// One token; `head` is scratch for what the cache keeps of it.
    fn row<C: KvCell>(&self, ctx: &Context, row: usize, head: &mut [f32]) {
        let (position, slot) = (self.positions.u32_at(row) as usize, self.slots.u32_at(row));
        let positions = self.table.rows();
        assert!(position < positions, "latent_kv: position {position} past the rope table's {positions} rows");
        let place = (slot != NO_SLOT).then(|| {
            let (page, offset) = (slot as usize / self.page_size, slot as usize % self.page_size);
            let pages = self.cache.rows();
            assert!(page < pages, "latent_kv: slot {slot} past the cache's {pages} pages");
            self.cache.row::<C>(page).wrapping_add(offset * self.size)
        });
        // SAFETY: inputs are apart from everything written here, and each task has its own rows of `q`.
        let (kv, queries, q, table) = unsafe {
            let (kv, queries) = (self.kv.slice::<f32>(row), self.queries.slice::<f32>(row));
            (kv, queries, self.q.slice_mut::<f32>(row), self.table.slice::<f32>(position))
        };
        ctx.kernels.run(Token { op: self, kv, queries, q, table, place, head });
    }
}

/// Everything of one token; its place in the cache has room for it.
struct Token<'a, C> {
    op: &'a LatentKvOp,
    kv: &'a [f32],
    queries: &'a [f32],
    q: &'a mut [f32],
    /// Cosines, then sines.
    table: &'a [f32],
    /// None for a token that is not kept. The slots of a step are distinct, so no other task writes there.
    place: Option<*mut C>,
    /// Scratch for a latent, or a key, in whole vectors.
    head: &'a mut [f32],
}

impl<C: KvCell> Kernel for Token<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let LatentKvOp { rank, size, interleaved, eps, ref norm, .. } = *self.op;
        let heads = (self.q.len() / size).max(1);
        let query = self.queries.len() / heads;
        for (x, out) in self.queries.chunks_exact(query).zip(self.q.chunks_exact_mut(size)) {
            let (x, out) = (&x[query - (size - rank)..], &mut out[rank..]);
            // SAFETY: as many elements are written as read.
            unsafe { Head::new(s, x, None).turn(s, self.table, interleaved, out.as_mut_ptr()) };
        }
        let Some(place) = self.place else { return };
        let (latent, key) = self.kv.split_at(rank);
        let at = |i: usize| Place { cells: place.wrapping_add(i), scale: std::ptr::null_mut() };
        // SAFETY: the norm's weight has as many elements as the latent, and the place room for both. Caches of latents have
        // cells without scales.
        unsafe {
            let latent = Head::new(s, latent, Some((norm.flat(), eps)));
            C::keep(s, &latent, &[], false, at(0), self.head);
            C::keep(s, &Head::new(s, key, None), self.table, interleaved, at(rank), self.head);
        }
    }
}
