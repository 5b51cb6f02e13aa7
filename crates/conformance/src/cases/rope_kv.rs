//! Per-head norms, rotation, and the store of keys and values.
use super::cache::{CacheWants, PageShape, far_caches};
use super::norm;
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{UNIT_F32, round, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{QkNorm, Rope, RopeKv};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

/// Positions the drawn rope tables have.
const POSITIONS: usize = 300;
const EPS: f32 = 1e-6;

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct RopeKvCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub groups: usize,
    /// Elements of a head.
    pub size: usize,
    /// Rotated elements of a head; 0 for no rotation.
    pub rotary: usize,
    /// Neighbours are pairs, instead of halves.
    pub interleaved: bool,
    /// With per-head norms.
    pub qk_norm: bool,
    /// Tokens of a page.
    pub page: usize,
    /// Type of `qkv` and `q`.
    pub activation: DType,
    /// Type of the caches.
    pub kv: DType,
    /// Magnitudes.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
    /// Bytes of cache before the pages in use; 0 for a small cache.
    pub offset: u64,
}

/// Inputs.
pub struct Host {
    qkv: Vec<f32>,
    positions: Vec<u32>,
    /// Slots of a cache whose first page in use is page 0.
    slots: Vec<u32>,
    table: Vec<f32>,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
}

impl RopeKvCase {
    fn width(&self) -> usize {
        (self.heads + 2 * self.groups) * self.size
    }

    fn page_shape(&self) -> PageShape {
        PageShape { groups: self.groups, tokens: self.page, size: self.size, dtype: self.kv }
    }

    /// Pages in use: room for every row and one page more.
    fn pages(&self) -> usize {
        self.rows.div_ceil(self.page) + 1
    }

    /// Pages before those in use.
    fn first_page(&self) -> usize {
        (self.offset as usize).div_ceil(self.page_shape().bytes())
    }

    fn slot(&self, host: &Host, row: usize) -> Option<usize> {
        let slot = host.slots[row];
        (slot != u32::MAX).then(|| slot as usize + self.first_page() * self.page)
    }

    /// One head after norm and rotation, in f64. Without either it is only moved.
    fn head(&self, host: &Host, x: &[f32], position: usize, norm: &[f32], store: DType) -> Vec<Want> {
        let normed = match self.qk_norm {
            true => norm::reference(x, norm, EPS),
            false => x.iter().map(|&v| v as f64).collect(),
        };
        let mut wants: Vec<Want> = normed
            .iter()
            .map(|&value| match self.qk_norm {
                true => Want::Near { value, scale: value.abs() },
                false => Want::Exact(round(store, value as f32) as f64),
            })
            .collect();
        let half = self.rotary / 2;
        for i in 0..half {
            let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let row = &host.table[position * self.rotary..][..self.rotary];
            let (cos, sin) = (row[i] as f64, row[half + i] as f64);
            let (x, y) = (normed[a], normed[b]);
            wants[a] = Want::Near { value: x * cos - y * sin, scale: (x * cos).abs() + (y * sin).abs() };
            wants[b] = Want::Near { value: y * cos + x * sin, scale: (y * cos).abs() + (x * sin).abs() };
        }
        wants
    }
}

/// `[POSITIONS, rotary]`: cosines, then sines, of `position / 10000^(2i/rotary)`.
fn rope_table(rotary: usize) -> Vec<f32> {
    let half = rotary / 2;
    let angle = |position: usize, i: usize| position as f64 / 1e4f64.powf(2.0 * i as f64 / rotary as f64);
    let row = |p: usize| {
        let cos = (0..half).map(move |i| angle(p, i).cos() as f32);
        cos.chain((0..half).map(move |i| angle(p, i).sin() as f32))
    };
    (0..POSITIONS).flat_map(row).collect()
}

impl OpCase for RopeKvCase {
    const OP: &'static str = "rope_kv";
    type Host = Host;

    fn types(&self) -> Types {
        Types { kv: Some(self.kv), ..Types::of(self.activation) }
    }
    fn rows(&self) -> usize {
        self.rows
    }
    fn padding(&self) -> usize {
        self.padding
    }
    fn largest_buffer(&self) -> u64 {
        self.offset
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let qkv = self.spread.activations(rng, self.rows, self.width(), self.activation);
        let positions = (0..self.rows).map(|_| rng.below(POSITIONS) as u32).collect();
        let mut slots: Vec<u32> = (0..(self.pages() * self.page) as u32).collect();
        rng.shuffle(&mut slots);
        slots.truncate(self.rows);
        for slot in &mut slots {
            if rng.chance(0.15) {
                *slot = u32::MAX;
            }
        }
        let mut norm = || (0..self.size).map(|_| 1.0 + 0.3 * rng.normal()).collect();
        Host { qkv, positions, slots, table: rope_table(self.rotary), q_norm: norm(), k_norm: norm() }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let capacity = selection.capacity();
        let rows = selection.gather(&host.qkv, self.width());
        let qkv = stage.input("qkv", self.activation, &[capacity, self.width()], &rows)?;
        let positions = stage.indices("positions", &[capacity], &selection.gather(&host.positions, 1))?;
        let slots: Vec<u32> =
            selection.rows.iter().map(|&r| self.slot(host, r).map_or(u32::MAX, |s| s as u32)).collect();
        let slots = stage.indices("slots", &[capacity], &slots)?;
        let q = stage.output("q", self.activation, &[capacity, self.heads * self.size])?;
        let shape = self.page_shape();
        let (k_cache, v_cache) = if self.offset > 0 {
            let (k, v, first) = far_caches(&stage, shape, self.offset, self.pages())?;
            for (name, view) in [("k_cache", &k), ("v_cache", &v)] {
                let pages = (first - 1..first + self.pages() + 1).map(|page| (page, Vec::new()));
                stage.sparse(name, true, view, pages.collect());
            }
            (k, v)
        } else {
            let dims = shape.dims(self.pages());
            (stage.output("k_cache", self.kv, &dims)?, stage.output("v_cache", self.kv, &dims)?)
        };
        let table = match self.rotary {
            0 => None,
            r => Some(stage.input("rope table", DType::F32, &[POSITIONS, r], &host.table)?),
        };
        let norms = match self.qk_norm {
            false => None,
            true => Some((
                stage.input("q_norm", DType::F32, &[self.size], &host.q_norm)?,
                stage.input("k_norm", DType::F32, &[self.size], &host.k_norm)?,
            )),
        };
        let (live, interleaved) = (live_of(self.live, selection.padding), self.interleaved);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.rope_kv(RopeKv {
                q: &q,
                k_cache: &k_cache,
                v_cache: &v_cache,
                qkv: &qkv,
                positions: &positions,
                slots: &slots,
                rope: table.as_ref().map(|table| Rope { table, interleaved }),
                qk_norm: norms.as_ref().map(|(q, k)| QkNorm { q, k, eps: EPS }),
                live,
            });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let mut queries = Vec::new();
        let (mut keys, mut values) = (CacheWants::new(self.page_shape()), CacheWants::new(self.page_shape()));
        for &r in &selection.rows {
            let heads: Vec<&[f32]> = host.qkv[r * self.width()..][..self.width()].chunks(self.size).collect();
            let (q, kv) = heads.split_at(self.heads);
            let position = host.positions[r] as usize;
            let head = |x: &&[f32]| self.head(host, x, position, &host.q_norm, self.activation);
            queries.push(q.iter().flat_map(head).collect());
            let Some(slot) = self.slot(host, r) else { continue };
            for group in 0..self.groups {
                keys.set(slot, group, &self.head(host, kv[group], position, &host.k_norm, self.kv));
                let moved = |&v: &f32| Want::Exact(round(self.kv, v) as f64);
                values.set(slot, group, &kv[self.groups + group].iter().map(moved).collect::<Vec<_>>());
            }
        }
        vec![Expected::dense(queries), keys.finish(), values.finish()]
    }

    fn pieces(&self, host: &Host, row: usize, position: usize) -> Vec<Piece> {
        let mut pieces = vec![Piece::row(0, position)];
        if let Some(slot) = self.slot(host, row) {
            let (page, offset) = (slot / self.page, slot % self.page);
            let shape = self.page_shape();
            let heads = (0..self.groups)
                .flat_map(|g| [1, 2].map(|output| Piece { output, row: page, elements: Some(shape.head(g, offset)) }));
            pieces.extend(heads);
        }
        pieces
    }

    fn tolerance(&self) -> Tolerance {
        let norm = if self.qk_norm { norm::relative_error(self.size) } else { 0.0 };
        let arithmetic = norm + 4.0 * UNIT_F32;
        let rounding = unit_roundoff(self.activation).max(unit_roundoff(self.kv));
        Tolerance {
            nmse: (2.0 * arithmetic).powi(2) + rounding.powi(2),
            arithmetic,
            reason: "two f32 products and a sum a pair, the norm's error where there is one, one store",
        }
    }
}
