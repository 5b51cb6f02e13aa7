//! Norm of latents, rotation, and the store of latents and keys.
use super::cache::{CacheWants, PageShape, bounded};
use super::norm;
use super::rope_kv::{POSITIONS, rope_table, turned};
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{UNIT_F32, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{LatentKv, Rope};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result};

const EPS: f32 = 1e-6;

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct LatentKvCase {
    /// Live rows.
    pub rows: usize,
    /// Rows past them.
    pub padding: usize,
    /// Query heads.
    pub heads: usize,
    /// Elements of a query head that are not rotated.
    pub plain: usize,
    /// Elements of a latent.
    pub rank: usize,
    /// Rotated elements.
    pub rotary: usize,
    /// Neighbours are pairs, instead of halves.
    pub interleaved: bool,
    /// Tokens of a page.
    pub page: usize,
    /// Type of `q`, `queries` and `kv`.
    pub activation: DType,
    /// Type of the cache.
    pub kv: DType,
    /// Magnitudes.
    pub spread: Spread,
    /// Which count bounds the rows.
    pub live: Live,
}

/// Inputs.
pub struct Host {
    queries: Vec<f32>,
    kv: Vec<f32>,
    norm: Vec<f32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    table: Vec<f32>,
}

impl LatentKvCase {
    /// Elements of a token in the cache.
    fn size(&self) -> usize {
        self.rank + self.rotary
    }

    /// Elements of a head in `queries`.
    fn query(&self) -> usize {
        self.plain + self.rotary
    }

    fn page_shape(&self) -> PageShape {
        PageShape { groups: 1, tokens: self.page, size: self.size(), dtype: self.kv }
    }

    /// Room for every row and one page more.
    fn pages(&self) -> usize {
        self.rows.div_ceil(self.page) + 1
    }

    fn slot(&self, host: &Host, row: usize) -> Option<usize> {
        (host.slots[row] != u32::MAX).then_some(host.slots[row] as usize)
    }

    fn turned(&self, host: &Host, row: usize, x: &[f32]) -> Vec<Want> {
        let x: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        let table = &host.table[host.positions[row] as usize * self.rotary..][..self.rotary];
        let mut wants = vec![Want::Any; x.len()];
        turned(&x, table, self.interleaved, &mut wants);
        wants
    }
}

impl OpCase for LatentKvCase {
    const OP: &'static str = "latent_kv";
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

    fn draw(&self, rng: &mut Rng) -> Host {
        let queries = self.spread.activations(rng, self.rows, self.heads * self.query(), self.activation);
        let kv = self.spread.activations(rng, self.rows, self.size(), self.activation);
        let positions = (0..self.rows).map(|_| rng.below(POSITIONS) as u32).collect();
        let mut slots: Vec<u32> = (0..(self.pages() * self.page) as u32).collect();
        rng.shuffle(&mut slots);
        slots.truncate(self.rows);
        for slot in &mut slots {
            if rng.chance(0.15) {
                *slot = u32::MAX;
            }
        }
        let norm = (0..self.rank).map(|_| 1.0 + 0.3 * rng.normal()).collect();
        Host { queries, kv, norm, positions, slots, table: rope_table(self.rotary) }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let (capacity, size, width) = (selection.capacity(), self.size(), self.heads * self.query());
        let queries = selection.gather(&host.queries, width);
        let queries = stage.input("queries", self.activation, &[capacity, width], &queries)?;
        let kv = stage.input("kv", self.activation, &[capacity, size], &selection.gather(&host.kv, size))?;
        let norm = stage.input("norm", DType::F32, &[self.rank], &host.norm)?;
        let positions = stage.indices("positions", &[capacity], &selection.gather(&host.positions, 1))?;
        let slots = stage.indices("slots", &[capacity], &selection.gather(&host.slots, 1))?;
        let table = stage.input("rope table", DType::F32, &[POSITIONS, self.rotary], &host.table)?;
        let q = stage.output("q", self.activation, &[capacity, self.heads * size])?;
        let cache = stage.output("cache", self.kv, &self.page_shape().dims(self.pages()))?;
        let (live, interleaved) = (live_of(self.live, selection.padding), self.interleaved);
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            enc.latent_kv(LatentKv {
                q: &q,
                cache: &cache,
                queries: &queries,
                kv: &kv,
                norm: &norm,
                eps: EPS,
                rope: Rope { table: &table, interleaved },
                positions: &positions,
                slots: &slots,
                live,
            });
        });
        stage.finish(live, selection.rows.len(), record)
    }

    fn expect(&self, host: &Host, selection: &Selection) -> Vec<Expected> {
        let mut cache = CacheWants::new(self.page_shape());
        let mut queries = Vec::new();
        for &r in &selection.rows {
            let mut row = vec![Want::Kept; self.heads * self.size()];
            for head in 0..self.heads {
                let x = &host.queries[(r * self.heads + head) * self.query() + self.plain..][..self.rotary];
                row[head * self.size() + self.rank..][..self.rotary].copy_from_slice(&self.turned(host, r, x));
            }
            queries.push(row);
            let Some(slot) = self.slot(host, r) else { continue };
            let (latent, key) = host.kv[r * self.size()..][..self.size()].split_at(self.rank);
            let near = |value: f64| Want::Near { value, scale: value.abs() };
            let normed = norm::reference(latent, &host.norm, EPS).into_iter().map(near);
            let token = normed.chain(self.turned(host, r, key)).map(|want| bounded(self.kv, want));
            cache.set(slot, 0, &token.collect::<Vec<_>>());
        }
        vec![Expected::dense(queries), cache.finish()]
    }

    fn pieces(&self, host: &Host, row: usize, position: usize) -> Vec<Piece> {
        let mut pieces = vec![Piece::row(0, position)];
        if let Some(slot) = self.slot(host, row) {
            let elements = Some(self.page_shape().head(0, slot % self.page));
            pieces.push(Piece { output: 1, row: slot / self.page, elements });
        }
        pieces
    }

    fn tolerance(&self) -> Tolerance {
        let arithmetic = norm::relative_error(self.rank) + 4.0 * UNIT_F32;
        let rounding = unit_roundoff(self.activation).max(unit_roundoff(self.kv));
        Tolerance {
            nmse: (2.0 * arithmetic).powi(2) + rounding.powi(2),
            arithmetic,
            reason: "the norm's error, two f32 products and a sum a pair, one store",
        }
    }
}
