//! Per-head norms, rotation, and the store of keys and values.
use super::cache::{CacheWants, Caches, NAMES, PageShape, bounded, far_caches};
use super::norm;
use crate::case::{OpCase, Piece, Selection, Types, live_of};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{UNIT_F32, round, unit_roundoff};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{QkNorm, Rope, RopeKv};
use anyfleet_tensor::{Backend, DType, Encoder, Live, Result, quant};

/// Positions the drawn rope tables have.
pub(super) const POSITIONS: usize = 300;
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
        turned(&normed, &host.table[position * self.rotary..][..self.rotary], self.interleaved, &mut wants);
        wants
    }
}

impl RopeKvCase {
    /// Bytes and scale of a head in a cache of i8: those of [`quant::kv_head`] where the head is only moved.
    /// An element that is computed is off by what f32 arithmetic may be, which the scale inherits and the
    /// rounding of its byte adds half a step to.
    fn quantized(&self, head: &[Want]) -> (Vec<Want>, Want) {
        let exact: Option<Vec<f32>> =
            head.iter().map(|want| if let Want::Exact(v) = *want { Some(v as f32) } else { None }).collect();
        if let Some(head) = exact {
            let mut bytes = vec![0; head.len()];
            let scale = quant::kv_head(&head, &mut bytes);
            return (bytes.into_iter().map(|q| Want::Exact(q.into())).collect(), Want::Exact(scale.into()));
        }
        let numbers = head.iter().map(|want| match *want {
            Want::Near { value, scale } => (value, scale),
            Want::Exact(value) => (value, 0.0),
            _ => unreachable!("a head's elements are known"),
        });
        let most = numbers.clone().fold(0.0f64, |most, (value, _)| most.max(value.abs()));
        let most_scale = numbers.clone().fold(0.0f64, |most, (_, scale)| most.max(scale));
        let byte = f64::from(quant::BYTE);
        let half_step = 0.5 / self.tolerance().arithmetic;
        let bytes = numbers.map(|(value, scale)| Want::Near {
            value: value / most * byte,
            // The element's own error, the scale's, and three roundings on the way.
            scale: half_step + byte * (scale / most + value.abs() / most * (most_scale / most + 1.0)),
        });
        (bytes.collect(), Want::Near { value: most / byte, scale: (most_scale + most) / byte })
    }
}

/// Rotates the first elements of `x` by the cosines and sines of `table`.
pub(super) fn turned(x: &[f64], table: &[f32], interleaved: bool, wants: &mut [Want]) {
    let half = table.len() / 2;
    for i in 0..half {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (cos, sin) = (table[i] as f64, table[half + i] as f64);
        let (x, y) = (x[a], x[b]);
        wants[a] = Want::Near { value: x * cos - y * sin, scale: (x * cos).abs() + (y * sin).abs() };
        wants[b] = Want::Near { value: y * cos + x * sin, scale: (y * cos).abs() + (x * sin).abs() };
    }
}

/// `[POSITIONS, rotary]`: cosines, then sines, of `position / 10000^(2i/rotary)`.
pub(super) fn rope_table(rotary: usize) -> Vec<f32> {
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
        let caches = if self.offset > 0 {
            let (caches, first) = far_caches(&stage, shape, self.offset, self.pages())?;
            for (names, views) in NAMES.into_iter().zip([Some(&caches.cells), caches.scales.as_ref()]) {
                for (name, view) in names.into_iter().zip(views.into_iter().flatten()) {
                    let pages = (first - 1..first + self.pages() + 1).map(|page| (page, Vec::new()));
                    stage.sparse(name, true, view, pages.collect());
                }
            }
            caches
        } else {
            let dims = shape.dims(self.pages());
            let mut outputs = |[k, v]: [&'static str; 2], dtype, dims: &[usize]| -> Result<_> {
                Ok([stage.output(k, dtype, dims)?, stage.output(v, dtype, dims)?])
            };
            let cells = outputs(NAMES[0], self.kv, &dims)?;
            let scales = match self.kv.is_scaled() {
                true => Some(outputs(NAMES[1], DType::F32, &dims[..3])?),
                false => None,
            };
            Caches { cells, scales }
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
                k_cache: &caches.cells[0],
                v_cache: &caches.cells[1],
                scales: caches.kv_scales(),
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
        let wants = || [0, 1].map(|_| CacheWants::new(self.page_shape()));
        let scale_wants = || [0, 1].map(|_| CacheWants::new(self.page_shape().scales()));
        let (mut caches, mut scales) = (wants(), self.kv.is_scaled().then(scale_wants));
        // Of a cache of i8 what is stored is more than a rounding away.
        let store = if self.kv.is_scaled() { DType::F32 } else { self.kv };
        for &r in &selection.rows {
            let heads: Vec<&[f32]> = host.qkv[r * self.width()..][..self.width()].chunks(self.size).collect();
            let (q, kv) = heads.split_at(self.heads);
            let position = host.positions[r] as usize;
            let head = |x: &&[f32]| self.head(host, x, position, &host.q_norm, self.activation);
            queries.push(q.iter().flat_map(head).collect());
            let Some(slot) = self.slot(host, r) else { continue };
            for group in 0..self.groups {
                let key = self.head(host, kv[group], position, &host.k_norm, store);
                let key: Vec<Want> = key.into_iter().map(|want| bounded(self.kv, want)).collect();
                let moved = |&v: &f32| Want::Exact(round(store, v) as f64);
                let value = kv[self.groups + group].iter().map(moved).collect();
                for (cache, head) in [key, value].into_iter().enumerate() {
                    let Some(scales) = &mut scales else {
                        caches[cache].set(slot, group, &head);
                        continue;
                    };
                    let (bytes, scale) = self.quantized(&head);
                    caches[cache].set(slot, group, &bytes);
                    scales[cache].set(slot, group, &[scale]);
                }
            }
        }
        let caches = caches.into_iter().chain(scales.into_iter().flatten()).map(CacheWants::finish);
        [Expected::dense(queries)].into_iter().chain(caches).collect()
    }

    fn pieces(&self, host: &Host, row: usize, position: usize) -> Vec<Piece> {
        let mut pieces = vec![Piece::row(0, position)];
        if let Some(slot) = self.slot(host, row) {
            let (page, offset) = (slot / self.page, slot % self.page);
            let shape = self.page_shape();
            let mut outputs = vec![(shape, [1, 2])];
            if self.kv.is_scaled() {
                outputs.push((shape.scales(), [3, 4]));
            }
            for (shape, caches) in outputs {
                let piece = |g, output| Piece { output, row: page, elements: Some(shape.head(g, offset)) };
                pieces.extend((0..self.groups).flat_map(|g| caches.map(|output| piece(g, output))));
            }
        }
        pieces
    }

    fn tolerance(&self) -> Tolerance {
        let norm = if self.qk_norm { norm::relative_error(self.size) } else { 0.0 };
        let arithmetic = norm + 4.0 * UNIT_F32;
        let rounding = unit_roundoff(self.activation).max(unit_roundoff(self.kv));
        // Bytes are at most half a step off, and the largest of a head is 127.
        let steps = match self.kv.is_scaled() {
            true => self.size as f64 / 4.0 / f64::from(quant::BYTE).powi(2),
            false => 0.0,
        };
        Tolerance {
            nmse: (2.0 * arithmetic).powi(2) + rounding.powi(2) + steps,
            arithmetic,
            reason: "two f32 products and a sum a pair, the norm's error where there is one, one store, which as \
                     bytes is half a step of 127 in a head",
        }
    }
}
