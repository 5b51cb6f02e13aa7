//! Warpgroups have the bits of the kernels in whose place they stand.
#![cfg(feature = "emulate")]
use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_tensor::ops::{Activation, Linear, LinearActMul};
use anyfleet_tensor::{Backend, DType, HostPart, HostWeight, Live, Readback, StepHeader, Tensor, WeightFormat};

/// Without warpgroups and with them; nothing where kernels cannot be compiled.
fn devices() -> Option<[CudaBackend; 2]> {
    let open = |warpgroups| CudaBackend::emulated_with(&CudaOptions { warpgroups, ..Default::default() });
    match (open(None), open(Some(true))) {
        (Ok(without), Ok(with)) => Some([without, with]),
        (Err(reason), _) | (_, Err(reason)) => {
            let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name.trim() == "cuda"), "ANYFLEET_REQUIRE={required}: {reason}");
            eprintln!("SKIPPED on cuda: {reason} (ANYFLEET_REQUIRE=cuda makes this a failure)");
            None
        }
    }
}

/// Numbers that look random, between -1 and 1.
fn noise(seed: u32, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as i32 as f32 / i32::MAX as f32
    };
    (0..n).map(next).collect()
}

fn tensor(device: &CudaBackend, shape: &[usize], values: &[f32]) -> Tensor<CudaBackend> {
    let tensor = Tensor::new(device, DType::F32, shape).unwrap();
    device.write(&tensor, bytemuck::cast_slice(values)).unwrap();
    tensor
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
    let values = noise(1, features * width);
    let parts =
        vec![HostPart { dtype: DType::F32, rows: features, bytes: bytemuck::cast_slice(&values), scales: None }];
    let weight = &device.load(HostWeight { name: "w".into(), stack: 1, cols: width, parts, store, gated }).unwrap();
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
