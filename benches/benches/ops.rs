//! One benchmark for each op at the shapes of a 0.6B and an 8B model.
use anyfleet_conformance::case::OpCase;
use anyfleet_conformance::cases::attention::{AttentionCase, Length};
use anyfleet_conformance::cases::embed::EmbedCase;
use anyfleet_conformance::cases::linear::{LinearCase, Residual};
use anyfleet_conformance::cases::norm::NormCase;
use anyfleet_conformance::cases::rope_kv::RopeKvCase;
use anyfleet_conformance::cases::sample::{Logits, SampleCase};
use anyfleet_conformance::matrix::Spread;
use anyfleet_cpu::{CpuBackend, CpuOptions};
use anyfleet_tensor::{Backend, DType, Live, SampleMode, WeightFormat};
use bench::Prepared;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

fn run<C: OpCase>(criterion: &mut Criterion, device: &CpuBackend, name: &str, work: Throughput, case: &C) {
    let prepared = Prepared::new(device, case).expect("the CPU takes every case here");
    let mut group = criterion.benchmark_group(C::OP);
    group.throughput(work).sample_size(20).measurement_time(Duration::from_secs(2));
    group.warm_up_time(Duration::from_millis(500));
    group.bench_function(name, |b| b.iter(|| prepared.run(device).expect("the plan runs")));
    group.finish();
}

/// One row reads the weights: bytes. Many rows multiply: floating-point operations.
fn linear(criterion: &mut Criterion, device: &CpuBackend) {
    let formats = [WeightFormat::Float(DType::BF16), WeightFormat::F8, WeightFormat::Q8];
    let shapes = [(1024, 3072), (4096, 14_336)];
    for (weight, (n, k)) in formats.into_iter().flat_map(|weight| shapes.map(|shape| (weight, shape))) {
        for rows in [1, 16, 512] {
            let work = match rows {
                1 => Throughput::Bytes(weight.bytes(n, k) as u64),
                _ => Throughput::Elements((2 * rows * n * k) as u64),
            };
            let case = LinearCase::plain(rows, n, k, DType::F32, weight);
            run(criterion, device, &format!("{weight} {n}x{k} rows={rows}"), work, &case);
        }
    }
}

/// Heads of an 8B model. Decode reads the cache: bytes. Prefill multiplies: operations.
fn attention(criterion: &mut Criterion, device: &CpuBackend) {
    let (heads, groups, size, kv) = (32, 8, 128, DType::BF16);
    for (name, rows, context) in [("decode 1@4096", 1, 4096), ("prefill 512@512", 512, 512)] {
        let work = match rows {
            1 => Throughput::Bytes((2 * context * groups * size * kv.size()) as u64),
            _ => Throughput::Elements((2 * rows * context * heads * size) as u64),
        };
        let case = AttentionCase {
            sequences: vec![Length { rows, context }],
            padding: 0,
            heads,
            groups,
            size,
            latent: None,
            page: device.caps().page_size,
            window: None,
            softcap: None,
            sinks: false,
            drop_pages: false,
            gaps: false,
            activation: DType::F32,
            kv,
            spread: Spread::Normal,
            sampled: 0,
            offset: 0,
        };
        run(criterion, device, name, work, &case);
    }
}

fn norm(criterion: &mut Criterion, device: &CpuBackend) {
    for rows in [1, 512] {
        let case = NormCase {
            rows,
            padding: 0,
            width: 4096,
            activation: DType::F32,
            in_place: false,
            residual: Residual::None,
            spread: Spread::Normal,
            eps: 1e-6,
            live: Live::All,
        };
        let work = Throughput::Bytes((2 * rows * 4096 * 4) as u64);
        run(criterion, device, &format!("f32 4096 rows={rows}"), work, &case);
    }
}

/// Heads of a 0.6B model.
fn rope_kv(criterion: &mut Criterion, device: &CpuBackend) {
    let (heads, groups, size, kv) = (16, 8, 128, DType::BF16);
    for rows in [1, 512] {
        let case = RopeKvCase {
            rows,
            padding: 0,
            heads,
            groups,
            size,
            rotary: size,
            interleaved: false,
            qk_norm: true,
            page: device.caps().page_size,
            activation: DType::F32,
            kv,
            spread: Spread::Normal,
            live: Live::All,
            offset: 0,
        };
        let bytes = rows * size * (4 * (2 * heads + 2 * groups) + kv.size() * 2 * groups);
        run(
            criterion,
            device,
            &format!("bf16 {heads}+{groups}x{size} rows={rows}"),
            Throughput::Bytes(bytes as u64),
            &case,
        );
    }
}

fn embed(criterion: &mut Criterion, device: &CpuBackend) {
    for rows in [1, 512] {
        let (vocab, width, weight) = (16_384, 1024, WeightFormat::Float(DType::BF16));
        let (padding, activation, sampled, live) = (0, DType::F32, false, Live::All);
        let case = EmbedCase { rows, padding, vocab, width, activation, weight, scale: 1.0, sampled, live };
        let work = Throughput::Bytes((rows * width * (2 + 4)) as u64);
        run(criterion, device, &format!("bf16 1024 rows={rows}"), work, &case);
    }
}

fn sample(criterion: &mut Criterion, device: &CpuBackend) {
    let modes = [
        ("greedy", SampleMode::Greedy, false),
        ("random", SampleMode::Random, false),
        ("random, penalties", SampleMode::Random, true),
    ];
    for (name, mode, adjusted) in modes {
        for rows in [1, 16] {
            let vocab = 151_936;
            let (mode, logits, live) = (Some(mode), Logits::Smooth, Live::All);
            let case = SampleCase { rows, padding: 0, vocab, logits, mode, adjusted, masked: false, live };
            let work = Throughput::Bytes((rows * vocab * 4) as u64);
            run(criterion, device, &format!("{name} 152k rows={rows}"), work, &case);
        }
    }
}

fn ops(criterion: &mut Criterion) {
    let device = CpuBackend::new(CpuOptions::default()).expect("the CPU opens");
    println!("{}", device.caps().device);
    linear(criterion, &device);
    attention(criterion, &device);
    norm(criterion, &device);
    rope_kv(criterion, &device);
    embed(criterion, &device);
    sample(criterion, &device);
}

criterion_group!(benches, ops);
criterion_main!(benches);
