//! Causal attention over pages.
use super::cache::{Caches, NAMES, PageShape, far_caches};
use super::linear::{dot, dot_error};
use crate::case::{OpCase, Selection, Types};
use crate::expect::{Expected, Tolerance, Want};
use crate::matrix::Spread;
use crate::number::{encode, round_all, unit_roundoff};
use crate::operand::{Role, Spec};
use crate::rng::Rng;
use crate::stage::{Placement, Stage, Staged};
use anyfleet_tensor::ops::{Attention, LatentAttention};
use anyfleet_tensor::{Backend, Caps, DType, Encoder, Live, Result, SeqMeta, quant};

/// One sequence of a case: its last `rows` positions are queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Length {
    /// Query rows.
    pub rows: usize,
    /// Keys in the cache.
    pub context: usize,
}

impl std::fmt::Debug for Length {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.rows, self.context)
    }
}

const LATENT: &str = "latent_attention";

/// Parameters of one case.
#[derive(Clone, Debug)]
pub struct AttentionCase {
    /// Sequences of the batch.
    pub sequences: Vec<Length>,
    /// Entries of `seqs` past them.
    pub padding: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub groups: usize,
    /// Elements of a head.
    pub size: usize,
    /// The cache has latents: so many of a key's first elements are its value, and the op is `latent_attention`.
    pub latent: Option<usize>,
    /// Tokens of a page.
    pub page: usize,
    /// Keys a query sees.
    pub window: Option<u32>,
    /// Bounds the scores.
    pub softcap: Option<f32>,
    /// Every query head has a logit without a value.
    pub sinks: bool,
    /// Pages that the window has left are not in the table.
    pub drop_pages: bool,
    /// Some token rows belong to no sequence.
    pub gaps: bool,
    /// Type of `q` and `out`.
    pub activation: DType,
    /// Type of the caches.
    pub kv: DType,
    /// Magnitudes of queries and keys.
    pub spread: Spread,
    /// Compute the reference of this many heads over all rows; 0 for all.
    pub sampled: usize,
    /// Bytes of cache before the pages in use; 0 for a small cache.
    pub offset: u64,
}

/// Queries, keys and values of one sequence, row-major.
struct Sequence {
    q: Vec<f32>,
    k: Cells,
    v: Cells,
}

/// What a cache keeps of a sequence's keys or values.
struct Cells {
    /// As attention reads them.
    values: Vec<f32>,
    /// Where the cache is i8: the bytes, and a scale per head.
    bytes: Vec<i8>,
    scales: Vec<f32>,
}

/// Rows of a sequence in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub sequence: usize,
    /// First of the sequence's query rows.
    pub first: usize,
    pub rows: usize,
    pub row_start: usize,
}

/// Which rows run together, and how the cache is cut.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub spans: Vec<Span>,
    pub tokens: usize,
    pub page: usize,
    pub drop_pages: bool,
    /// Seeds page ids and table gaps.
    pub seed: u64,
}

/// Inputs.
pub struct Host {
    sequences: Vec<Sequence>,
    /// Of each query head, where there are any.
    sinks: Vec<f32>,
    pub(crate) batch: Batch,
    heads: u64,
    /// Largest relative error of a softmax weight's rounding before it meets the values.
    weight_error: f64,
}

/// The device side of a batch's pages.
struct Pages {
    seqs: Vec<u32>,
    table: Vec<u32>,
    contents: Vec<Page>,
    count: usize,
}

/// A page's id, keys and values, and the scales of both where they have some.
struct Page {
    id: usize,
    cells: [Vec<u8>; 2],
    scales: [Vec<u8>; 2],
}

impl AttentionCase {
    pub(crate) fn op(&self) -> &'static str {
        if self.latent.is_some() { LATENT } else { Self::OP }
    }

    /// Elements of a value.
    fn value_size(&self) -> usize {
        self.latent.unwrap_or(self.size)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    /// Absolute position of a span's row.
    fn position(&self, span: &Span, row: usize) -> usize {
        let length = self.sequences[span.sequence];
        length.context - length.rows + span.first + row
    }

    /// First key a query sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
    }

    fn page_shape(&self, batch: &Batch) -> PageShape {
        PageShape { groups: self.groups, tokens: batch.page, size: self.size, dtype: self.kv }
    }

    /// Cuts every span's keys into pages with shuffled ids. Slots that no query sees stay poison.
    fn pages(&self, host: &Host, batch: &Batch) -> Pages {
        let mut rng = Rng::new(batch.seed);
        let shape = self.page_shape(batch);
        let range = |span: &Span| {
            let keys = self.first_key(self.position(span, 0))..self.position(span, span.rows - 1) + 1;
            let first = if batch.drop_pages { keys.start / batch.page } else { 0 };
            (first, keys)
        };
        let used: usize =
            batch.spans.iter().filter(|s| s.rows > 0).map(|s| range(s).1.end.div_ceil(batch.page) - range(s).0).sum();
        let count = used + 2;
        let mut ids: Vec<usize> = (0..count).collect();
        rng.shuffle(&mut ids);
        let mut pages = Pages { seqs: Vec::new(), table: Vec::new(), contents: Vec::new(), count };
        for span in &batch.spans {
            // Entries between two sequences' parts of the table are never to be followed.
            pages.table.extend((0..rng.below(3)).map(|_| u32::MAX));
            let mut meta = SeqMeta {
                row_start: span.row_start as u32,
                rows: span.rows as u32,
                table_start: pages.table.len() as u32,
                ..SeqMeta::default()
            };
            if span.rows > 0 {
                let (first, keys) = range(span);
                meta.context_len = keys.end as u32;
                meta.first_page = first as u32;
                let sequence = &host.sequences[span.sequence];
                let stored = [&sequence.k, &sequence.v].map(|from| match self.kv.is_scaled() {
                    true => bytemuck::cast_slice(&from.bytes).to_vec(),
                    false => encode(self.kv, &from.values),
                });
                let scaled = [&sequence.k, &sequence.v].map(|from| encode(DType::F32, &from.scales));
                for page in first..keys.end.div_ceil(batch.page) {
                    let id = ids.pop().expect("pages were counted");
                    let held = page * batch.page..((page + 1) * batch.page).min(keys.end);
                    let seen = held.start.max(keys.start)..held.end;
                    let cells = stored.each_ref().map(|cells| fill_page(shape, cells, seen.clone()));
                    let scales = scaled.each_ref().map(|scales| match self.kv.is_scaled() {
                        true => fill_page(shape.scales(), scales, seen.clone()),
                        false => Vec::new(),
                    });
                    pages.contents.push(Page { id, cells, scales });
                    pages.table.push(id as u32);
                }
            }
            pages.seqs.extend_from_slice(bytemuck::cast_slice(bytemuck::bytes_of(&meta)));
        }
        pages.table.push(u32::MAX);
        pages
    }

    fn stage_caches<B: Backend>(
        &self,
        stage: &mut Stage<'_, B>,
        shape: PageShape,
        pages: &mut Pages,
    ) -> Result<Caches<B>> {
        if self.offset > 0 {
            let (caches, first) = far_caches(stage, shape, self.offset, pages.count)?;
            for (i, (cells, scales)) in NAMES[0].into_iter().zip(NAMES[1]).enumerate() {
                let rows = pages.contents.iter().map(|page| (first + page.id, page.cells[i].clone()));
                stage.sparse(cells, false, &caches.cells[i], rows.collect());
                if let Some(tensors) = &caches.scales {
                    let rows = pages.contents.iter().map(|page| (first + page.id, page.scales[i].clone()));
                    stage.sparse(scales, false, &tensors[i], rows.collect());
                }
            }
            pages.table.iter_mut().filter(|id| **id != u32::MAX).for_each(|id| *id += first as u32);
            return Ok(caches);
        }
        let mut cache = |name, shape: PageShape, dims: &[usize], of: &dyn Fn(&Page) -> Vec<u8>| {
            let mut image = vec![shape.blank(); pages.count];
            pages.contents.iter().for_each(|page| image[page.id] = of(page));
            let spec = Spec { name, role: Role::Input, dtype: shape.dtype, shape: dims, data: &image.concat() };
            stage.operand(spec)
        };
        let ([k, v], [k_scale, v_scale]) = (NAMES[0], NAMES[1]);
        let (dims, scales) = (shape.dims(pages.count), shape.scales());
        let keys = cache(k, shape, &dims, &|p| p.cells[0].clone())?;
        let values = match self.latent {
            None => cache(v, shape, &dims, &|p| p.cells[1].clone())?,
            Some(_) => keys.clone(),
        };
        Ok(Caches {
            cells: [keys, values],
            scales: match self.kv.is_scaled() {
                true => Some([
                    cache(k_scale, scales, &dims[..3], &|p| p.scales[0].clone())?,
                    cache(v_scale, scales, &dims[..3], &|p| p.scales[1].clone())?,
                ]),
                false => None,
            },
        })
    }

    /// Heads of keys or values as a cache keeps them.
    fn cells(&self, values: Vec<f32>) -> Cells {
        let mut cells = Cells { bytes: Vec::new(), scales: Vec::new(), values };
        if self.kv.is_scaled() {
            cells.bytes = vec![0; cells.values.len()];
            for (head, bytes) in cells.values.chunks_mut(self.size).zip(cells.bytes.chunks_mut(self.size)) {
                let scale = quant::kv_head(head, bytes);
                head.iter_mut().zip(bytes).for_each(|(v, q)| *v = quant::kv_value(*q, scale).to_f32());
                cells.scales.push(scale);
            }
        }
        cells
    }

    pub(crate) fn stage_batch<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        batch: &Batch,
        padding: usize,
        placement: Placement,
    ) -> Result<Staged<B>> {
        let mut stage = Stage::new(backend, placement);
        let width = self.heads * self.size;
        let mut rows = vec![0.75; batch.tokens * width];
        for span in &batch.spans {
            let from = &host.sequences[span.sequence].q[span.first * width..][..span.rows * width];
            rows[span.row_start * width..][..from.len()].copy_from_slice(from);
        }
        let q = stage.input("q", self.activation, &[batch.tokens, width], &rows)?;
        let mut pages = self.pages(host, batch);
        let caches = self.stage_caches(&mut stage, self.page_shape(batch), &mut pages)?;
        let sinks = match self.sinks {
            true => Some(stage.input("sinks", DType::F32, &[self.heads], &host.sinks)?),
            false => None,
        };
        let seqs = stage.indices("seqs", &[batch.spans.len() + padding, 8], &pages.seqs)?;
        let table = stage.indices("table", &[pages.table.len()], &pages.table)?;
        let out = stage.output("out", self.activation, &[batch.tokens, self.heads * self.value_size()])?;
        let latent = self.latent.is_some();
        let (scale, softcap, window) = (self.scale(), self.softcap, self.window);
        let longest = self.sequences.iter().map(|s| s.context).max().unwrap_or(0);
        // Either way of counting, where every entry counts.
        let live = if padding == 0 && batch.seed.is_multiple_of(2) { Live::All } else { Live::Sequences };
        let record = Box::new(move |enc: &mut Encoder<'_, B>| {
            let (seqs, table) = (&seqs, &table);
            if latent {
                let (out, q, cache) = (&out, &q, &caches.cells[0]);
                return enc.latent_attention(LatentAttention { out, q, cache, seqs, table, scale, longest, live });
            }
            let ([k_cache, v_cache], scales) = (&caches.cells, caches.kv_scales());
            enc.attention(Attention {
                out: &out,
                q: &q,
                k_cache,
                v_cache,
                scales,
                seqs,
                table,
                scale,
                softcap,
                sinks: sinks.as_ref(),
                window,
                longest,
                live,
            });
        });
        stage.finish(live, batch.spans.len(), record)
    }

    /// One head of one query row: softmax-weighted values in f64, and the scale of their error.
    fn head(&self, host: &Host, sequence: usize, row: usize, position: usize, head: usize) -> Vec<Want> {
        let (sequence, sink) = (&host.sequences[sequence], host.sinks.get(head).map(|&sink| f64::from(sink)));
        let d = self.size;
        let q = &sequence.q[(row * self.heads + head) * d..][..d];
        let group = head / (self.heads / self.groups);
        let at = |key: usize| (key * self.groups + group) * d..(key * self.groups + group + 1) * d;
        let keys = self.first_key(position)..position + 1;
        let mut magnitude = 0.0f64;
        let scores: Vec<f64> = keys
            .clone()
            .map(|key| {
                let (score, absolute) = dot(q, &sequence.k.values[at(key)]);
                magnitude = magnitude.max(absolute * self.scale() as f64);
                let score = score * self.scale() as f64;
                // It bends scores towards 0, errors too.
                self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
            })
            .collect();
        let most = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let weight = sink.map_or(0.0, |sink| (sink - most).exp());
        if weight > 0.0 {
            magnitude = magnitude.max(sink.map_or(0.0, f64::abs));
        }
        let size = self.value_size();
        let (mut total, mut value, mut scale) = (weight, vec![0.0; size], vec![0.0; size]);
        let values = if self.latent.is_some() { &sequence.k.values } else { &sequence.v.values };
        for (key, score) in keys.zip(scores) {
            let p = (score - most).exp();
            total += p;
            for (i, &v) in values[at(key)][..size].iter().enumerate() {
                value[i] += p * v as f64;
                scale[i] += p * v.abs() as f64;
            }
        }
        // An error in a score multiplies its weight: twice in numerator and denominator, and again
        // where the score less the maximum is rounded.
        // Rounded weights err in numerator and denominator, in units of the tolerance's arithmetic.
        let rounded = 2.0 * host.weight_error / self.tolerance().arithmetic;
        let spread = (1.0 + 4.0 * magnitude + rounded) / total;
        value.iter().zip(scale).map(|(v, s)| Want::Near { value: v / total, scale: s * spread }).collect()
    }
}

/// A page of `from`, `[positions][groups][size]`; slots of other positions stay poison.
fn fill_page(shape: PageShape, from: &[u8], positions: std::ops::Range<usize>) -> Vec<u8> {
    let (mut bytes, element) = (shape.blank(), shape.dtype.size());
    for position in positions {
        for group in 0..shape.groups {
            let head = &from[(position * shape.groups + group) * shape.size * element..][..shape.size * element];
            let at = shape.head(group, position % shape.tokens).start * element;
            bytes[at..at + head.len()].copy_from_slice(head);
        }
    }
    bytes
}

impl OpCase for AttentionCase {
    const OP: &'static str = "attention";
    type Host = Host;

    fn types(&self) -> Types {
        Types { kv: Some(self.kv), ..Types::of(self.activation) }
    }
    fn rows(&self) -> usize {
        self.sequences.len()
    }
    fn padding(&self) -> usize {
        self.padding
    }
    fn largest_buffer(&self) -> u64 {
        self.offset
    }

    fn draw(&self, rng: &mut Rng) -> Host {
        let sequences = self.sequences.iter().map(|length| Sequence {
            q: self.spread.activations(rng, length.rows, self.heads * self.size, self.activation),
            k: self.cells(self.spread.activations(rng, length.context, self.groups * self.size, self.kv)),
            v: self.cells(round_all(self.kv, rng.normals(length.context * self.groups * self.size, 1.0))),
        });
        let sequences = sequences.collect();
        // One like a score, one that outweighs many keys, one that outweighs all, and two without weight.
        let mut sink = |_| match rng.below(6) {
            0 | 1 => 2.0 * rng.normal(),
            2 => 8.0 + rng.normal(),
            3 => 1e3,
            4 => -1e3,
            _ => -1e30,
        };
        let sinks = (0..if self.sinks { self.heads } else { 0 }).map(&mut sink).collect();
        // Rows of the batch need not be in the order of the sequences, nor without gaps.
        let mut order: Vec<usize> = (0..self.sequences.len()).collect();
        rng.shuffle(&mut order);
        let mut spans = vec![Span { sequence: 0, first: 0, rows: 0, row_start: 0 }; order.len()];
        let mut tokens = 0;
        for sequence in order {
            tokens += if self.gaps { rng.below(3) } else { 0 };
            let rows = self.sequences[sequence].rows;
            spans[sequence] = Span { sequence, first: 0, rows, row_start: tokens };
            tokens += rows;
        }
        tokens += if self.gaps { 2 } else { 0 };
        let batch = Batch { spans, tokens, page: self.page, drop_pages: self.drop_pages, seed: rng.bits() };
        Host { sequences, sinks, batch, heads: rng.bits(), weight_error: 0.0 }
    }

    fn stage<B: Backend>(
        &self,
        backend: &B,
        host: &Host,
        selection: &Selection,
        placement: Placement,
    ) -> Result<Staged<B>> {
        assert_eq!(selection.rows.len(), host.batch.spans.len(), "attention is staged as drawn");
        self.stage_batch(backend, host, &host.batch, selection.padding, placement)
    }

    fn rounded(&self, host: Host, caps: &Caps, _rows: usize) -> Host {
        let Some(dtype) = caps.attention_operand(self.kv) else { return host };
        let round = |sequence: Sequence| Sequence { q: round_all(dtype, sequence.q), ..sequence };
        let sequences = host.sequences.into_iter().map(round).collect();
        Host { sequences, weight_error: unit_roundoff(dtype), ..host }
    }

    fn expect(&self, host: &Host, _selection: &Selection) -> Vec<Expected> {
        let mut rng = Rng::new(host.heads);
        let mut rows = Vec::new();
        for span in &host.batch.spans {
            for row in 0..span.rows {
                let position = self.position(span, row);
                let size = self.value_size();
                let mut wants = vec![Want::Written; self.heads * size];
                let heads: Vec<usize> = match self.sampled {
                    0 => (0..self.heads).collect(),
                    count => (0..count).map(|_| rng.below(self.heads)).collect(),
                };
                for head in heads {
                    let values = self.head(host, span.sequence, row, position, head);
                    wants[head * size..][..size].copy_from_slice(&values);
                }
                rows.push((span.row_start + row, wants));
            }
        }
        vec![Expected { rows }]
    }

    fn tolerance(&self) -> Tolerance {
        let longest = self.sequences.iter().map(|s| s.context).max().unwrap_or(0);
        let arithmetic = dot_error(longest.max(self.size));
        let rounding = unit_roundoff(self.activation);
        // Weights may be rounded to the type values are read as where that is bf16.
        let weights =
            if matches!(self.kv, DType::BF16 | DType::I8 | DType::F8) { unit_roundoff(DType::BF16) } else { 0.0 };
        // With outliers one score in a thousand is in the thousands, and so is its error's factor.
        let factor = if self.spread == Spread::Normal { 64.0 } else { 8192.0 };
        Tolerance {
            nmse: (arithmetic * factor).powi(2) + rounding.powi(2) + weights.powi(2),
            arithmetic,
            reason: "f32 scores, whose error the exponential multiplies, f32 sums over the keys, and weights rounded \
                     like bf16 values",
        }
    }
}
