//! Models on several devices: layers divided among them, and layers shared by them. Both against one device and against
//! Hugging Face transformers.
mod common;

use anyfleet::{
    DTypeSpec, DeviceSpec, Engine, EngineBuilder, Error, GenerateRequest, KvDType, QuantizeSpec, SamplingParams,
    StreamEvent, TokenStream,
};
use common::company::{alone, assert_same, requests, together};
use common::reference::{F32_TOLERANCE, assert_bf16_sized, equal_greedy_ids, errors_of, name, worst};
use common::{Driver, expected, fixtures, fixtures_dir, software_vulkan};
use std::path::{Path, PathBuf};

fn builder(dir: &Path, device: &str) -> EngineBuilder {
    let device: DeviceSpec = device.parse().expect("a device");
    Engine::builder(dir.to_string_lossy()).device(device).dtype(DTypeSpec::F32).kv_cache_bytes(4 << 20).max_num_seqs(4)
}

/// Every fixture on as few CPU ranks, more than one, as its heads can be shared out among. Gemmas norm what a layer adds,
/// and all heads of DeepSeeks have one latent: they are refused.
fn on_ranks() -> Vec<(PathBuf, String)> {
    let (whole, shared): (Vec<PathBuf>, Vec<PathBuf>) = fixtures()
        .into_iter()
        .partition(|dir| ["gemma", "deepseek"].iter().any(|family| name(dir).starts_with(family)));
    for dir in whole {
        let error = builder(&dir, "cpu+cpu").plan().expect_err("a refusal").to_string();
        assert!(error.contains("cannot be shared out") && !error.contains('\n'), "{error}");
    }
    let ranks = |dir: &PathBuf| {
        let names = (2..=3).map(|n| vec!["cpu"; n].join("+"));
        let works = |name: &String| builder(dir, name).plan().is_ok();
        names.into_iter().find(works).unwrap_or_else(|| panic!("{}: neither 2 nor 3 ranks", name(dir)))
    };
    shared.into_iter().map(|dir| (dir.clone(), ranks(&dir))).collect()
}

/// All logits of all prompts.
fn logits(builder: &EngineBuilder, dir: &Path) -> Vec<f32> {
    let mut executor = builder.executor().unwrap_or_else(|e| panic!("{}: {e}", name(dir)));
    let mut driver = Driver { executor: &mut *executor, chunk: 37 };
    let all = |ids: &[u32]| (0..ids.len()).collect::<Vec<_>>();
    expected(dir).prompts.iter().flat_map(|p| driver.score(&p.ids, &all(&p.ids)).1).flatten().collect()
}

#[test]
fn ranks_are_as_close_to_transformers_as_one_device() {
    for (dir, device) in on_ranks() {
        let (reference, base) = (expected(&dir), builder(&dir, &device));
        let found = worst(&errors_of(&dir, &reference, base.clone(), 37));
        let bf16 = errors_of(&dir, &reference, base.clone().dtype(DTypeSpec::Bf16), 512);
        let what = format!("{} on {device}", name(&dir));
        println!("{what}: f32 max error {found:.1e}; bf16 {bf16:.4?}");
        assert!(found <= F32_TOLERANCE, "{what}: error {found} in f32");
        assert_bf16_sized(&what, bf16, reference.bf16_error_against_f32);
        let compared = equal_greedy_ids(&what, &base.build().expect("engine"), reference.prompts);
        assert!(compared >= 64, "{what}: only {compared} greedy ids could be compared");
    }
}

#[test]
fn stages_of_ranks_are_close_to_transformers_too() {
    for (model, device) in
        [("llama-linear", "cpu+cpu,cpu,cpu+cpu"), ("llama2", "cpu+cpu+cpu,cpu"), ("qwen3", "cpu,cpu+cpu+cpu")]
    {
        let dir = fixtures_dir().join(model);
        let found = worst(&errors_of(&dir, &expected(&dir), builder(&dir, device), 512));
        println!("{model} on {device}: f32 max error {found:.1e}");
        assert!(found <= F32_TOLERANCE, "{model} on {device}: error {found} in f32");
    }
}

/// The residual stream goes from one stage to the next as it is.
#[test]
fn stages_have_the_bits_of_one_device() {
    let kinds = [
        (DTypeSpec::F32, QuantizeSpec::None, KvDType::Auto),
        (DTypeSpec::Bf16, QuantizeSpec::None, KvDType::I8),
        (DTypeSpec::Bf16, QuantizeSpec::Q8, KvDType::Auto),
        (DTypeSpec::Bf16, QuantizeSpec::Q4, KvDType::Auto),
    ];
    for dir in fixtures() {
        let mut splits = vec!["cpu,cpu"];
        if builder(&dir, "cpu,cpu,cpu").plan().is_ok() {
            splits.push("cpu,cpu,cpu");
        }
        for (dtype, quantize, kv) in kinds {
            // Latents are not kept with scales.
            let kv = if kv == KvDType::I8 && name(&dir).starts_with("deepseek") { KvDType::F8 } else { kv };
            let of = |device: &str| {
                let builder = builder(&dir, device).dtype(dtype).quantize(quantize).kv_dtype(kv);
                logits(&builder, &dir).iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            let want = of("cpu");
            for split in &splits {
                assert!(of(split) == want, "{} on {split}, {dtype} {quantize} {kv}: not the bits of cpu", name(&dir));
            }
        }
    }
}

/// Slices of a matrix have scales of their own, finer than the whole's: quantization is off by something else, not by more.
#[test]
fn quantized_ranks_lose_what_one_quantized_device_loses() {
    for (dir, device) in on_ranks() {
        let exact = logits(&builder(&dir, "cpu"), &dir);
        for quantize in [QuantizeSpec::Q8, QuantizeSpec::Q4] {
            let error = |device: &str| {
                let found = logits(&builder(&dir, device).quantize(quantize), &dir);
                assert_eq!(found.len(), exact.len());
                exact.iter().zip(&found).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / exact.len() as f64
            };
            let (one, ranks) = (error("cpu"), error(&device));
            println!("{} {quantize}: mean error of logits {one:.1e} on cpu, {ranks:.1e} on {device}", name(&dir));
            assert!(ranks <= 1.25 * one, "{} {quantize} on {device}: mean error {ranks}, on cpu {one}", name(&dir));
        }
    }
}

#[test]
fn cpu_and_wgpu_share_a_model() {
    let Some(wgpu) = software_vulkan() else { return };
    let cases = [
        ("llama3", format!("cpu,{wgpu}")),
        ("qwen3-mixed", format!("{wgpu},cpu")),
        ("qwen3-tied", format!("cpu,{wgpu}")),
        ("llama2", format!("cpu+{wgpu}")),
        ("qwen3-moe", format!("cpu,{wgpu}")),
        ("llama-bias", format!("{wgpu}+{wgpu}+cpu")),
    ];
    for (model, device) in cases {
        let dir = fixtures_dir().join(model);
        let (reference, builder) = (expected(&dir), builder(&dir, &device).max_batch_tokens(64));
        let found = worst(&errors_of(&dir, &reference, builder.clone(), 37));
        println!("{model} on {device}: f32 max error {found:.1e}");
        assert!(found <= F32_TOLERANCE, "{model} on {device}: error {found} in f32");
        let engine = builder.build().expect("engine");
        let id = &engine.info().identity.numerics_id;
        assert!(id.contains("cpu-fma3") && id.contains("wgpu"), "{id} does not name both devices");
        let compared = equal_greedy_ids(&format!("{model} on {device}"), &engine, reference.prompts);
        assert!(compared >= 64, "{model} on {device}: only {compared} greedy ids could be compared");
    }
}

/// Alone, in company, after prefix hits, with other chunks and pages, and after preemption.
fn same_bits_in_any_company(model: &str, device: &str, dtype: DTypeSpec, quantize: QuantizeSpec, kv: KvDType) {
    let what = format!("{model} on {device} {dtype} {quantize} {kv}");
    let dir = fixtures_dir().join(model);
    let base = builder(&dir, device).dtype(dtype).quantize(quantize).kv_dtype(kv).max_num_seqs(64);
    let requests = requests(24);
    let want = alone(&base.clone().prefix_cache(false).threads(1).build().expect("engine"), &requests);
    let engine = base.clone().threads(4).build().expect("engine");
    assert_same(&format!("{what}, together"), &together(&engine, &requests), &want);
    assert_same(&format!("{what}, after prefix hits"), &alone(&engine, &requests), &want);
    assert!(engine.stats().prefix_hits > 0, "no prefix was hit: the test does not test");
    let small = base.clone().page_size(3).max_batch_tokens(40).max_num_seqs(40);
    assert_same(&format!("{what}, small chunks"), &together(&small.build().expect("engine"), &requests), &want);
    let few = |bytes: &u64| base.clone().max_batch_tokens(64).kv_cache_bytes(*bytes);
    let fits = |bytes: &u64| {
        few(bytes).plan().is_ok_and(|plan| plan.limits.cache.groups.iter().all(|group| group.pages <= 16))
    };
    let sizes = std::iter::successors(Some(1 << 20), |bytes: &u64| Some(bytes / 10 * 9));
    let bytes = sizes.take_while(|&bytes| bytes > 1024).find(fits).expect("a size");
    let engine = few(&bytes).build().expect("engine");
    assert_same(&format!("{what}, 16 pages"), &together(&engine, &requests), &want);
    assert!(engine.stats().preemptions > 0, "{what}: nothing was preempted: the test does not test");
}

#[test]
fn bits_on_ranks_do_not_depend_on_the_company() {
    let (none, auto) = (QuantizeSpec::None, KvDType::Auto);
    for (model, device, dtype, quantize, kv) in [
        ("llama-linear", "cpu+cpu", DTypeSpec::F32, none, auto),
        ("tiny-chat", "cpu+cpu", DTypeSpec::Bf16, none, auto),
        ("qwen3-mixed", "cpu+cpu+cpu", DTypeSpec::Bf16, none, KvDType::I8),
        ("mistral-full", "cpu+cpu", DTypeSpec::Bf16, QuantizeSpec::Q8, auto),
        ("qwen2-window", "cpu+cpu+cpu,cpu", DTypeSpec::Bf16, QuantizeSpec::Q4, auto),
        ("qwen3-moe", "cpu+cpu+cpu", DTypeSpec::Bf16, none, auto),
    ] {
        same_bits_in_any_company(model, device, dtype, quantize, kv);
    }
}

#[test]
fn bits_on_stages_do_not_depend_on_the_company() {
    same_bits_in_any_company("qwen2-window", "cpu,cpu,cpu", DTypeSpec::F32, QuantizeSpec::None, KvDType::Auto);
}

/// Layers divided among devices that compute the same bits are one device to a request that moves.
#[test]
fn a_request_moves_between_one_device_and_stages() {
    let dir = fixtures_dir().join("llama3");
    let [one, two, shared] =
        ["cpu", "cpu,cpu", "cpu+cpu+cpu"].map(|device| builder(&dir, device).build().expect("engine"));
    let id = |engine: &Engine| engine.info().identity.numerics_id.clone();
    assert_eq!(id(&one), id(&two));
    assert!(id(&shared).contains("cpu-fma3+cpu-fma3+cpu-fma3/"), "{}", id(&shared));
    let params = SamplingParams { max_tokens: Some(120), ignore_eos: true, seed: Some(7), ..SamplingParams::default() };
    let request = GenerateRequest::tokens(vec![3, 1, 4, 1, 5]).params(params);
    let want = tokens(one.stream(request.clone()).expect("accepted"));
    for (from, to) in [(&one, &two), (&two, &one)] {
        // One that ended before it could be suspended shows nothing.
        let suspended = (0..50).find_map(|_| {
            let stream = from.stream(request.clone()).expect("accepted");
            from.suspend(stream.id()).expect("running").map(|snapshot| (tokens(stream), snapshot))
        });
        let (mut found, snapshot) = suspended.expect("suspended in time");
        found.extend(tokens(to.resume(snapshot, None).expect("resumed")));
        assert!(found == want, "a request that moved has other bits");
    }
}

/// Ids and bits of log-probabilities.
fn tokens(stream: TokenStream) -> Vec<(u32, u32)> {
    let of = |event: anyfleet::Result<StreamEvent>| match event.expect("event") {
        StreamEvent::Delta { tokens, .. } => tokens,
        _ => Vec::new(),
    };
    stream.flat_map(of).map(|token| (token.id, token.logprob.to_bits())).collect()
}

#[test]
fn what_makes_no_sense_is_one_line() {
    let dir = fixtures_dir().join("llama3");
    for (device, words) in [
        ("cpu,cpu,cpu", "device cpu,cpu,cpu: 3 stages are more than the 2 layers"),
        ("cpu+cpu", "6 query heads over 3 key/value heads cannot be shared out among 2 devices"),
        ("cpu,cuda:nonesuch", "cuda:nonesuch"),
    ] {
        let error = builder(&dir, device).plan().expect_err("nonsense");
        assert!(matches!(error, Error::Plan(_) | Error::Device(_)), "{error:?}");
        let error = error.to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{device}: {error}");
    }
}

#[test]
fn the_plan_is_of_each_device_and_in_all() {
    let dir = fixtures_dir().join("llama2");
    let plan = builder(&dir, "cpu+cpu,cpu").plan().expect("plan");
    assert_eq!(plan.parts.len(), 3);
    assert_eq!(plan.parts.iter().map(|part| part.total()).sum::<u64>(), plan.total());
    let text = plan.to_string();
    assert_eq!(text.matches("  on cpu (").count(), 3, "{text}");
    // The three have the machine's memory between them.
    let all = builder(&dir, "cpu").plan().expect("plan").available.expect("a CPU says how much is free");
    let sum = plan.available.expect("so do three");
    assert!(sum.abs_diff(all) < all / 10, "{sum} of {all}");
}
