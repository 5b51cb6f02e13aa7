//! A split model on null backends: what each device records, that the memory plan is the truth, and that a device that
//! fails takes nobody with it.
mod common;
#[path = "common/matrices.rs"]
mod matrices;

use anyfleet_executor::{AnyDevice, ExecutorOptions, MemoryPlan, Part, SplitExecutor, plan_parts};
use anyfleet_models::{LayerSpec, Place, Shard, divide_layers};
use anyfleet_runtime::Executor;
use anyfleet_tensor::null::NullBackend;
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_weights::MatrixSpec;
use common::{batch, model};
use matrices::matrix_bytes;
use std::ops::ControlFlow;
use std::sync::Arc;

struct Setup {
    devices: Vec<Arc<NullBackend>>,
    executor: SplitExecutor,
    plan: MemoryPlan,
    /// Of each device: weight matrices, which the null backend drops.
    matrices: Vec<u64>,
    /// Of each device: operations of its layers; the null backend does not fuse `linear_act_mul`, which counts as two.
    ops: Vec<usize>,
    groups: usize,
}

fn options(kv: DType) -> ExecutorOptions {
    ExecutorOptions {
        weights: WeightFormat::Float(DType::BF16),
        kv,
        activation: DType::F32,
        max_model_len: None,
        kv_bytes: Some(1 << 20),
        max_sequences: 8,
        max_tokens: 200,
        page_size: None,
    }
}

/// A fixture on so many ranks in each stage.
fn setup(name: &str, stages: &[usize], kv: DType) -> Setup {
    let model = model(name);
    let ranges = divide_layers(model.spec.layers.len(), &vec![1; stages.len()]).expect("layers");
    let (mut devices, mut parts) = (Vec::new(), Vec::new());
    for (&ranks, layers) in stages.iter().zip(ranges) {
        for rank in 0..ranks {
            let place = Place { layers: layers.clone(), rank, ranks };
            let shard = Shard::new(&model.spec, &model.weights, place).expect("heads");
            devices.push(Arc::new(NullBackend::default()));
            let device = AnyDevice::new(devices[devices.len() - 1].clone());
            parts.push(Part { device, options: options(kv), shard, available: None });
        }
    }
    let plan = plan_parts(&model.spec, &parts).expect("plan");
    let bytes = |m: &MatrixSpec| matrix_bytes(m, WeightFormat::Float(DType::BF16));
    let matrices = parts.iter().map(|part| part.shard.matrices().map(bytes).sum()).collect();
    let ops_of = |layer: &LayerSpec| if layer.mlp.experts.is_some() { 11 } else { 9 };
    let ops = parts.iter().map(|part| part.shard.spec.layers.iter().map(ops_of).sum()).collect();
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let executor = SplitExecutor::load(&model, parts, &plan, |_| None, go_on).expect("load");
    Setup { devices, executor, matrices, ops, groups: plan.limits.cache.groups.len(), plan }
}

fn step(setup: &mut Setup, sequences: u32, rows: u32) -> Result<usize, anyfleet_runtime::ExecutorError> {
    setup.executor.submit(&batch(sequences, rows, setup.groups))?;
    setup.executor.wait().map(|output| output.ids.len())
}

/// Fixtures with ranks that divide their heads, and stages.
const SPLITS: [(&str, &[usize]); 9] = [
    ("llama2", &[2]),
    ("llama-bias", &[3]),
    ("qwen3-tied", &[3]),
    ("llama-linear", &[1, 2, 1]),
    ("qwen2-window", &[1, 1]),
    ("qwen3-mixed", &[1, 3]),
    ("llama3", &[1, 1]),
    ("mixtral", &[3]),
    ("qwen3-moe", &[1, 3, 1]),
];

#[test]
fn each_device_allocates_what_was_planned_for_it() {
    for (name, stages) in SPLITS {
        for kv in [DType::BF16, DType::I8] {
            let setup = setup(name, stages, kv);
            let found: Vec<u64> =
                setup.devices.iter().map(|d| d.allocations().iter().map(|&b| b as u64).sum()).collect();
            for ((found, matrices), plan) in found.iter().zip(&setup.matrices).zip(&setup.plan.parts) {
                assert_eq!(found + matrices, plan.total(), "{name} {stages:?}: {plan}");
                assert_eq!(plan.limits, setup.plan.limits);
            }
            let parts = &setup.plan.parts;
            assert_eq!(parts.iter().map(MemoryPlan::total).sum::<u64>(), setup.plan.total());
            assert!(setup.plan.kv_cache <= 1 << 20, "{name}: {}", setup.plan);
            assert_eq!(setup.plan.to_string().matches("  on null: ").count(), setup.devices.len());
        }
    }
}

#[test]
fn each_device_runs_its_layers_and_one_the_head() {
    for (name, stages) in SPLITS {
        let mut setup = setup(name, stages, DType::BF16);
        assert_eq!(step(&mut setup, 2, 3).expect("a step"), 2);
        let heads = setup.devices.len() - stages[stages.len() - 1];
        for (i, (device, ops)) in setup.devices.iter().zip(&setup.ops).enumerate() {
            let (embeds, head) = (usize::from(i < stages[0]), if i == heads { 4 } else { 0 });
            let log = device.log();
            assert_eq!(log.len(), embeds + ops + head, "{name} {stages:?}, device {i}: {log:#?}");
        }
        let before: usize = setup.devices.iter().map(|d| d.allocations().len()).sum();
        for (sequences, rows) in [(1, 1), (8, 1), (1, 130), (8, 25)] {
            step(&mut setup, sequences, rows).expect("a step");
        }
        assert_eq!(setup.devices.iter().map(|d| d.allocations().len()).sum::<usize>(), before, "{name}");
    }
}

#[test]
fn a_device_that_fails_ends_the_step_and_not_the_next() {
    for (name, stages) in SPLITS {
        let mut setup = setup(name, stages, DType::BF16);
        for broken in 0..setup.devices.len() {
            assert!(step(&mut setup, 3, 5).is_ok());
            setup.devices[broken].break_down(true);
            for _ in 0..3 {
                let error = step(&mut setup, 3, 5).expect_err("a broken device").to_string();
                assert_eq!(error, "null: it was told to fail", "{name} {stages:?}");
            }
            setup.devices[broken].break_down(false);
        }
        assert!(step(&mut setup, 3, 5).is_ok());
        assert!(setup.executor.warm_up().is_ok());
    }
}

#[test]
fn ranks_that_compute_other_bits_do_not_share_experts() {
    let plan_with = |name: &str, numerics: [&str; 2], joined: bool| {
        let model = model(name);
        let layers = model.spec.layers.len();
        let part = |(i, numerics): (usize, &str)| {
            let place = match joined {
                true => Place { layers: 0..layers, rank: i, ranks: 2 },
                false => Place { layers: [0..1, 1..layers][i].clone(), rank: 0, ranks: 1 },
            };
            Part {
                device: AnyDevice::new(Arc::new(NullBackend::with_numerics(numerics))),
                options: options(DType::BF16),
                shard: Shard::new(&model.spec, &model.weights, place).expect("heads"),
                available: None,
            }
        };
        plan_parts(&model.spec, &numerics.into_iter().enumerate().map(part).collect::<Vec<_>>())
    };
    let model = "qwen3-moe-plain";
    assert!(plan_with(model, ["a", "a"], true).is_ok() && plan_with(model, ["a", "b"], false).is_ok());
    assert!(plan_with("llama2", ["a", "b"], true).is_ok());
    let error = plan_with(model, ["a", "b"], true).expect_err("other bits").to_string();
    assert!(error.contains("different experts") && error.contains("join devices of one kind"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn what_one_device_lacks_holds_for_all() {
    let model = model("llama2");
    let layers = model.spec.layers.len();
    let plan_with = |available: [Option<u64>; 2], max_model_len, kv_bytes| {
        let ranges = divide_layers(layers, &[1, 1]).expect("layers");
        let part = |(layers, available)| Part {
            device: AnyDevice::new(Arc::new(NullBackend::default())),
            options: ExecutorOptions { max_model_len, kv_bytes, ..options(DType::BF16) },
            shard: Shard::new(&model.spec, &model.weights, Place { layers, rank: 0, ranks: 1 }).expect("one rank"),
            available,
        };
        plan_parts(&model.spec, &ranges.into_iter().zip(available).map(part).collect::<Vec<_>>())
    };
    let all = plan_with([None, None], None, None).expect("plan");
    assert_eq!(all.limits.max_model_len, model.spec.max_position_embeddings);
    // Both stages have a layer: as much cache each.
    assert_eq!(all.parts[0].kv_cache, all.parts[1].kv_cache);
    let [first, second] = [0, 1].map(|i| all.parts[i].total() - all.parts[i].kv_cache);
    for (available, i) in [([Some(first + 40_000), None], 0), ([Some(1 << 30), Some(second + 40_000)], 1)] {
        let less = plan_with(available, None, None).expect("less cache");
        assert!(less.parts[i].kv_cache <= 36_000, "{less}");
        assert_eq!(less.parts[0].kv_cache, less.parts[1].kv_cache);
    }
    let error = plan_with([Some(first / 2), None], None, None).expect_err("no room").to_string();
    assert!(error.contains("but weights") && !error.contains('\n'), "{error}");
}
