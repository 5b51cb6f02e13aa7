//! `rope_kv`: per-head norm, rotation, and the store into the KV cache.
use crate::CpuBackend;
use crate::ops::norm::NormRow;
use crate::plan::Context;
use crate::scratch::with_scratch;
use crate::simd::{Cell, Kernel, Simd};
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::RopeKv;
use anyfleet_tensor::{DType, Live, Result};
use half::{bf16, f16};

pub(crate) struct RopeKvOp {
    q: View,
    k_cache: View,
    v_cache: View,
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
const NO_SLOT: u32 = u32::MAX;

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
        let (groups, page_size, size) = (op.k_cache.dim(1), op.k_cache.dim(2), op.k_cache.dim(3));
        let this = RopeKvOp {
            q: view(op.q)?,
            k_cache: view(op.k_cache)?,
            v_cache: view(op.v_cache)?,
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
        for out in [&this.q, &this.k_cache, &this.v_cache] {
            check_apart(OP, out, &this.qkv)?;
        }
        check_apart(OP, &this.k_cache, &this.v_cache)?;
        Ok(this)
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.q.rows());
        ctx.split(rows, 2 * self.qkv.cols(), |range| {
            for row in range {
                match self.k_cache.dtype() {
                    DType::F32 => self.row::<f32>(ctx, row),
                    DType::BF16 => self.row::<bf16>(ctx, row),
                    _ => self.row::<f16>(ctx, row),
                }
            }
        });
    }

    fn row<C: Cell>(&self, ctx: &Context, row: usize) {
        let position = self.positions.u32_at(row) as usize;
        let table = self.rope.as_ref().map(|rope| {
            let rows = rope.table.rows();
            assert!(position < rows, "rope_kv: position {position} past the rope table's {rows} rows");
            // SAFETY: nothing writes the table.
            unsafe { rope.table.slice::<f32>(position) }
        });
        // SAFETY: `qkv` is apart from everything written here.
        let (q, kv) = unsafe { self.qkv.slice::<f32>(row) }.split_at(self.heads * self.size);
        let (k, v) = kv.split_at(self.groups * self.size);
        // SAFETY: each task has its own rows of `q`.
        let q_out = unsafe { self.q.slice_mut::<f32>(row) };
        let (q_norm, k_norm) = (self.norm.as_ref().map(|n| &n.q), self.norm.as_ref().map(|n| &n.k));
        for (head, out) in q.chunks_exact(self.size).zip(q_out.chunks_exact_mut(self.size)) {
            self.head(ctx, head, out, q_norm, table);
        }
        let slot = self.slots.u32_at(row);
        if slot == NO_SLOT {
            return;
        }
        with_scratch([self.size], |[rotated]| {
            for (group, head) in k.chunks_exact(self.size).enumerate() {
                self.head(ctx, head, rotated, k_norm, table);
                self.store::<C>(&self.k_cache, slot, group, rotated);
            }
        });
        for (group, head) in v.chunks_exact(self.size).enumerate() {
            self.store::<C>(&self.v_cache, slot, group, head);
        }
    }

    /// Normalises and rotates one head into `out`.
    fn head(&self, ctx: &Context, head: &[f32], out: &mut [f32], norm: Option<&View>, table: Option<&[f32]>) {
        match (norm, &self.norm) {
            (Some(weight), Some(NormView { eps, .. })) => {
                let (x, len) = (head.as_ptr(), head.len());
                // `out` and `head` have `d` elements, and so has the norm's weight.
                ctx.kernels.run(NormRow { out: out.as_mut_ptr(), x, weight: weight.flat(), len, eps: *eps });
            }
            _ => out.copy_from_slice(head),
        }
        if let (Some(table), Some(rope)) = (table, &self.rope) {
            ctx.kernels.run(Rotate { head: out, table, interleaved: rope.interleaved });
        }
    }

    /// Narrows one head into its place in a cache. The slots of a step are distinct, so no other
    /// task writes there.
    fn store<C: Cell>(&self, cache: &View, slot: u32, group: usize, head: &[f32]) {
        let (page, offset) = (slot as usize / self.page_size, slot as usize % self.page_size);
        assert!(page < cache.rows(), "rope_kv: slot {slot} past the cache's {} pages", cache.rows());
        let start = (group * self.page_size + offset) * self.size;
        let target = cache.row::<C>(page);
        for (i, &value) in head.iter().enumerate() {
            // SAFETY: group, offset and i are below the page's dimensions.
            unsafe { *target.add(start + i) = C::narrow(value) };
        }
    }
}

/// Rotates pairs of the first `r` elements of a head by `r/2` cosines and sines.
struct Rotate<'a> {
    head: &'a mut [f32],
    table: &'a [f32],
    interleaved: bool,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let half = self.table.len() / 2;
        let (cos, sin) = self.table.split_at(half);
        if self.interleaved {
            for (i, pair) in self.head.chunks_exact_mut(2).take(half).enumerate() {
                let (a, b) = (pair[0], pair[1]);
                pair[0] = a * cos[i] - b * sin[i];
                pair[1] = b * cos[i] + a * sin[i];
            }
        } else {
            let (low, high) = self.head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (a, b) = (low[i], high[i]);
                low[i] = a * cos[i] - b * sin[i];
                high[i] = b * cos[i] + a * sin[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::*;
    use anyfleet_tensor::ops::{QkNorm, Rope, RopeKv};
    use anyfleet_tensor::{Backend, DType, Live, Tensor};

    struct Shape {
        heads: usize,
        groups: usize,
        size: usize,
        rotary: usize,
        page_size: usize,
        interleaved: bool,
        norm: bool,
    }

    fn naive_head(x: &[f32], weight: Option<&[f32]>, table: &[f32], interleaved: bool) -> Vec<f32> {
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let normed: Vec<f64> = x
            .iter()
            .enumerate()
            .map(|(i, &v)| f64::from(v) * weight.map_or(1.0, |w| f64::from(w[i]) / (mean + 1e-6).sqrt()))
            .collect();
        let mut out = normed.clone();
        let half = table.len() / 2;
        for i in 0..half {
            let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (cos, sin) = (f64::from(table[i]), f64::from(table[half + i]));
            out[a] = normed[a] * cos - normed[b] * sin;
            out[b] = normed[b] * cos + normed[a] * sin;
        }
        out.into_iter().map(|v| v as f32).collect()
    }

    #[test]
    fn agrees_with_the_naive_twin() {
        let shapes = [
            Shape { heads: 4, groups: 2, size: 8, rotary: 8, page_size: 4, interleaved: false, norm: true },
            Shape { heads: 3, groups: 3, size: 80, rotary: 32, page_size: 1, interleaved: true, norm: false },
            Shape { heads: 6, groups: 1, size: 18, rotary: 18, page_size: 5, interleaved: false, norm: false },
        ];
        for shape in &shapes {
            for kv in FLOATS {
                same_bits(|device| check(device, shape, kv));
            }
        }
    }

    fn check(device: &crate::CpuBackend, shape: &Shape, kv: DType) -> Vec<f32> {
        let &Shape { heads, groups, size, rotary, page_size, interleaved, norm } = shape;
        let (rows, pages, width) = (4, 6, (heads + 2 * groups) * size);
        let (source, table) = (random(1, rows * width), random(2, 9 * rotary));
        let (q_weight, k_weight) = (random(3, size), random(4, size));
        let positions = [3u32, 0, 8, 7];
        let slots = [(4 * page_size) as u32, u32::MAX, (2 * page_size - 1) as u32, 0];
        let q = columns_of(device, &vec![POISON; rows * heads * size], rows, heads * size);
        let cache = || {
            let cache = Tensor::new(device, kv, &[pages, groups, page_size, size]).unwrap();
            device.write(&cache, &vec![0x42; cache.bytes()]).unwrap();
            cache
        };
        let (k_cache, v_cache) = (cache(), cache());
        let untouched = read_as_f32(device, &k_cache)[0];
        let tensors = (
            columns_of(device, &source, rows, width),
            tensor(device, &table, &[9, rotary]),
            tensor(device, &q_weight, &[size]),
            tensor(device, &k_weight, &[size]),
        );
        bind(device, 3, |enc| {
            enc.rope_kv(RopeKv {
                q: &q,
                k_cache: &k_cache,
                v_cache: &v_cache,
                qkv: &tensors.0,
                positions: &tensor_u32(device, &positions, &[rows]),
                slots: &tensor_u32(device, &slots, &[rows]),
                rope: Some(Rope { table: &tensors.1, interleaved }),
                qk_norm: norm.then_some(QkNorm { q: &tensors.2, k: &tensors.3, eps: 1e-6 }),
                live: Live::Tokens,
            })
        });
        let (q, k, v) = (read_rows(device, &q, rows), read_as_f32(device, &k_cache), read_as_f32(device, &v_cache));
        let mut written = 0;
        for row in 0..3 {
            let angles = &table[positions[row] as usize * rotary..][..rotary];
            let heads_of_row: Vec<&[f32]> = source[row * width..][..width].chunks(size).collect();
            for h in 0..heads {
                let want = naive_head(heads_of_row[h], norm.then_some(&q_weight), angles, interleaved);
                close(&q[(row * heads + h) * size..][..size], &want, 1e-6);
            }
            for g in 0..groups {
                let (page, offset) = (slots[row] as usize / page_size, slots[row] as usize % page_size);
                if slots[row] == u32::MAX {
                    continue;
                }
                let at = ((page * groups + g) * page_size + offset) * size;
                let want = naive_head(heads_of_row[heads + g], norm.then_some(&k_weight), angles, interleaved);
                close(&k[at..][..size], &want, if kv == DType::F32 { 1e-6 } else { 4e-3 });
                let want: Vec<f32> = heads_of_row[heads + groups + g].iter().map(|&x| round(x, kv)).collect();
                assert_eq!(v[at..][..size], want[..]);
                written += size;
            }
        }
        assert!(q[3 * heads * size..].iter().all(|&x| x == POISON));
        assert_eq!(v.iter().filter(|&&x| x != untouched).count(), written);
        [q, k, v].concat()
    }
}
