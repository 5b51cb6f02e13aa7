//! The same bits whatever else runs: alone, in batches, with other chunk and page sizes, after a
//! prefix hit, after preemption, with one thread and with two.
mod common;

use anyfleet::{DTypeSpec, DeviceSpec, Engine, EngineBuilder, KvDType, QuantizeSpec};
use anyfleet_conformance::require::brief;
use common::company::{alone, assert_same, requests, together};
use common::{everything, fixtures_dir, software_vulkan};

/// Fixtures that cover: full attention, a window in every layer, windows mixed with full attention, experts, soft caps and
/// norms of what a layer adds, QK-norm with everything else.
const MODELS: [&str; 6] = ["llama3", "mistral-window", "qwen2-window", "qwen3-moe", "gemma2", "qwen3-mixed"];

/// Types of weights, quantizations, and types of keys.
const KINDS: [(DTypeSpec, QuantizeSpec, KvDType); 7] = [
    (DTypeSpec::F32, QuantizeSpec::None, KvDType::Auto),
    (DTypeSpec::Bf16, QuantizeSpec::None, KvDType::Auto),
    (DTypeSpec::Bf16, QuantizeSpec::Q8, KvDType::Auto),
    (DTypeSpec::Bf16, QuantizeSpec::Q4, KvDType::Auto),
    (DTypeSpec::Bf16, QuantizeSpec::None, KvDType::I8),
    (DTypeSpec::Bf16, QuantizeSpec::Q4, KvDType::I8),
    (DTypeSpec::Bf16, QuantizeSpec::None, KvDType::F8),
];

fn builder(device: &DeviceSpec, model: &str) -> EngineBuilder {
    let dir = fixtures_dir().join(model);
    Engine::builder(dir.to_string_lossy()).device(device.clone()).kv_cache_bytes(8 << 20).max_num_seqs(64)
}

fn company(device: &DeviceSpec) {
    for (i, model) in MODELS.into_iter().enumerate() {
        // Software Vulkan takes minutes for what the CPU does in seconds: every kind with every other model there.
        let (first, step) = match (device, everything(device)) {
            (DeviceSpec::Cpu, _) => (0, 1),
            (_, true) => (i % 2, 2),
            (_, false) if i == MODELS.len() - 1 => (0, if brief() { 7 } else { 5 }),
            (_, false) => continue,
        };
        for &(dtype, quantize, kv) in KINDS.iter().skip(first).step_by(step) {
            let base = builder(device, model).dtype(dtype).quantize(quantize).kv_dtype(kv);
            let kind = format!("{model} on {device} {dtype} {quantize} {kv}");
            let requests = requests(24);
            let want = alone(&base.clone().prefix_cache(false).threads(1).build().expect("engine"), &requests);
            let engine = base.clone().threads(2).build().expect("engine");
            if *device != DeviceSpec::Cpu && quantize != QuantizeSpec::None {
                let id = &engine.info().identity.numerics_id;
                assert!(id.contains(" packed "), "{id}: activations are not bytes: the test does not test");
            }
            for batch in [2, 7, 24] {
                for (chunk, want) in requests.chunks(batch).zip(want.chunks(batch)) {
                    assert_same(&format!("{kind}, batch of {batch}"), &together(&engine, chunk), want);
                }
            }
            assert_same(&format!("{kind}, after prefix hits"), &alone(&engine, &requests), &want);
            assert!(engine.stats().prefix_hits > 0, "no prefix was hit: the test does not test");
        }
    }
}

fn chunk_and_page_size(device: &DeviceSpec) {
    let quantized = [QuantizeSpec::Q8, QuantizeSpec::Q4].map(|quantize| (MODELS[0], quantize, KvDType::Auto));
    let plain = |kv| MODELS.map(|model| (model, QuantizeSpec::None, kv));
    let cases: Vec<_> = plain(KvDType::Auto).into_iter().chain(quantized).chain(plain(KvDType::I8)).collect();
    for &(model, quantize, kv) in
        if everything(device) { &cases[..] } else { &cases[MODELS.len() - 1..][..if brief() { 1 } else { 2 }] }
    {
        let builder = |model| builder(device, model).quantize(quantize).kv_dtype(kv);
        let requests = requests(12);
        let want = alone(&builder(model).prefix_cache(false).build().expect("engine"), &requests);
        for (page, tokens, threads) in [(1, 512, 2), (3, 64, 1), (64, 13, 2), (16, 9, 1), (5, 40, 2)] {
            let engine =
                builder(model).page_size(page).max_batch_tokens(tokens).max_num_seqs(9.min(tokens)).threads(threads);
            let found = together(&engine.build().expect("engine"), &requests);
            assert_same(
                &format!("{model} on {device} {quantize} {kv}, pages of {page}, steps of {tokens}"),
                &found,
                &want,
            );
        }
    }
}

/// An engine with at most `most` pages in any cache group.
fn small_cache(base: EngineBuilder, most: u32) -> EngineBuilder {
    let with = |bytes| base.clone().max_batch_tokens(64).kv_cache_bytes(bytes);
    let fits = |bytes: &u64| {
        let plan = with(*bytes).plan();
        plan.is_ok_and(|p| p.limits.cache.groups.iter().all(|g| g.pages <= most))
    };
    let sizes = std::iter::successors(Some(1 << 20), |bytes: &u64| Some(bytes / 10 * 9));
    with(sizes.take_while(|&bytes| bytes > 1024).find(fits).expect("a size"))
}

fn preemption_and_64_streams_on_16_pages(device: &DeviceSpec) {
    let kinds = MODELS.map(|model| (model, KvDType::Auto));
    let cases: Vec<_> = kinds.into_iter().chain([("qwen3-mixed", KvDType::I8)]).collect();
    for &(model, kv) in if everything(device) { &cases[..] } else { &cases[if brief() { 6 } else { 5 }..] } {
        let requests = requests(64);
        let builder = builder(device, model).kv_dtype(kv);
        let want = alone(&builder.clone().prefix_cache(false).build().expect("engine"), &requests);
        let engine = small_cache(builder, 16).build().expect("engine");
        let pages: Vec<u32> = engine.info().plan.limits.cache.groups.iter().map(|g| g.pages).collect();
        assert_same(&format!("{model} on {device}, {pages:?} pages"), &together(&engine, &requests), &want);
        let stats = engine.stats();
        println!(
            "{model} on {device}: {pages:?} pages, {} preemptions, {} prefix hits",
            stats.preemptions, stats.prefix_hits
        );
        assert!(stats.preemptions > 0, "{model}: nothing was preempted: the test does not test");
        for group in &stats.groups {
            assert_eq!(group.free + group.cached, group.pages, "{model}: pages leaked");
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_company() {
    company(&DeviceSpec::Cpu);
}

#[test]
fn bits_do_not_depend_on_the_company_on_wgpu() {
    software_vulkan().iter().for_each(company);
}

#[test]
fn bits_do_not_depend_on_chunk_and_page_size() {
    chunk_and_page_size(&DeviceSpec::Cpu);
}

#[test]
fn bits_do_not_depend_on_chunk_and_page_size_on_wgpu() {
    software_vulkan().iter().for_each(chunk_and_page_size);
}

#[test]
fn bits_survive_preemption_and_64_streams_share_16_pages() {
    preemption_and_64_streams_on_16_pages(&DeviceSpec::Cpu);
}

#[test]
fn bits_survive_preemption_and_64_streams_share_16_pages_on_wgpu() {
    software_vulkan().iter().for_each(preemption_and_64_streams_on_16_pages);
}
