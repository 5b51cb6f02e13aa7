//! The executor on the null backend: what it records, and that the memory plan is the truth.
mod common;
#[path = "common/matrices.rs"]
mod matrices;

use anyfleet_executor::{ExecutorOptions, MemoryPlan, ModelExecutor, plan};
use anyfleet_models::{Decoder, LoadOptions};
use anyfleet_runtime::{Batch, CacheKind, Executor};
use anyfleet_tensor::null::NullBackend;
use anyfleet_tensor::{DType, WeightFormat};
use common::{batch, model};
use matrices::matrix_bytes;
use std::sync::Arc;

fn options() -> ExecutorOptions {
    ExecutorOptions {
        weights: WeightFormat::Float(DType::BF16),
        kv: DType::BF16,
        activation: DType::F32,
        max_model_len: None,
        kv_bytes: Some(1 << 20),
        max_sequences: 8,
        max_tokens: 200,
        page_size: None,
    }
}

struct Setup {
    device: Arc<NullBackend>,
    executor: ModelExecutor<NullBackend>,
    plan: MemoryPlan,
    /// Weight matrices, which the null backend drops.
    matrices: u64,
    layers: usize,
    groups: usize,
}

fn setup(name: &str) -> Setup {
    setup_with(name, options())
}

fn setup_with(name: &str, options: ExecutorOptions) -> Setup {
    let model = model(name);
    let device = Arc::new(NullBackend::default());
    let plan = plan(&*device, &model.spec, &options).expect("plan");
    let matrices = model.weights.matrices().map(|m| matrix_bytes(m, options.weights)).sum();
    let load = LoadOptions { store: options.weights, positions: plan.limits.max_model_len, packs: None };
    let decoder = Decoder::load(&*device, &model, load, &mut |_, _| std::ops::ControlFlow::Continue(())).expect("load");
    let executor = ModelExecutor::new(device.clone(), decoder, &options, &plan).expect("executor");
    let (layers, groups) = (model.spec.layers.len(), plan.limits.cache.groups.len());
    Setup { device, executor, plan, matrices, layers, groups }
}

fn step(setup: &mut Setup, batch: &Batch) {
    setup.executor.submit(batch).expect("submit");
    let output = setup.executor.wait().expect("wait");
    assert_eq!(output.ids.len(), batch.logit_rows.len());
}

#[test]
fn a_layer_is_at_most_nine_ops_and_the_head_four() {
    let mut setup = setup("qwen3");
    step(&mut setup, &batch(2, 3, 1));
    let log = setup.device.log();
    // The null backend does not fuse linear_act_mul, so it counts as two.
    assert_eq!(log.len(), 1 + 9 * setup.layers + 4, "{log:#?}");
    assert!(log[0].starts_with("embed"));
    assert_eq!(
        log[log.len() - 4..].iter().map(|l| l.split(' ').next().unwrap_or("")).collect::<Vec<_>>(),
        ["gather", "norm", "linear", "sample"]
    );
}

#[test]
fn a_layer_of_experts_is_eleven_ops() {
    let mut setup = setup("mixtral");
    step(&mut setup, &batch(2, 3, 1));
    let log = setup.device.log();
    let layer: Vec<_> = log[1..12].iter().map(|l| l.split(' ').next().unwrap_or("")).collect();
    let want = [
        "norm",
        "linear",
        "rope_kv",
        "attention",
        "linear",
        "norm",
        "linear",
        "route",
        "grouped_linear_act_mul",
        "grouped_linear",
        "combine",
    ];
    assert_eq!(layer, want);
    assert_eq!(log.len(), 1 + 11 * setup.layers + 4, "{log:#?}");
}

#[test]
fn what_is_allocated_is_what_was_planned() {
    for name in ["llama2", "llama-bias", "mistral-window", "qwen2-window", "qwen3-mixed", "mixtral", "qwen3-moe"] {
        for kv in [DType::BF16, DType::I8, DType::F8] {
            let setup = setup_with(name, ExecutorOptions { kv, ..options() });
            let allocated: u64 = setup.device.allocations().iter().map(|&b| b as u64).sum();
            assert_eq!(allocated + setup.matrices, setup.plan.total(), "{name}: {}", setup.plan);
            assert!(setup.plan.kv_cache <= 1 << 20, "{name}: {}", setup.plan);
        }
    }
}

#[test]
fn a_cache_of_bytes_takes_a_byte_an_element_and_four_a_head() {
    let device = NullBackend::default();
    for name in ["llama2", "qwen3-mixed"] {
        let spec = model(name).spec;
        // One sequence of the full length: as many pages, whatever their size.
        let [bf16, bytes, floats] = [DType::BF16, DType::I8, DType::F8].map(|kv| {
            let options = ExecutorOptions { kv, kv_bytes: None, max_sequences: 1, ..options() };
            plan(&device, &spec, &options).expect("plan")
        });
        assert_eq!(bf16.kv_tokens, bytes.kv_tokens, "{name}");
        let size = spec.layers[0].attention.head_dim as u64;
        assert!(spec.layers.iter().all(|l| l.attention.head_dim as u64 == size), "{name}");
        assert_eq!(bytes.kv_cache * 2 * size, bf16.kv_cache * (size + 4), "{name}");
        assert_eq!(2 * floats.kv_cache, bf16.kv_cache, "{name}");
        assert_eq!(
            (bytes.weights, bytes.activations, bytes.workspace),
            (bf16.weights, bf16.activations, bf16.workspace)
        );
    }
    // Of latents there is one cache.
    let spec = model("deepseek-v2").spec;
    let [bf16, floats] = [DType::BF16, DType::F8].map(|kv| {
        let options = ExecutorOptions { kv, kv_bytes: None, max_sequences: 1, ..options() };
        plan(&device, &spec, &options).expect("plan")
    });
    let (size, layers) = (spec.layers[0].attention.head_dim as u64, spec.layers.len() as u64);
    assert_eq!((bf16.kv_cache, floats.kv_cache), (2 * floats.kv_cache, floats.kv_tokens * size * layers));
}

#[test]
fn steps_allocate_nothing() {
    let mut setup = setup("qwen2-window");
    assert_eq!(setup.groups, 2);
    let before = setup.device.allocations().len();
    for (sequences, rows) in [(1, 1), (8, 1), (3, 7), (1, 130), (8, 25)] {
        step(&mut setup, &batch(sequences, rows, 2));
    }
    assert_eq!(setup.device.allocations().len(), before);
}

#[test]
fn plans_are_recorded_per_bucket() {
    let mut setup = setup("llama2");
    for rows in [1, 3, 4, 5, 8] {
        step(&mut setup, &batch(1, rows, 1));
    }
    let embeds: Vec<String> = setup.device.log().into_iter().filter(|l| l.starts_with("embed")).collect();
    let rows: Vec<&str> = embeds.iter().map(|l| l.split(['[', ',']).nth(1).unwrap_or("")).collect();
    assert_eq!(rows, ["1", "4", "4", "8", "8"]);
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let (model, device) = (model("llama2"), NullBackend::default());
    let try_with = |change: &dyn Fn(&mut ExecutorOptions)| {
        let mut options = options();
        change(&mut options);
        plan(&device, &model.spec, &options).map_err(|e| e.to_string())
    };
    let most = model.spec.max_position_embeddings;
    let too_long = try_with(&|o| o.max_model_len = Some(most + 1)).expect_err("beyond the model");
    assert!(too_long.contains(&format!("use at most {most}")), "{too_long}");
    let no_page = try_with(&|o| o.kv_bytes = Some(16)).expect_err("no page");
    assert!(no_page.contains("smallest useful --kv-cache-memory"), "{no_page}");
    let page_bytes = try_with(&|o| o.kv_bytes = Some(1 << 20)).expect("fits").kv_cache / (1 << 20);
    assert!(page_bytes <= 1);
    let short = try_with(&|o| (o.kv_bytes, o.max_model_len) = (Some(8 << 10), Some(most))).expect_err("one sequence");
    assert!(short.contains("use --max-model-len"), "{short}");
    let lowered = try_with(&|o| o.kv_bytes = Some(64 << 10)).expect("lowered");
    assert!(lowered.limits.max_model_len < most && lowered.notes.len() == 1, "{lowered}");
    assert!(try_with(&|o| o.max_sequences = 0).is_err());
    assert!(try_with(&|o| o.max_tokens = 1).is_err());
}

#[test]
fn a_cache_is_cut_at_the_largest_buffer() {
    for (name, kv) in [("llama2", DType::BF16), ("mistral-window", DType::F32), ("qwen3", DType::I8)] {
        let spec = model(name).spec;
        let try_with = |most: u64, change: &dyn Fn(&mut ExecutorOptions)| {
            let mut options = ExecutorOptions { kv, ..options() };
            change(&mut options);
            plan(&NullBackend::with_max_buffer(most), &spec, &options).map_err(|e| e.to_string())
        };
        let row = spec.layers.iter().map(|l| l.attention.kv_heads * l.attention.head_dim * kv.size()).max();
        let row = row.expect("layers") as u64;
        let limit = spec.max_position_embeddings as u64;
        for rows in [limit * 3 + 5, limit + 16, limit / 2, 40] {
            let plan = try_with(rows * row, &|o| o.kv_bytes = Some(1 << 30)).expect("a smaller cache");
            let cache = &plan.limits.cache;
            assert!(cache.groups.iter().all(|g| u64::from(g.pages * cache.page_size) <= rows), "{name} {rows}: {plan}");
            // Of windowed layers a longer sequence needs no more.
            let windows = cache.groups.iter().all(|g| g.kind != CacheKind::Paged);
            assert!(plan.limits.max_model_len as u64 <= rows || windows, "{name} {rows}: {plan}");
            assert_eq!(plan.notes.len(), 1, "{name} {rows}: {plan}");
        }
        let error = try_with(40 * row, &|o| o.max_model_len = Some(limit as usize)).expect_err("one sequence");
        assert!(error.contains("use --max-model-len ") && !error.contains("--kv-cache-memory"), "{error}");
    }
}
