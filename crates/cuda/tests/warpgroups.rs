//! Warpgroups have the bits of the kernels in whose place they stand.
#![cfg(feature = "emulate")]
mod common;

use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::ops::{Activation, Attention, Linear, LinearActMul};
use anyfleet_tensor::{Backend, DType, Live, Readback, SeqMeta, StepHeader, Tensor, WeightFormat};
use common::{emulated, load, noise, tensor};
use half::bf16;

/// Without warpgroups and with them; nothing where kernels cannot be compiled.
fn devices() -> Option<[CudaBackend; 2]> {
    let open = |warpgroups| CudaBackend::emulated_with(&CudaOptions { warpgroups, ..Default::default() });
    emulated(|| Ok([open(None)?, open(Some(true))?]))
}

struct Case {
    rows: usize,
    live: usize,
    features: usize,
    width: usize,
    store: WeightFormat,
    gated: bool,
    added: bool,
}

fn product(device: &CudaBackend, case: &Case) -> Vec<u32> {
    let &Case { rows, live, features, width, store, gated, added } = case;
    let weight = &load(device, &noise(1, features * width), width, store, gated);
    let columns = if gated { features / 2 } else { features };
    let header = Tensor::new(device, DType::U32, &[4]).unwrap();
    let counts = StepHeader { tokens: live as u32, ..StepHeader::default() };
    device.write(&header, bytemuck::bytes_of(&counts)).unwrap();
    // What is not live is anything.
    let mut x = noise(2, rows * width);
    x[live * width..].fill(f32::NAN);
    let x = &tensor(device, &[rows, width], &x);
    let [bias, residual] =
        [tensor(device, &[features], &noise(3, features)), tensor(device, &[rows, columns], &noise(4, rows * columns))];
    let [bias, residual] = [&bias, &residual].map(|tensor| added.then_some(tensor));
    let wide = tensor(device, &[rows, features], &vec![f32::NAN; rows * features]);
    let out = &tensor(device, &[rows, columns], &vec![f32::NAN; rows * columns]);
    let live = Live::Tokens;
    device
        .run(|encoder| {
            encoder.header(&header);
            if gated {
                let (gate_up, activation) = (&wide, Activation::Silu);
                encoder.linear_act_mul(LinearActMul { out, gate_up, x, weight, bias, activation, live });
            } else {
                encoder.linear(Linear { out, x, weight, bias, residual, live });
            }
        })
        .unwrap();
    let mut got = vec![0u32; rows * columns];
    device.read(out).unwrap().wait(bytemuck::cast_slice_mut(&mut got)).unwrap();
    got
}

#[test]
fn products_have_the_bits_of_other_kernels() {
    let Some([without, with]) = devices() else { return };
    let [bf16, f16] = [DType::BF16, DType::F16].map(WeightFormat::Float);
    let case =
        |store, rows, live, features, width| Case { rows, live, features, width, store, gated: false, added: true };
    // Tails of rows, features and blocks; segments of one line and of several, the last one short; tiles after tiles, and
    // tiles without rows.
    let mut cases = vec![
        case(bf16, 65, 65, 16, 32),
        case(bf16, 128, 127, 128, 64),
        case(bf16, 200, 129, 150, 70),
        case(bf16, 300, 100, 264, 1000),
        case(bf16, 130, 130, 72, 2088),
        case(f16, 66, 66, 130, 300),
        case(f16, 257, 256, 72, 1100),
    ];
    cases.push(Case { gated: true, added: false, ..case(bf16, 129, 100, 140, 96) });
    cases.push(Case { gated: true, ..case(f16, 129, 129, 320, 96) });
    for case in &cases {
        let name = format!("{:?} {}/{} rows, {}x{}", case.store, case.live, case.rows, case.features, case.width);
        let [want, got] = [&without, &with].map(|device| product(device, case));
        let different = want.iter().zip(&got).filter(|(want, got)| want != got).count();
        assert_eq!(different, 0, "{name}: of {}", want.len());
    }
}

const PAGE: usize = 16;

/// Attention of one or more sequences.
#[derive(Clone, Copy)]
struct Mixing {
    size: usize,
    groups: usize,
    /// Query heads of each.
    heads: usize,
    /// Rows, and tokens with those before them.
    sequences: &'static [(usize, usize)],
    softcap: Option<f32>,
    sinks: bool,
    window: Option<u32>,
    /// Positions and columns of the first sequence's values that are infinite.
    infinite: &'static [(usize, usize)],
}

impl Mixing {
    fn pages(&self) -> usize {
        self.sequences.iter().map(|&(_, context)| context.div_ceil(PAGE)).sum()
    }

    /// Pages lie in reverse, and what no token fills is not a number.
    fn cells(&self, seed: u32, infinite: &[(usize, usize)]) -> Vec<bf16> {
        let &Mixing { size, groups, .. } = self;
        let values = noise(seed, self.pages() * groups * PAGE * size);
        let mut cells: Vec<bf16> = values.into_iter().map(bf16::from_f32).collect();
        let mut page = self.pages();
        for (sequence, &(_, context)) in self.sequences.iter().enumerate() {
            for at in 0..context.next_multiple_of(PAGE) {
                page -= usize::from(at % PAGE == 0);
                for group in 0..groups {
                    let head = &mut cells[((page * groups + group) * PAGE + at % PAGE) * size..][..size];
                    if at >= context {
                        head.fill(bf16::NAN);
                    }
                    let here = infinite.iter().filter(|(position, _)| sequence == 0 && *position == at);
                    here.for_each(|&(_, column)| head[column] = bf16::INFINITY);
                }
            }
        }
        cells
    }

    fn seqs(&self) -> Vec<SeqMeta> {
        let (mut row, mut entry) = (0, 0);
        let seq = |&(rows, context): &(usize, usize)| {
            let seq = SeqMeta {
                row_start: row,
                rows: rows as u32,
                context_len: context as u32,
                table_start: entry,
                ..SeqMeta::default()
            };
            row += rows as u32;
            entry += context.div_ceil(PAGE) as u32;
            seq
        };
        self.sequences.iter().map(seq).collect()
    }

    fn attend(&self, device: &CudaBackend) -> Vec<f32> {
        let &Mixing { size, groups, heads, sequences, softcap, window, .. } = self;
        let rows: usize = sequences.iter().map(|(rows, _)| rows).sum();
        let width = groups * heads * size;
        let pages = self.pages();
        let shaped = |dtype, shape: &[usize]| Tensor::new(device, dtype, shape).unwrap();
        let caches = [(11, &[] as &[_]), (12, self.infinite)].map(|(seed, infinite)| {
            let cache = shaped(DType::BF16, &[pages, groups, PAGE, size]);
            device.write(&cache, bytemuck::cast_slice(&self.cells(seed, infinite))).unwrap();
            cache
        });
        let (seqs, table) = (shaped(DType::U32, &[sequences.len(), 8]), shaped(DType::U32, &[pages]));
        device.write(&seqs, bytemuck::cast_slice(&self.seqs())).unwrap();
        device.write(&table, bytemuck::cast_slice(&(0..pages as u32).rev().collect::<Vec<_>>())).unwrap();
        let mut q: Vec<f32> = noise(13, rows * width).into_iter().map(|v| 3.0 * v).collect();
        if !self.infinite.is_empty() {
            // The second head of a row, whose first column lies behind the first head's last.
            q[5 * width + size] = f32::INFINITY;
        }
        let (q, out) = (tensor(device, &[rows, width], &q), tensor(device, &[rows, width], &vec![7.0; rows * width]));
        let sinks = self.sinks.then(|| tensor(device, &[groups * heads], &noise(14, groups * heads)));
        let attention = Attention {
            out: &out,
            q: &q,
            k_cache: &caches[0],
            v_cache: &caches[1],
            scales: None,
            sinks: sinks.as_ref(),
            seqs: &seqs,
            table: &table,
            scale: 0.3,
            softcap,
            window,
            longest: sequences.iter().map(|(_, context)| *context).max().unwrap(),
            live: Live::All,
        };
        device.run(|encoder| encoder.attention(attention)).unwrap();
        let mut got = vec![0.0f32; rows * width];
        device.read(&out).unwrap().wait(bytemuck::cast_slice_mut(&mut got)).unwrap();
        got
    }
}

#[test]
fn attention_has_the_bits_of_other_kernels() {
    let Some([without, with]) = devices() else { return };
    let plain = Mixing {
        size: 64,
        groups: 2,
        heads: 2,
        sequences: &[(70, 70)],
        softcap: None,
        sinks: false,
        window: None,
        infinite: &[],
    };
    let cases = [
        plain,
        // Three segments, the last one short; tiles that begin within a token's heads; sequences one after the other.
        Mixing { size: 128, heads: 3, sequences: &[(40, 600), (33, 33)], softcap: Some(5.0), ..plain },
        // Heads that do not fill their columns, whole and not whole pieces of sixteen bytes.
        Mixing { size: 40, groups: 1, sequences: &[(66, 322)], sinks: true, ..plain },
        Mixing { size: 36, heads: 1, sequences: &[(65, 129)], ..plain },
        Mixing { size: 80, heads: 1, sequences: &[(100, 700)], window: Some(50), ..plain },
        Mixing { size: 100, groups: 1, sequences: &[(9, 9), (80, 300)], window: Some(130), sinks: true, ..plain },
        // Values that some tokens see: in chunks that others see in part, in even and in odd columns.
        Mixing { size: 96, heads: 1, sequences: &[(70, 100)], infinite: &[(60, 2)], ..plain },
        Mixing { size: 128, heads: 3, sequences: &[(70, 330)], infinite: &[(300, 127), (321, 65)], ..plain },
        Mixing { size: 44, heads: 1, sequences: &[(66, 66)], infinite: &[(1, 43)], window: Some(9), ..plain },
    ];
    for (i, case) in cases.iter().enumerate() {
        let [want, got] = [&without, &with].map(|device| case.attend(device));
        // What is not a number has no certain bits.
        let same = |(want, got): &(&f32, &f32)| want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan();
        let different = want.iter().zip(&got).filter(|pair| !same(pair)).count();
        assert_eq!(different, 0, "case {i}, heads of {}: of {}", case.size, want.len());
        let finite = want.iter().filter(|v| v.is_finite()).count();
        assert!(finite > 0 && (finite == want.len()) == case.infinite.is_empty(), "case {i}: {finite}");
    }
}
