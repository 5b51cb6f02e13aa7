//! Operations on experts: which kernels are launched with what, and that a row has the bits of a product by itself.
mod common;

use anyfleet_cuda::{CudaBackend, CudaWeight, Recorded, RecordedLaunch};
use anyfleet_tensor::ops::{
    Activation, Combine, ExpertGroups, GroupScore, GroupedLinear, GroupedLinearActMul, Route, Routing, Scoring,
};
use anyfleet_tensor::{Backend, DType, HostPart, HostWeight, Live, StepSizes, Tensor, WeightFormat};
use common::{names, sizes};

const BF16: WeightFormat = WeightFormat::Float(DType::BF16);
const F16: WeightFormat = WeightFormat::Float(DType::F16);
const F32: WeightFormat = WeightFormat::Float(DType::F32);

fn load(device: &CudaBackend, w: &[f32], stack: usize, cols: usize, store: WeightFormat, gated: bool) -> CudaWeight {
    let parts =
        vec![HostPart { dtype: DType::F32, rows: w.len() / cols, bytes: bytemuck::cast_slice(w), scales: None }];
    device.load(HostWeight { name: "w".into(), stack, cols, parts, store, gated }).unwrap()
}

/// Where a tensor begins.
fn at(tensor: &Tensor<CudaBackend>) -> u64 {
    tensor.buffer().address() + tensor.offset() as u64
}

/// Tensors of a product.
struct Grouped {
    backend: CudaBackend,
    recorded: Recorded,
    pairs: usize,
    x: Tensor<CudaBackend>,
    rows: Tensor<CudaBackend>,
    out: Tensor<CudaBackend>,
    gate_up: Tensor<CudaBackend>,
    weight: CudaWeight,
    offsets: Tensor<CudaBackend>,
    hits: Tensor<CudaBackend>,
}

impl Grouped {
    /// `pairs` of 7 rows of x, `experts` matrices of `2 * n` features.
    fn new(pairs: usize, experts: usize, n: usize, k: usize, store: WeightFormat, gated: bool) -> Grouped {
        let (backend, recorded) = CudaBackend::recording();
        let tensor = |dtype, shape: &[usize]| Tensor::new(&backend, dtype, shape).unwrap();
        let hits = tensor(DType::U32, &[1 + experts.min(pairs)]);
        let weight = load(&backend, &vec![1.0; experts * 2 * n * k], experts, k, store, gated);
        Grouped {
            pairs,
            x: tensor(DType::F32, &[7, k]),
            rows: tensor(DType::U32, &[pairs]),
            out: tensor(DType::F32, &[pairs, n]),
            gate_up: tensor(DType::F32, &[pairs, 2 * n]),
            offsets: tensor(DType::U32, &[experts + 1]),
            hits,
            weight,
            recorded,
            backend,
        }
    }

    fn launches(&self, gated: bool) -> Vec<RecordedLaunch> {
        let Grouped { x, rows, out, gate_up, weight, offsets, hits, .. } = self;
        let (rows, activation) = (Some(rows), Activation::GeluTanh);
        self.backend
            .run(|enc| match gated {
                false => enc.grouped_linear(GroupedLinear { out: gate_up, x, rows, weight, offsets, hits }),
                true => enc.grouped_linear_act_mul(GroupedLinearActMul {
                    out,
                    gate_up,
                    x,
                    rows,
                    weight,
                    activation,
                    offsets,
                    hits,
                }),
            })
            .unwrap();
        self.recorded.take()
    }
}

#[test]
fn kernels_follow_the_share_of_an_expert() {
    // Pairs, experts, and the kernels of bf16: its share is what an expert has of them on average.
    let large: &[&str] = &["grouped_bf16_x", "grouped_bf16_large"];
    for (pairs, experts, kernels, grid) in [
        (8, 16, &["grouped_bf16_8"] as &[&str], [5, 8, 1]),
        (64, 16, &["grouped_bf16_8"], [5, 16, 1]),
        (65, 16, &["grouped_bf16_x", "grouped_bf16_16"], [5, 16, 1]),
        (129, 16, &["grouped_bf16_x", "grouped_bf16_32"], [3, 16, 1]),
        (256, 16, &["grouped_bf16_x", "grouped_bf16_32"], [3, 16, 1]),
        (257, 16, &["grouped_bf16_x", "grouped_bf16_small"], [2, 19, 1]),
        // As many large tiles as the device has processors.
        (128 * 131, 2, &["grouped_bf16_x", "grouped_bf16_small"], [2, 263, 1]),
        (128 * 132, 2, large, [1, 133, 1]),
    ] {
        let case = Grouped::new(pairs, experts, 40, 64, BF16, true);
        let launches = case.launches(true);
        assert_eq!(names(&launches), kernels, "{pairs} pairs of {experts}");
        assert_eq!(launches[launches.len() - 1].grid, grid, "{pairs} pairs of {experts}");
        if launches.len() == 2 {
            assert_eq!(launches[0].grid, [pairs as u32, 1, 1]);
        }
        // The plain product of the same weights takes the same kernels.
        assert_eq!(names(&case.launches(false)), kernels);
    }
}

#[test]
fn products_are_given_lists_and_places() {
    let stores = [BF16, F16, WeightFormat::F8, WeightFormat::Q8, WeightFormat::Q4, F32];
    for (store, width) in stores.map(|store| (store, 128)) {
        for gated in [false, true] {
            let (pairs, experts, n, k) = (100, 9, 24, 66);
            let case = Grouped::new(pairs, experts, n, k, store, true);
            let launches = case.launches(gated);
            for launch in &launches {
                let of = |i| launch.address(i);
                let out = if gated { &case.out } else { &case.gate_up };
                // Of `LinearParams`: out, x, no bias and residual, and as live count the last offset.
                assert_eq!([of(0), of(1), of(5), of(6)], [at(out), at(&case.x), 0, 0]);
                assert_eq!(of(7), at(&case.offsets) + 4 * experts as u64);
                let word = |i: usize| launch.word(26 + i);
                let panels = (2 * n).div_ceil(16) as u32;
                assert_eq!([word(0), word(1), word(2), word(3)], [pairs as u32, k as u32, 2 * n as u32, panels]);
                assert_eq!([word(7), word(8), word(9)], [k as u32, out.cols() as u32, 0]);
                assert_eq!([word(10), word(11)], if gated { [2, 1] } else { [1, 0] });
                // What follows it.
                assert_eq!([22, 23, 24].map(of), [&case.rows, &case.offsets, &case.hits].map(at));
                assert_eq!([launch.word(50), launch.word(51)], [experts as u32, 7]);
                assert_eq!(launch.params.len(), 208);
                let copies = store != F32;
                assert_eq!(of(8) != 0, copies, "{store}");
                if copies {
                    let bytes = matches!(store, WeightFormat::Q8 | WeightFormat::Q4);
                    let row = if bytes { width } else { 2 * width };
                    assert_eq!(word(6), row, "{store}");
                    assert!(of(10) >= of(8) + u64::from(row) * pairs as u64);
                }
            }
            // Multipliers of panels, and of f8 scales of groups, lie behind the rows of all.
            let multipliers = if matches!(store, WeightFormat::F8 | WeightFormat::Q4) { 64 } else { 0 };
            assert!(launches.iter().all(|launch| launch.word(40) == multipliers), "{store}");
            if store == WeightFormat::F8 {
                assert_eq!(launches[1].address(3), launches[1].address(2) + (experts * 48 * 128) as u64);
            }
            // Scales of all matrices follow the rows and multipliers of all.
            if store == WeightFormat::Q8 {
                let bytes = (experts * 48 * 128) as u64;
                assert_eq!(launches[1].address(4), launches[1].address(2) + bytes);
            }
        }
    }
}

#[test]
fn weights_without_gates_beside_them_take_two_operations() {
    let case = Grouped::new(100, 9, 24, 64, F32, false);
    let launches = case.launches(true);
    assert_eq!(names(&launches), ["grouped_f32_4", "act_mul"]);
    assert_eq!(launches[1].address(2), at(&case.offsets) + 4 * 9, "live rows are the last offset");
    assert_eq!(launches[1].grid[0], case.pairs as u32);
}

#[test]
fn scratch_memory_is_that_of_the_largest_product() {
    let (pairs, k) = (300, 1000);
    let sizes = StepSizes { grouped_rows: pairs, grouped_widest: k, ..sizes(1, 64) };
    for store in [BF16, F16, WeightFormat::F8, WeightFormat::Q8, WeightFormat::Q4, F32] {
        let case = Grouped::new(pairs, 3, 8, k, store, true);
        case.backend.reserve(&sizes).unwrap();
        let bytes = case.recorded.bytes();
        case.launches(true);
        assert_eq!(case.recorded.bytes(), bytes, "{store}: the operation fits");
    }
}

#[test]
fn route_of_few_and_many_rows() {
    let (backend, recorded) = CudaBackend::recording();
    let header = Tensor::new(&backend, DType::U32, &[4]).unwrap();
    for (rows, experts, per_token, kernels) in [
        (1, 128, 8, &["route_few"] as &[&str]),
        (32, 2048, 2, &["route_few"]),
        (33, 128, 8, &["route_choose_128", "route_sort"]),
        (100, 129, 8, &["route_choose_512", "route_sort"]),
        (100, 513, 513, &["route_choose_2048", "route_sort"]),
    ] {
        let routing = Routing::new(&backend, rows, experts, per_token).unwrap();
        let logits = Tensor::new(&backend, DType::F32, &[rows, experts + 3]).unwrap().columns(3, experts);
        let bias = Tensor::new(&backend, DType::F32, &[experts]).unwrap();
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            let sigmoid = scoring == Scoring::Sigmoid;
            let bias = sigmoid.then_some(&bias);
            let groups = sigmoid.then_some(ExpertGroups { count: 1, kept: 1, score: GroupScore::TwoHighest });
            let (logits, routing) = (&logits, &routing);
            backend
                .run(|enc| {
                    enc.header(&header);
                    let live = Live::Tokens;
                    enc.route(Route {
                        routing,
                        logits,
                        bias,
                        scoring,
                        groups,
                        renormalise: !sigmoid,
                        scale: 2.5,
                        live,
                    });
                })
                .unwrap();
            let launches = recorded.take();
            assert_eq!(names(&launches), kernels);
            for launch in &launches {
                let Routing { weights, places, rows: list, offsets, hits } = routing;
                let addresses = [weights, places, list, offsets, hits, logits].map(at);
                assert_eq!([0, 1, 2, 3, 4, 5].map(|i| launch.address(i)), addresses);
                assert_eq!([launch.address(6), launch.address(7)], [bias.map_or(0, at), at(&header)]);
                let words = [rows, experts, per_token, experts + 3, usize::from(sigmoid), usize::from(!sigmoid)];
                assert_eq!([0, 1, 2, 3, 4, 5].map(|i| launch.word(18 + i)), words.map(|n| n as u32));
                assert_eq!((launch.word(24), launch.params.len()), (2.5f32.to_bits(), 112));
                assert_eq!([25, 26, 27].map(|i| launch.word(i)), [u32::from(sigmoid); 3]);
            }
            if let [choose, sort] = &launches[..] {
                assert_eq!((choose.grid, choose.threads), ([rows.div_ceil(8) as u32, 1, 1], 256));
                assert_eq!((sort.grid, sort.threads), ([experts as u32 + 1, 1, 1], 512));
            }
        }
    }
}

#[test]
fn more_experts_than_a_warp_has_in_reach_are_refused() {
    let (backend, recorded) = CudaBackend::recording();
    let routing = Routing::new(&backend, 2, 2049, 2).unwrap();
    let logits = Tensor::new(&backend, DType::F32, &[2, 2049]).unwrap();
    let refused = backend.run(|enc| {
        enc.route(Route {
            routing: &routing,
            logits: &logits,
            bias: None,
            scoring: Scoring::Softmax,
            groups: None,
            renormalise: true,
            scale: 1.0,
            live: Live::All,
        });
    });
    let line = refused.unwrap_err().to_string();
    assert!(line.contains("2049, at most 2048"), "{line}");
    assert_eq!(recorded.take(), []);
}

#[test]
fn combine_covers_rows_and_columns() {
    let (backend, recorded) = CudaBackend::recording();
    let tensor = |dtype, shape: &[usize]| Tensor::new(&backend, dtype, shape).unwrap();
    for (rows, per_token, width) in [(1, 1, 1), (3, 8, 1024), (17, 2, 1025)] {
        let x = tensor(DType::F32, &[rows * per_token, width + 4]).columns(4, width);
        let weights = tensor(DType::F32, &[rows, per_token]);
        let places = tensor(DType::U32, &[rows, per_token]);
        let out = tensor(DType::F32, &[rows, width]);
        for residual in [None, Some(&out)] {
            let live = Live::All;
            let op = || Combine { out: &out, x: &x, weights: &weights, places: &places, residual, live };
            backend.run(|enc| enc.combine(op())).unwrap();
            let launch = recorded.take().remove(0);
            assert_eq!((launch.kernel, launch.threads), ("combine", 256));
            assert_eq!(launch.grid, [rows as u32, width.div_ceil(1024) as u32, 1]);
            let addresses = [at(&out), at(&x), at(&weights), at(&places), residual.map_or(0, at), 0];
            assert_eq!([0, 1, 2, 3, 4, 5].map(|i| launch.address(i)), addresses);
            let stride = if residual.is_some() { width } else { 0 };
            let words = [rows, width, per_token, rows * per_token, width, width + 4, stride, 0];
            assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|i| launch.word(12 + i)), words.map(|n| n as u32));
        }
    }
}

#[cfg(feature = "emulate")]
mod emulated {
    use super::*;
    use anyfleet_tensor::Readback;
    use anyfleet_tensor::ops::{Linear, LinearActMul};
    use common::{emulated, noise};

    const N: usize = 44;
    const EXPERTS: usize = 4;
    const TOKENS: usize = 37;

    fn tensor(device: &CudaBackend, dtype: DType, shape: &[usize], bytes: &[u8]) -> Tensor<CudaBackend> {
        let tensor = Tensor::new(device, dtype, shape).unwrap();
        device.write(&tensor, bytes).unwrap();
        tensor
    }

    fn read(device: &CudaBackend, from: &Tensor<CudaBackend>) -> Vec<f32> {
        let mut values = vec![0.0f32; from.len()];
        device.read(from).unwrap().wait(bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    }

    /// `[TOKENS, 2N]`, or `[TOKENS, N]` where it is activated: what an expert's matrix by itself makes of x.
    fn alone(device: &CudaBackend, x: &Tensor<CudaBackend>, weight: &CudaWeight, gated: bool) -> Vec<f32> {
        let [out, gate_up] = [N, 2 * N].map(|n| tensor(device, DType::F32, &[TOKENS, n], &[]));
        let (activation, live) = (Activation::Silu, Live::All);
        device
            .run(|enc| {
                if gated {
                    let (out, gate_up) = (&out, &gate_up);
                    enc.linear_act_mul(LinearActMul { out, gate_up, x, weight, bias: None, activation, live });
                } else {
                    enc.linear(Linear { out: &gate_up, x, weight, bias: None, residual: None, live });
                }
            })
            .unwrap();
        read(device, if gated { &out } else { &gate_up })
    }

    #[test]
    fn a_row_has_the_bits_of_a_product_by_itself_in_every_kernel() {
        let Some(device) = emulated(CudaBackend::emulated) else { return };
        let k = 998;
        let x_values = noise(96, TOKENS * k);
        let x = tensor(&device, DType::F32, &[TOKENS, k], bytemuck::cast_slice(&x_values));
        let w = noise(98, EXPERTS * 2 * N * k);
        for store in [F32, BF16, F16, WeightFormat::F8, WeightFormat::Q8, WeightFormat::Q4] {
            for gated in [false, true] {
                let want: Vec<_> = w
                    .chunks(2 * N * k)
                    .map(|w| alone(&device, &x, &load(&device, w, 1, k, store, gated), gated))
                    .collect();
                let weight = load(&device, &w, EXPERTS, k, store, gated);
                // Direct kernels, once and more than once in a block; 16, 32; small tiles, large ones.
                for (counts, capacity) in [
                    ([1, 0, 3, 2], 6),
                    ([0, 15, 0, 1], 16),
                    ([3, 19, 0, 5], 32),
                    ([9, 2, 40, 3], 64),
                    ([70, 1, 0, 64], 140),
                    ([130, 257, 0, 1], 4 * 128),
                ] {
                    let width = if gated { N } else { 2 * N };
                    let mut offsets = vec![0u32];
                    offsets.extend(counts.iter().scan(0, |sum, &count| {
                        *sum += count;
                        Some(*sum)
                    }));
                    let mut hits: Vec<u32> = (0..EXPERTS as u32).filter(|&e| counts[e as usize] > 0).collect();
                    hits.insert(0, hits.len() as u32);
                    hits.resize(1 + EXPERTS, 9);
                    let rows: Vec<u32> = (0..capacity as u32).map(|i| i * 29 % TOKENS as u32).collect();
                    let words =
                        |words: &[u32]| tensor(&device, DType::U32, &[words.len()], bytemuck::cast_slice(words));
                    let (offsets, hits, list) = (words(&offsets), words(&hits), words(&rows));
                    let untouched = vec![7.0f32; capacity * 2 * N];
                    let [out, gate_up] = [N, 2 * N].map(|n| {
                        tensor(&device, DType::F32, &[capacity, n], bytemuck::cast_slice(&untouched[..capacity * n]))
                    });
                    // As rows of x in the order of places, too.
                    let sorted: Vec<f32> =
                        rows.iter().flat_map(|&row| x_values[row as usize * k..][..k].iter().copied()).collect();
                    let sorted = tensor(&device, DType::F32, &[capacity, k], bytemuck::cast_slice(&sorted));
                    let rows_at = &rows;
                    for (x, rows_of) in [(&x, Some(&list)), (&sorted, None)] {
                        let (activation, rows) = (Activation::Silu, rows_of);
                        let (offsets, hits, weight) = (&offsets, &hits, &weight);
                        device
                            .run(|enc| match gated {
                                false => {
                                    enc.grouped_linear(GroupedLinear { out: &gate_up, x, rows, weight, offsets, hits })
                                }
                                true => enc.grouped_linear_act_mul(GroupedLinearActMul {
                                    out: &out,
                                    gate_up: &gate_up,
                                    x,
                                    rows,
                                    weight,
                                    activation,
                                    offsets,
                                    hits,
                                }),
                            })
                            .unwrap();
                        let got = read(&device, if gated { &out } else { &gate_up });
                        let expert_of = (0..EXPERTS).flat_map(|e| vec![e; counts[e] as usize]);
                        let live = counts.iter().sum::<u32>() as usize;
                        for ((place, expert), got) in expert_of.enumerate().zip(got.chunks(width)) {
                            let want = &want[expert][rows_at[place] as usize * width..][..width];
                            let differs = got.iter().zip(want).position(|(a, b)| a.to_bits() != b.to_bits());
                            assert_eq!(differs, None, "{store}, gated {gated}, {counts:?}: place {place}");
                        }
                        assert!(got[live * width..].iter().all(|&v| v == 7.0), "{store}: rows past the last place");
                    }
                }
            }
        }
    }

    /// Weights of rows as bits, and their experts, of logits `[rows, experts]`.
    fn routed(device: &CudaBackend, logits: &[f32], experts: usize, per_token: usize) -> Vec<(u32, usize)> {
        let rows = logits.len() / experts;
        let routing = Routing::new(device, rows, experts, per_token).unwrap();
        let logits = tensor(device, DType::F32, &[rows, experts], bytemuck::cast_slice(logits));
        let (scoring, live) = (Scoring::Softmax, Live::All);
        device
            .run(|enc| {
                let (routing, logits) = (&routing, &logits);
                enc.route(Route {
                    routing,
                    logits,
                    bias: None,
                    scoring,
                    groups: None,
                    renormalise: false,
                    scale: 1.0,
                    live,
                });
            })
            .unwrap();
        let bits = |tensor| read(device, tensor).into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        let (offsets, list) = (bits(&routing.offsets), bits(&routing.rows));
        let pairs = bits(&routing.weights).into_iter().zip(bits(&routing.places));
        let pair = |(i, (weight, place)): (usize, (u32, u32))| {
            assert_eq!(list[place as usize] as usize, i / per_token);
            (weight, offsets.partition_point(|&offset| offset <= place) - 1)
        };
        pairs.enumerate().map(pair).collect()
    }

    #[test]
    fn a_row_has_the_same_experts_among_few_rows_and_many() {
        let Some(device) = emulated(CudaBackend::emulated) else { return };
        let (rows, per_token) = (34, 5);
        for experts in [100, 130, 600, 2048] {
            let mut logits = noise(95, rows * experts);
            // One row is not all numbers, and one has equals: the first experts are taken.
            logits[3 * experts..4 * experts].fill(f32::NAN);
            logits[7 * experts..8 * experts].fill(0.5);
            let many = routed(&device, &logits, experts, per_token);
            let parts = logits.chunks(rows / 2 * experts);
            let few: Vec<_> = parts.flat_map(|part| routed(&device, part, experts, per_token)).collect();
            let (nan, equal) = (3 * per_token, 7 * per_token);
            for (i, (many, few)) in many.iter().zip(&few).enumerate() {
                let same = many == few || (nan..nan + per_token).contains(&i) && many.1 == few.1;
                assert!(same, "{experts} experts, pair {i}: {many:?} {few:?}");
            }
            for first in [nan, equal] {
                let chosen: Vec<usize> = many[first..first + per_token].iter().map(|&(_, expert)| expert).collect();
                assert_eq!(chosen, [0, 1, 2, 3, 4]);
            }
            // The first row's experts are those of its largest logits.
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            assert!(many[..per_token].iter().map(|&(_, expert)| expert).eq(order[..per_token].iter().copied()));
        }
    }
}
