//! What a step costs on wgpu, counted: submissions, kernels, bytes, and nothing made once it is warm.
mod common;

use anyfleet_conformance::require::skipped;
use anyfleet_executor::{ExecutorOptions, MemoryPlan, ModelExecutor, plan};
use anyfleet_models::{Decoder, LoadOptions};
use anyfleet_runtime::Executor;
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_wgpu::{Variant, WgpuBackend, WgpuCounts, WgpuOptions};
use common::{batch, model};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// The software adapter, where the machine has its driver.
fn software(variant: Variant) -> Option<Arc<WgpuBackend>> {
    open(variant, None)
}

/// The same with a folder for compiled kernels.
fn open(variant: Variant, compiled: Option<&Path>) -> Option<Arc<WgpuBackend>> {
    let compiled = compiled.map(Path::to_owned);
    let options = WgpuOptions { adapter: Some("llvmpipe".into()), variant, compiled, ..Default::default() };
    WgpuBackend::new(&options).map(Arc::new).map_err(|e| skipped("wgpu", e)).ok()
}

struct Setup {
    executor: ModelExecutor<WgpuBackend>,
    plan: MemoryPlan,
    layers: usize,
    groups: usize,
}

fn setup(device: &Arc<WgpuBackend>, name: &str, weights: WeightFormat, kv_bytes: u64) -> Setup {
    let options = ExecutorOptions {
        weights,
        kv: DType::BF16,
        activation: DType::F32,
        // A segment of keys: longer ones have a kernel more.
        max_model_len: Some(256),
        kv_bytes: Some(kv_bytes),
        max_sequences: 8,
        max_tokens: 64,
        page_size: None,
    };
    let model = model(name);
    let plan = plan(&**device, &model.spec, &options).expect("plan");
    let load = LoadOptions { store: options.weights, positions: plan.limits.max_model_len, packs: None };
    let decoder = Decoder::load(&**device, &model, load, &mut |_, _| ControlFlow::Continue(())).expect("load");
    let mut executor = ModelExecutor::new(device.clone(), decoder, &options, &plan).expect("executor");
    executor.warm_up().expect("plans");
    Setup { executor, layers: model.spec.layers.len(), groups: plan.limits.cache.groups.len(), plan }
}

/// A step of so many sequences and rows each, and what it counted.
fn step(device: &WgpuBackend, setup: &mut Setup, sequences: u32, rows: u32) -> WgpuCounts {
    let before = device.counts();
    setup.executor.submit(&batch(sequences, rows, setup.groups)).expect("submit");
    setup.executor.wait().expect("wait");
    let after = device.counts();
    WgpuCounts {
        submits: after.submits - before.submits,
        buffers: after.buffers - before.buffers,
        bind_groups: after.bind_groups - before.bind_groups,
        pipelines: after.pipelines - before.pipelines,
        bytes: after.bytes - before.bytes,
        dispatches: after.dispatches - before.dispatches,
    }
}

#[test]
fn a_warm_step_is_one_submission_and_makes_nothing() {
    for (name, weights, variant) in [
        ("llama3", WeightFormat::Float(DType::BF16), Variant::Portable),
        ("qwen3-mixed", WeightFormat::Q8, Variant::Portable),
        ("mistral-window", WeightFormat::Q4, Variant::Portable),
        ("qwen3-mixed", WeightFormat::Q8, Variant::Packed),
        ("mistral-window", WeightFormat::Q4, Variant::Packed),
        ("qwen3-moe", WeightFormat::Float(DType::BF16), Variant::Portable),
        ("mixtral", WeightFormat::Q4, Variant::Packed),
    ] {
        let Some(device) = software(variant) else { return };
        let mut setup = setup(&device, name, weights, 1 << 20);
        // The first makes the buffer that results go through.
        step(&device, &mut setup, 1, 1);
        for (sequences, rows) in [(1, 1), (1, 16), (3, 1), (8, 1), (2, 7), (1, 64), (8, 8), (1, 1)] {
            let counts = step(&device, &mut setup, sequences, rows);
            let label = format!("{name} {weights} {variant}, {sequences} sequences of {rows} rows: {counts:?}");
            assert_eq!((counts.submits, counts.buffers, counts.bind_groups, counts.pipelines), (1, 0, 0, 0), "{label}");
        }
    }
}

#[test]
fn a_decode_step_runs_eight_kernels_a_layer_and_is_given_what_it_must_read() {
    let name = "pocket";
    for (weights, variant) in [
        (WeightFormat::Float(DType::BF16), Variant::Portable),
        (WeightFormat::Q8, Variant::Portable),
        (WeightFormat::Q8, Variant::Packed),
        (WeightFormat::Float(DType::F32), Variant::Portable),
    ] {
        let Some(device) = software(variant) else { return };
        let mut setup = setup(&device, name, weights, 32 << 20);
        let counts = step(&device, &mut setup, 1, 1);
        // Beside the layers: embed, gather, norm, linear and sample.
        assert_eq!(counts.dispatches as usize, 8 * setup.layers + 5, "{name}");
        let (must, given) = (setup.plan.weights + setup.plan.kv_cache, device.bound_bytes());
        println!("{name} {weights} {variant}: {given} bytes given, {must} of weights and KV cache");
        assert!(given <= must + must / 20, "{name}: {given} bytes for {must} of weights and KV cache");
        assert!(given >= must / 2, "{name}: {given} bytes cannot be all of {must}");
    }
}

#[test]
fn what_is_made_on_the_device_is_what_the_plan_says() {
    let formats = [WeightFormat::Float(DType::BF16), WeightFormat::Q8, WeightFormat::Q4];
    let pocket = formats.map(|format| ("pocket", format, 8 << 20));
    let experts = ("qwen3-moe", WeightFormat::Float(DType::BF16), 4 << 20);
    for (name, weights, kv) in pocket.into_iter().chain([experts]) {
        let Some(device) = software(Variant::Portable) else { return };
        let setup = setup(&device, name, weights, kv);
        let (made, planned) = (device.counts().bytes, setup.plan.total());
        println!("{name} {weights}: {made} bytes made, {planned} planned");
        // Parameters of kernels come on top: a few words for each of a bucket's.
        assert!(made <= planned + planned / 50, "{name} {weights}: {made} bytes made, {planned} planned");
        assert!(made >= planned - planned / 50, "{name} {weights}: {made} bytes made, {planned} planned");
    }
}

#[test]
fn a_lost_device_is_an_error_that_names_it_and_another_can_be_opened() {
    let Some(device) = software(Variant::Portable) else { return };
    let weights = WeightFormat::Float(DType::BF16);
    let mut lost = setup(&device, "llama3", weights, 1 << 20);
    step(&device, &mut lost, 2, 3);
    device.destroy();
    for _ in 0..2 {
        let step = &batch(2, 3, lost.groups);
        let outcome = lost.executor.submit(step).and_then(|()| lost.executor.wait().map(drop));
        let error = outcome.expect_err("the device is gone").to_string();
        assert!(error.contains("llvmpipe") && error.contains("build the engine again"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let device = software(Variant::Portable).expect("another");
    let mut again = setup(&device, "llama3", weights, 1 << 20);
    step(&device, &mut again, 2, 3);
}

#[test]
fn compiled_kernels_are_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(device) = open(Variant::Portable, Some(folder.path())) else { return };
    if !device.adapter().features.contains(&"pipeline cache") {
        eprintln!("SKIPPED: {} gives no compiled kernels out", device.adapter().name);
        return;
    }
    step(&device, &mut setup(&device, "llama3", WeightFormat::Q8, 1 << 20), 1, 1);
    let files = || std::fs::read_dir(folder.path()).expect("a folder").map(|file| file.expect("a file").path());
    let kept: Vec<_> = files().collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(std::fs::metadata(&kept[0]).expect("a file").len() > 0);
    // One that was damaged is no reason not to start.
    for damaged in [&b""[..], b"nothing of a driver's", &[0xff; 4096]] {
        std::fs::write(&kept[0], damaged).expect("written");
        let device = open(Variant::Portable, Some(folder.path())).expect("a device");
        step(&device, &mut setup(&device, "llama3", WeightFormat::Q8, 1 << 20), 1, 1);
    }
}
