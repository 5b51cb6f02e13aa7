//! Attention against its naive twin, and the bits that must not change.
use crate::ops::testing::*;
use crate::{CpuBackend, CpuOptions};
use anyfleet_tensor::ops::{Attention, KvScales};
use anyfleet_tensor::{Backend, DType, Live, SeqMeta, Tensor, f8, quant};
use half::{bf16, f16};

/// A batch over sequences whose keys and values are functions of (sequence, position), whatever
/// the pages.
#[derive(Clone)]
struct Case {
    heads: usize,
    groups: usize,
    size: usize,
    page_size: usize,
    window: Option<u32>,
    softcap: Option<f32>,
    sinks: bool,
    kv: DType,
    /// Keys and values are what a cache of another type would stand for.
    as_stored_in: Option<DType>,
    /// (rows, context) of each sequence.
    seqs: Vec<(usize, usize)>,
}

impl Case {
    fn scale(&self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }
    /// A query head's logit without a value: without weight, like a score, and above all.
    fn sink(&self, head: usize) -> f32 {
        [-1e30, 1.5, -0.25, 30.0][head % 4]
    }
    fn drawn(&self, kind: u64, seq: usize, position: usize, head: usize) -> Vec<f32> {
        let seed = (kind << 40) + ((seq as u64) << 32) + ((position as u64) << 8) + head as u64;
        random(seed + 1, self.size + 8).split_off(8)
    }
    /// A query, key or value (kinds 0, 1 and 2) as attention reads it.
    fn head(&self, kind: u64, seq: usize, position: usize, head: usize) -> Vec<f32> {
        let values = self.drawn(kind, seq, position, head);
        if kind == 0 {
            values.iter().map(|v| v * 3.0).collect()
        } else if self.as_stored_in.unwrap_or(self.kv).is_scaled() {
            let mut bytes = vec![0; self.size];
            let scale = quant::kv_head(&values, &mut bytes);
            bytes.into_iter().map(|q| quant::kv_value(q, scale).to_f32()).collect()
        } else {
            values.iter().map(|&v| round(round(v, self.as_stored_in.unwrap_or(self.kv)), self.kv)).collect()
        }
    }
    /// A key or value as a cache keeps it, and its scale.
    fn stored(&self, kind: u64, seq: usize, position: usize, head: usize) -> (Vec<u8>, f32) {
        let values = self.drawn(kind, seq, position, head);
        if !self.kv.is_scaled() {
            return (narrowed(&self.head(kind, seq, position, head), self.kv), 0.0);
        }
        let mut bytes = vec![0; self.size];
        let scale = quant::kv_head(&values, &mut bytes);
        (bytes.into_iter().map(|q| q as u8).collect(), scale)
    }
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize))
    }

    fn naive(&self) -> Vec<f32> {
        let mut out = Vec::new();
        for (s, &(rows, context)) in self.seqs.iter().enumerate() {
            for position in context - rows..context {
                for head in 0..self.heads {
                    out.extend(self.naive_head(s, position, head));
                }
            }
        }
        out
    }

    fn naive_head(&self, seq: usize, position: usize, head: usize) -> Vec<f32> {
        let group = head / (self.heads / self.groups);
        let mut q = self.head(0, seq, position, head);
        if matches!(self.kv, DType::BF16 | DType::I8 | DType::F8) {
            q.iter_mut().for_each(|v| *v = round(*v, DType::BF16));
        }
        let keys = self.first_visible(position)..position + 1;
        let dot = |k: Vec<f32>| q.iter().zip(&k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let capped = |score: f64| self.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
        let scores: Vec<f64> =
            keys.clone().map(|p| capped(dot(self.head(1, seq, p, group)) * f64::from(self.scale()))).collect();
        let sink = self.sinks.then(|| f64::from(self.sink(head)));
        let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        // Weights that meet bf16 values are rounded too, relative to the running maximum: the tolerance's.
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - max).exp());
        let mut out = vec![0.0; self.size];
        for (p, w) in keys.zip(weights) {
            let value = self.head(2, seq, p, group);
            out.iter_mut().zip(value).for_each(|(o, v)| *o += w / total * f64::from(v));
        }
        out.into_iter().map(|v| v as f32).collect()
    }

    /// Rows of `out`, in order. Pages are handed out backwards; whatever no query may see is NaN.
    fn run(&self, device: &CpuBackend) -> Vec<f32> {
        let (g, p, d) = (self.groups, self.page_size, self.size);
        let pages: usize = self.seqs.iter().map(|&(_, context)| context.div_ceil(p)).sum::<usize>() + 1;
        // NaN in every float type, and bytes with a scale of NaN.
        let mut caches =
            [1, 2].map(|kind| (kind, vec![0xFF; pages * g * p * d * self.kv.size()], vec![f32::NAN; pages * g * p]));
        let (mut table, mut metas, mut q) = (vec![u32::MAX], Vec::new(), Vec::new());
        let mut next = pages;
        for (s, &(rows, context)) in self.seqs.iter().enumerate() {
            let low = if rows == 0 { 0 } else { self.first_visible(context - rows) };
            metas.push(SeqMeta {
                row_start: (q.len() / (self.heads * d)) as u32,
                rows: rows as u32,
                context_len: context as u32,
                table_start: table.len() as u32,
                first_page: (low / p) as u32,
                reserved: [0; 3],
            });
            for page in low / p..context.div_ceil(p) {
                next -= 1;
                table.push(next as u32);
                for position in (page * p).max(low)..context.min((page + 1) * p) {
                    for group in 0..g {
                        let at = (next * g + group) * p + position % p;
                        for (kind, cells, scales) in &mut caches {
                            let (bytes, scale) = self.stored(*kind, s, position, group);
                            cells[at * bytes.len()..][..bytes.len()].copy_from_slice(&bytes);
                            scales[at] = scale;
                        }
                    }
                }
            }
            for position in context - rows..context {
                (0..self.heads).for_each(|head| q.extend(self.head(0, s, position, head)));
            }
        }
        let rows = q.len() / (self.heads * d);
        let [(k_cache, k_scale), (v_cache, v_scale)] = caches.map(|(_, cells, scales)| {
            let cache = Tensor::new(device, self.kv, &[pages, g, p, d]).unwrap();
            device.write(&cache, &cells).unwrap();
            (cache, tensor(device, &scales, &[pages, g, p]))
        });
        let out = columns_of(device, &vec![POISON; (rows + 1) * self.heads * d], rows + 1, self.heads * d);
        q.extend(vec![f32::NAN; self.heads * d]);
        let q = columns_of(device, &q, rows + 1, self.heads * d);
        let sinks = tensor(device, &(0..self.heads).map(|h| self.sink(h)).collect::<Vec<_>>(), &[self.heads]);
        let seqs = [metas.as_slice(), &[SeqMeta { rows: 99, ..SeqMeta::default() }]].concat();
        bind(device, self.seqs.len() as u32, |enc| {
            enc.attention(Attention {
                out: &out,
                q: &q,
                k_cache: &k_cache,
                v_cache: &v_cache,
                scales: self.kv.is_scaled().then_some(KvScales { k: &k_scale, v: &v_scale }),
                seqs: &tensor_u32(device, bytemuck::cast_slice(&seqs), &[seqs.len(), 8]),
                table: &tensor_u32(device, &table, &[table.len()]),
                scale: self.scale(),
                softcap: self.softcap,
                sinks: self.sinks.then_some(&sinks),
                window: self.window,
                longest: 1 << 20,
                live: Live::Sequences,
            })
        });
        let got = read_rows(device, &out, rows + 1);
        let (got, rest) = got.split_at(rows * self.heads * d);
        assert!(rest.iter().all(|&x| x == POISON), "a row of no sequence was written");
        got.to_vec()
    }
}

fn narrowed(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::F8 => values.iter().map(|&v| f8::encode(v)).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}

fn case() -> Case {
    let seqs = vec![(1, 150), (70, 70), (0, 5), (5, 133), (1, 1)];
    let (softcap, sinks, window, kv, as_stored_in) = (None, false, None, DType::BF16, None);
    Case { heads: 4, groups: 2, size: 16, page_size: 16, window, softcap, sinks, kv, as_stored_in, seqs }
}

#[test]
fn agrees_with_the_naive_twin() {
    let cases = [
        case(),
        Case { heads: 3, groups: 3, size: 8, page_size: 7, kv: DType::F32, ..case() },
        Case { heads: 5, groups: 1, size: 80, page_size: 1, kv: DType::F16, ..case() },
        Case { heads: 2, groups: 1, size: 300, page_size: 64, kv: DType::F16, ..case() },
        Case { window: Some(1), ..case() },
        Case { window: Some(20), page_size: 3, ..case() },
        Case { window: Some(100), size: 24, kv: DType::F32, ..case() },
        Case { heads: 3, groups: 3, size: 7, page_size: 5, ..case() },
        Case { heads: 2, groups: 1, size: 128, page_size: 64, seqs: vec![(200, 200), (3, 130)], ..case() },
        Case { heads: 5, groups: 1, size: 80, ..case() },
        Case { kv: DType::I8, ..case() },
        Case { kv: DType::I8, window: Some(20), page_size: 3, ..case() },
        Case { kv: DType::I8, heads: 3, groups: 3, size: 7, page_size: 5, ..case() },
        Case { kv: DType::I8, heads: 5, groups: 1, size: 80, page_size: 1, ..case() },
        Case {
            kv: DType::I8,
            heads: 2,
            groups: 1,
            size: 128,
            page_size: 64,
            seqs: vec![(200, 200), (3, 130)],
            ..case()
        },
        Case { kv: DType::F8, ..case() },
        Case { kv: DType::F8, heads: 3, groups: 3, size: 7, page_size: 5, window: Some(20), ..case() },
        Case { softcap: Some(0.5), ..case() },
        Case { softcap: Some(0.5), kv: DType::F32, ..case() },
        Case { sinks: true, kv: DType::F32, size: 256, ..case() },
        Case { sinks: true, size: 256, kv: DType::I8, window: Some(20), ..case() },
        Case { sinks: true, softcap: Some(2.0), kv: DType::F16, ..case() },
    ];
    for case in cases {
        let want = case.naive();
        same_bits(|device| {
            let got = case.run(device);
            close(
                &got,
                &want,
                if matches!(case.kv, DType::BF16 | DType::I8 | DType::F8) { 2.0f32.powi(-9) } else { 2e-6 },
            );
            got
        });
    }
}

/// Bits depend on the token prefix only: not on page size, chunking of the prompt, or company.
#[test]
fn pages_chunking_and_company_do_not_matter() {
    let device = CpuBackend::new(CpuOptions::default()).unwrap();
    let plain =
        [(None, DType::BF16), (Some(37), DType::BF16), (None, DType::I8), (Some(37), DType::I8), (None, DType::F8)];
    let plain = plain.map(|(window, kv)| Case { window, kv, ..case() });
    let extra = [DType::BF16, DType::F32].map(|kv| Case { softcap: Some(1.0), sinks: true, kv, ..case() });
    for case in plain.into_iter().chain(extra) {
        let width = 4 * 16;
        let whole = Case { seqs: vec![(150, 150)], ..case.clone() }.run(&device);
        for page_size in [1, 5, 16, 64, 200] {
            for rows in [1, 2, 13, 64, 149] {
                for context in [rows, 65.max(rows), 128.max(rows), 150] {
                    let seqs = vec![(rows, context), (3, 40)];
                    let got = Case { page_size, seqs, ..case.clone() }.run(&device);
                    let want = &whole[(context - rows) * width..context * width];
                    assert!(got[..rows * width] == *want, "pages of {page_size}, {rows} rows to {context}");
                }
            }
        }
    }
}

/// Bytes, and floats of eight bits, give the bits of a bf16 cache that holds what they stand for, with few rows and with
/// many.
#[test]
fn narrow_cells_are_read_as_bf16() {
    let device = CpuBackend::new(CpuOptions::default()).unwrap();
    for rows in [1, 2, 4, 5, 70] {
        for size in [16, 31, 80, 128] {
            for kv in [DType::I8, DType::F8] {
                let narrow = Case { kv, size, seqs: vec![(rows, 150)], heads: 2, groups: 2, ..case() };
                let wide = Case { as_stored_in: Some(kv), kv: DType::BF16, ..narrow.clone() };
                assert!(narrow.run(&device) == wide.run(&device), "{kv}, {rows} rows of {size}");
            }
        }
    }
}

#[test]
#[should_panic(expected = "attention: page")]
fn pages_past_the_cache_are_a_bug() {
    let device = CpuBackend::new(CpuOptions { threads: Some(1), isa: None }).unwrap();
    let q = tensor(&device, &[0.0; 8], &[1, 8]);
    let cache = Tensor::new(&device, DType::F32, &[2, 1, 4, 8]).unwrap();
    let other = Tensor::new(&device, DType::F32, &[2, 1, 4, 8]).unwrap();
    let seq = SeqMeta { rows: 1, context_len: 3, ..SeqMeta::default() };
    bind(&device, 1, |enc| {
        enc.attention(Attention {
            out: &tensor(&device, &[0.0; 8], &[1, 8]),
            q: &q,
            k_cache: &cache,
            v_cache: &other,
            scales: None,
            seqs: &tensor_u32(&device, bytemuck::cast_slice(&[seq]), &[1, 8]),
            table: &tensor_u32(&device, &[2], &[1]),
            scale: 1.0,
            softcap: None,
            sinks: None,
            window: None,
            longest: 3,
            live: Live::All,
        })
    });
}
