//! Ranks on CUDA's driver, where there is no GPU: on libraries that do what CUDA's do (`fake_driver` of `crates/cuda`).
#![cfg(target_os = "linux")]
mod common;
#[path = "../../cuda/tests/fake_driver/mod.rs"]
#[macro_use]
mod fake_driver;

use anyfleet_cuda::{CudaBackend, CudaOptions};
use anyfleet_executor::{AnyDevice, ExecutorOptions, Part, SplitExecutor, plan_parts};
use anyfleet_models::{Place, Shard, divide_layers};
use anyfleet_runtime::{Executor, ExecutorError};
use anyfleet_tensor::{DType, WeightFormat};
use common::{batch, model};
use fake_driver::{Fake, on_fake};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Setup {
    executor: SplitExecutor,
    groups: usize,
}

/// A fixture on so many ranks in each stage, each on a device of its own; nothing has run.
fn setup(name: &str, stages: &[usize]) -> Setup {
    let model = model(name);
    let options = ExecutorOptions {
        weights: WeightFormat::Float(DType::BF16),
        kv: DType::BF16,
        activation: DType::F32,
        max_model_len: Some(64),
        kv_bytes: Some(1 << 18),
        max_sequences: 2,
        max_tokens: 16,
        page_size: None,
    };
    let ranges = divide_layers(model.spec.layers.len(), &vec![1; stages.len()]).expect("layers");
    let mut parts = Vec::new();
    for (&ranks, layers) in stages.iter().zip(ranges) {
        for rank in 0..ranks {
            let place = Place { layers: layers.clone(), rank, ranks };
            let shard = Shard::new(&model.spec, &model.weights, place).expect("heads");
            let device = CudaOptions { device: Some(parts.len().to_string()), ..Default::default() };
            let device = AnyDevice::new(Arc::new(CudaBackend::new(&device).expect("a device")));
            parts.push(Part { device, options: options.clone(), shard, available: None });
        }
    }
    let plan = plan_parts(&model.spec, &parts).expect("plan");
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let executor = SplitExecutor::load(&model, parts, &plan, |_| None, go_on).expect("load");
    Setup { executor, groups: plan.limits.cache.groups.len() }
}

impl Setup {
    fn step(&mut self, sequences: u32, rows: u32) -> Result<usize, ExecutorError> {
        let mut batch = batch(sequences, rows, self.groups);
        batch.logit_rows[0].want_logits = true;
        self.executor.submit(&batch)?;
        self.executor.wait().map(|output| output.ids.len())
    }
}

on_fake! {
    /// What makes room may wait for all devices, and a sum for a rank that waits so: the fake driver tells of each.
    fn a_step_of_ranks_makes_nothing(FAKE_CUDA_DEVICES = "3") {
        for stages in [&[2][..], &[2, 1]] {
            let mut setup = setup("llama2", stages);
            setup.executor.warm_up().expect("plans");
            let fake = Fake::new();
            let made = [
                "cuMemAlloc_v2", "cuMemHostAlloc", "cuModuleGetFunction", "cuGraphInstantiateWithFlags", "ncclGroupEnd",
            ];
            let (before, gathers) = (made.map(|name| fake.calls(name)), fake.calls("gather"));
            for (sequences, rows) in [(1, 1), (2, 1), (1, 16), (2, 8), (1, 1)] {
                assert_eq!(setup.step(sequences, rows).expect("a step"), sequences as usize);
            }
            assert_eq!(made.map(|name| fake.calls(name)), before, "{stages:?}");
            assert!(fake.calls("gather") > gathers);
        }
    }

    fn the_first_ranks_device_fails(FAKE_CUDA_DEVICES = "2") {
        leaves_no_rank_waiting(0);
    }

    /// Nobody reads what it has.
    fn another_ranks_device_fails(FAKE_CUDA_DEVICES = "2") {
        leaves_no_rank_waiting(1);
    }
}

fn leaves_no_rank_waiting(device: usize) {
    let mut setup = setup("llama2", &[2]);
    setup.executor.warm_up().expect("plans");
    setup.step(1, 3).expect("a step");
    Fake::new().fail(&format!("kernel@{device}:3"));
    let start = Instant::now();
    let error = setup.step(1, 3).expect_err("a device that failed").to_string();
    assert!(error.starts_with(&format!("cuda:{device} ")) && error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    // The fake driver gives up after ten.
    assert!(start.elapsed() < Duration::from_secs(8));
}
