//! `rope_kv`: per-head norm, rotation, and the store into the KV cache.
use crate::CpuBackend;
use crate::ops::norm;
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, F8, Kernel, LANES, Simd, load_up_to, store_up_to};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::RopeKv;
use anyfleet_tensor::{DType, Live, Result, f8, quant};
use half::{bf16, f16};

pub(crate) struct RopeKvOp {
    q: View,
    k_cache: View,
    v_cache: View,
    /// Of keys and of values, where the caches are bytes.
    scales: Option<[View; 2]>,
    qkv: View,
    positions: View,
    slots: View,
    rope: Option<RopeView>,
    norm: Option<NormView>,
    /// Query heads, key/value heads, head size, tokens per page.
    heads: usize,
    groups: usize,
    size: usize,
    page_size: usize,
    live: Live,
}

struct RopeView {
    table: View,
    interleaved: bool,
}

struct NormView {
    q: View,
    k: View,
    eps: f32,
}

/// A slot that stores nothing.
pub(super) const NO_SLOT: u32 = u32::MAX;

impl RopeKvOp {
    pub(crate) fn new(op: &RopeKv<'_, CpuBackend>) -> Result<Self> {
        const OP: &str = "rope_kv";
        let view = |tensor| View::new(OP, tensor);
        let rope = match &op.rope {
            Some(rope) => Some(RopeView { table: view(rope.table)?, interleaved: rope.interleaved }),
            None => None,
        };
        let norm = match &op.qk_norm {
            Some(norm) => Some(NormView { q: view(norm.q)?, k: view(norm.k)?, eps: norm.eps }),
            None => None,
        };
        let scales = match &op.scales {
            Some(scales) => Some([view(scales.k)?, view(scales.v)?]),
            None => None,
        };
        let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
        let this = RopeKvOp {
            q: view(op.q)?,
            k_cache: view(op.k_cache)?,
            v_cache: view(op.v_cache)?,
            scales,
            qkv: view(op.qkv)?,
            positions: view(op.positions)?,
            slots: view(op.slots)?,
            rope,
            norm,
            heads: op.q.cols() / size,
            groups,
            size,
            page_size,
            live: op.live,
        };
        let stores: Vec<&View> =
            [&this.k_cache, &this.v_cache].into_iter().chain(this.scales.iter().flatten()).collect();
        for (i, out) in stores.iter().enumerate() {
            check_apart(OP, out, &this.qkv)?;
            stores[..i].iter().try_for_each(|other| check_apart(OP, out, other))?;
        }
        check_apart(OP, &this.q, &this.qkv)?;
        Ok(this)
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.q.rows());
        ctx.split(rows, 2 * self.qkv.cols(), |range| {
            with_scratch([self.size.next_multiple_of(LANES)], |[head]| {
                for row in range {
                    match self.k_cache.dtype() {
                        DType::F32 => self.row::<f32>(ctx, row, head),
                        DType::BF16 => self.row::<bf16>(ctx, row, head),
                        DType::I8 => self.row::<i8>(ctx, row, head),
                        DType::F8 => self.row::<F8>(ctx, row, head),
                        _ => self.row::<f16>(ctx, row, head),
                    }
                }
            });
        });
    }

    /// One token; `head` is scratch for a head.
    fn row<C: KvCell>(&self, ctx: &Context, row: usize, head: &mut [f32]) {
        let position = self.positions.u32_at(row) as usize;
        let table = self.rope.as_ref().map_or(&[] as &[f32], |rope| {
            let rows = rope.table.rows();
            assert!(position < rows, "rope_kv: position {position} past the rope table's {rows} rows");
            // SAFETY: nothing writes the table.
            unsafe { rope.table.slice::<f32>(position) }
        });
        let slot = self.slots.u32_at(row);
        let caches = (slot != NO_SLOT).then(|| [0, 1].map(|cache| self.place::<C>(cache, slot)));
        // SAFETY: `qkv` is apart from everything written here, and each task has its own rows of `q`.
        let (qkv, q) = unsafe { (self.qkv.slice::<f32>(row), self.q.slice_mut::<f32>(row)) };
        ctx.kernels.run(Token { op: self, qkv, q, table, caches, head });
    }

    /// Where the first head of a slot goes in the cache of keys (0) or values (1); the others follow a page's
    /// tokens apart. The slots of a step are distinct, so no other task writes there.
    fn place<C>(&self, cache: usize, slot: u32) -> Place<C> {
        let cells = [&self.k_cache, &self.v_cache][cache];
        let (page, offset) = (slot as usize / self.page_size, slot as usize % self.page_size);
        assert!(page < cells.rows(), "rope_kv: slot {slot} past the cache's {} pages", cells.rows());
        let scale = self.scales.as_ref().map_or(std::ptr::null_mut(), |scales| scales[cache].row::<f32>(page));
        Place { cells: cells.row::<C>(page).wrapping_add(offset * self.size), scale: scale.wrapping_add(offset) }
    }
}

/// Where a cache keeps one head of one token.
pub(super) struct Place<C> {
    pub(super) cells: *mut C,
    /// Of bytes; without meaning for other cells.
    pub(super) scale: *mut f32,
}

/// Everything of one token. Both places in the caches have room for all groups.
struct Token<'a, C> {
    op: &'a RopeKvOp,
    qkv: &'a [f32],
    q: &'a mut [f32],
    /// Cosines, then sines; empty for no rotation.
    table: &'a [f32],
    /// Of the first head in the caches of keys and of values; none for a token that is not kept.
    caches: Option<[Place<C>; 2]>,
    /// Scratch for a head in whole vectors.
    head: &'a mut [f32],
}

impl<C: KvCell> Kernel for Token<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let op = self.op;
        let (q, kv) = self.qkv.split_at(op.heads * op.size);
        let (k, v) = kv.split_at(op.groups * op.size);
        let norm = |weight: fn(&NormView) -> &View| op.norm.as_ref().map(|n| (weight(n).flat(), n.eps));
        let interleaved = op.rope.as_ref().is_some_and(|rope| rope.interleaved);
        let [q_norm, k_norm] = [norm(|n| &n.q), norm(|n| &n.k)];
        for (x, out) in q.chunks_exact(op.size).zip(self.q.chunks_exact_mut(op.size)) {
            // SAFETY: as many elements are written as read, and a norm's weight has as many.
            unsafe { Head::new(s, x, q_norm).turn(s, self.table, interleaved, out.as_mut_ptr()) };
        }
        let Some([k_cache, v_cache]) = self.caches else { return };
        let heads = k.chunks_exact(op.size).zip(v.chunks_exact(op.size));
        for (group, (k, v)) in heads.enumerate() {
            // SAFETY: as above; the group is one of a page's.
            unsafe {
                let (k_place, v_place) = (k_cache.of_group(op, group), v_cache.of_group(op, group));
                C::keep(s, &Head::new(s, k, k_norm), self.table, interleaved, k_place, self.head);
                C::keep(s, &Head::new(s, v, None), &[], false, v_place, self.head);
            }
        }
    }
}

impl<C> Place<C> {
    /// The place of head `group` where this is that of the first one.
    #[inline(always)]
    fn of_group(&self, op: &RopeKvOp, group: usize) -> Place<C> {
        let tokens = group * op.page_size;
        Place { cells: self.cells.wrapping_add(tokens * op.size), scale: self.scale.wrapping_add(tokens) }
    }
}

/// What a cache keeps.
pub(super) trait KvCell: bytemuck::Pod {
    /// Rotates a head and stores it; `scratch` has room for it in whole vectors.
    ///
    /// # Safety
    /// `place` has room for the head, and for its scale where the cells have one.
    unsafe fn keep<S: Simd>(
        s: S,
        head: &Head<'_, S::V>,
        table: &[f32],
        interleaved: bool,
        place: Place<Self>,
        scratch: &mut [f32],
    );
}

impl<C: Cell> KvCell for C {
    #[inline(always)]
    unsafe fn keep<S: Simd>(
        s: S,
        head: &Head<'_, S::V>,
        table: &[f32],
        interleaved: bool,
        place: Place<C>,
        _scratch: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        unsafe { head.turn(s, table, interleaved, place.cells) };
    }
}

impl KvCell for i8 {
    #[inline(always)]
    unsafe fn keep<S: Simd>(
        s: S,
        head: &Head<'_, S::V>,
        table: &[f32],
        interleaved: bool,
        place: Place<i8>,
        scratch: &mut [f32],
    ) {
        let len = head.x.len();
        scratch[len..].fill(0.0);
        // SAFETY: the scratch has room for the head; the place as the caller promises.
        unsafe {
            head.turn(s, table, interleaved, scratch.as_mut_ptr());
            *place.scale = kv_head(s, scratch, len, place.cells);
        }
    }
}

impl KvCell for F8 {
    #[inline(always)]
    unsafe fn keep<S: Simd>(
        s: S,
        head: &Head<'_, S::V>,
        table: &[f32],
        interleaved: bool,
        place: Place<F8>,
        scratch: &mut [f32],
    ) {
        // SAFETY: the scratch has room for the head.
        unsafe { head.turn(s, table, interleaved, scratch.as_mut_ptr()) };
        for (i, &x) in scratch[..head.x.len()].iter().enumerate() {
            // SAFETY: the place has room for the head.
            unsafe { place.cells.add(i).write(F8(f8::encode(x))) };
        }
    }
}

/// [`quant::kv_head`] of the first `len` elements of `x`, whole vectors with zeros at the end.
///
/// # Safety
/// There is room for `len` bytes.
#[inline(always)]
unsafe fn kv_head<S: Simd>(s: S, x: &[f32], len: usize, bytes: *mut i8) -> f32 {
    let (mut most, mut odd) = (s.splat(0.0), s.splat(0.0));
    for x in x.chunks_exact(LANES) {
        // SAFETY: sixteen elements.
        let v = unsafe { s.load(x.as_ptr()) };
        most = s.max(s.max(v, s.sub(s.splat(0.0), v)), most);
        // A number less itself is zero, and NaN if it is not finite.
        odd = s.add(odd, s.sub(v, v));
    }
    let finite = s.reduce_add(odd) == 0.0;
    let scale = if finite { s.reduce_max(most) / quant::BYTE } else { f32::NAN };
    let inverse = quant::inverse(scale);
    let (factor, round) = (s.splat(inverse), s.splat(quant::ROUND));
    for (i, x) in x.chunks_exact(LANES).enumerate() {
        let mut whole = s.splat(0.0);
        if inverse != 0.0 {
            // SAFETY: sixteen elements. Magnitudes are at most some roundings above 127, so none is 128.
            whole = s.sub(s.add(s.mul(unsafe { s.load(x.as_ptr()) }, factor), round), round);
        }
        // SAFETY: so many bytes are left.
        unsafe {
            match len - i * LANES {
                n @ 0..LANES => {
                    let mut last = [0; LANES];
                    s.store_i8(last.as_mut_ptr(), whole);
                    bytes.add(i * LANES).copy_from_nonoverlapping(last.as_ptr(), n);
                }
                _ => s.store_i8(bytes.add(i * LANES), whole),
            }
        }
    }
    if inverse == 0.0 && finite { 0.0 } else { scale }
}

/// A head before its rotation: normalised as it is read.
pub(super) struct Head<'a, V> {
    x: &'a [f32],
    /// Weight and scale.
    norm: Option<(*const f32, V)>,
}

impl<'a, V: Copy> Head<'a, V> {
    /// # Safety
    /// A norm's weight has as many elements as `x`.
    #[inline(always)]
    pub(super) unsafe fn new<S: Simd<V = V>>(s: S, x: &'a [f32], norm: Option<(*const f32, f32)>) -> Self {
        #[expect(clippy::manual_map, reason = "a closure might not be compiled with the instruction set")]
        let norm = match norm {
            // SAFETY: the elements of `x`.
            Some((weight, eps)) => Some((weight, s.splat(unsafe { norm::scale(s, x.as_ptr(), x.len(), eps) }))),
            None => None,
        };
        Head { x, norm }
    }

    /// Element `i` and up to fifteen that follow, `n` in all; zeros for the rest.
    ///
    /// # Safety
    /// So many are there.
    #[inline(always)]
    unsafe fn at<S: Simd<V = V>>(&self, s: S, i: usize, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let x = load_up_to(s, self.x.as_ptr().add(i), n);
            match self.norm {
                Some((weight, scale)) => s.mul(s.mul(x, scale), load_up_to(s, weight.add(i), n)),
                None => x,
            }
        }
    }

    /// Writes the head, its first elements rotated by as many cosines and sines as half of them are.
    ///
    /// # Safety
    /// `out` has room for the head.
    #[inline(always)]
    pub(super) unsafe fn turn<S: Simd<V = V>, C: Cell>(&self, s: S, table: &[f32], interleaved: bool, out: *mut C) {
        let (half, len) = (table.len() / 2, self.x.len());
        assert!(2 * half <= len);
        let table = table.as_ptr();
        // Whole vectors are told apart from the rest here, so that neither tests for the other.
        let mut i = 0;
        while i < half {
            let n = (half - i).min(LANES);
            // SAFETY: `i + n <= half`, twice which the head and the table have; sixteen lanes are whole.
            unsafe {
                match (interleaved, n) {
                    (false, LANES) => self.halves(s, table, half, i, LANES, out),
                    (false, _) => self.halves(s, table, half, i, n, out),
                    (true, LANES) => self.neighbours(s, table, half, i, LANES, out),
                    (true, _) => self.neighbours(s, table, half, i, n, out),
                }
            }
            i += LANES;
        }
        let mut i = 2 * half;
        while i < len {
            // SAFETY: so many are left.
            unsafe {
                match len - i {
                    n @ 0..LANES => store_up_to(s, out.add(i), self.at(s, i, n), n),
                    _ => C::store(s, out.add(i), self.at(s, i, LANES)),
                }
            }
            i += LANES;
        }
    }

    /// Rotates `n` pairs from pair `i` on, of elements half the rotated part apart.
    ///
    /// # Safety
    /// They are there, and in `table` and `out` as well.
    #[inline(always)]
    unsafe fn halves<S, C>(&self, s: S, table: *const f32, half: usize, i: usize, n: usize, out: *mut C)
    where
        S: Simd<V = V>,
        C: Cell,
    {
        // SAFETY: the caller's promise.
        unsafe {
            let turn = (load_up_to(s, table.add(i), n), load_up_to(s, table.add(half + i), n));
            let (a, b) = rotated(s, (self.at(s, i, n), self.at(s, half + i, n)), turn);
            store_up_to(s, out.add(i), a, n);
            store_up_to(s, out.add(half + i), b, n);
        }
    }

    /// Rotates `n` pairs from pair `i` on, of neighbours.
    ///
    /// # Safety
    /// They are there, and in `table` and `out` as well.
    #[inline(always)]
    unsafe fn neighbours<S, C>(&self, s: S, table: *const f32, half: usize, i: usize, n: usize, out: *mut C)
    where
        S: Simd<V = V>,
        C: Cell,
    {
        // Elements in the second vector, which starts at the end when there are none.
        let (first, second) = ((2 * n).min(LANES), (2 * n).saturating_sub(LANES));
        // SAFETY: the caller's promise.
        unsafe {
            let turn = (load_up_to(s, table.add(i), n), load_up_to(s, table.add(half + i), n));
            let (low, high) = (self.at(s, 2 * i, first), self.at(s, 2 * i + first, second));
            let (even, odd) = rotated(s, s.unzip(low, high), turn);
            let (low, high) = s.zip(even, odd);
            store_up_to(s, out.add(2 * i), low, first);
            store_up_to(s, out.add(2 * i + first), high, second);
        }
    }
}

/// Pairs `(a, b)` turned by angles of the given cosines and sines; every product is rounded.
#[inline(always)]
fn rotated<S: Simd>(s: S, (a, b): (S::V, S::V), (cos, sin): (S::V, S::V)) -> (S::V, S::V) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.add(s.mul(b, cos), s.mul(a, sin)))
}

#[cfg(test)]
mod tests;
