//! Whole models on CUDA's kernels, run on the host: parity with Hugging Face transformers, and the same bits whatever
//! else runs. A part of what `parity.rs` and `invariance.rs` do on faster devices.
mod common;

use anyfleet::{DTypeSpec, DeviceSpec, Engine, EngineBuilder, Gemm, GenerateRequest, KvDType, QuantizeSpec};
use common::company::{alone, assert_same, requests, together};
use common::reference::{F32_TOLERANCE, assert_bf16_sized, errors_of, worst};
use common::{Driver, emulated_cuda, expected, fixtures_dir};

/// Grouped heads; windows mixed with full attention, and QK-norm; windows and biases; experts; soft caps and norms of what a
/// layer adds; rotary embeddings by layer type; latent attention.
const MODELS: [&str; 7] =
    ["llama3", "qwen3-mixed", "qwen2-window", "qwen3-moe", "gemma2", "gemma3", "deepseek-v2-lite"];

fn builder(device: &DeviceSpec, model: &str) -> EngineBuilder {
    let dir = fixtures_dir().join(model);
    Engine::builder(dir.to_string_lossy()).device(device.clone()).kv_cache_bytes(1 << 20).max_num_seqs(4)
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let Some(device) = emulated_cuda() else { return };
    for model in MODELS {
        let dir = fixtures_dir().join(model);
        let reference = expected(&dir);
        let base = builder(&device, model);
        let f32 = worst(&errors_of(&dir, &reference, base.clone().dtype(DTypeSpec::F32), 37));
        let bf16 = errors_of(&dir, &reference, base.clone().dtype(DTypeSpec::Bf16), 512);
        let f16 = errors_of(&dir, &reference, base.dtype(DTypeSpec::F16), 41);
        println!("{model}: f32 max error {f32:.1e}; bf16 {bf16:.4?}; f16 {f16:.4?}");
        assert!(f32 <= F32_TOLERANCE, "{model}: error {f32} in f32");
        assert_bf16_sized(model, bf16, reference.bf16_error_against_f32);
        // Eleven bits, where bf16 has eight.
        assert!(4.0 * worst(&f16) <= worst(&bf16), "{model}: error {} in f16", worst(&f16));
    }
}

/// In one chunk of up to 512 rows, which the library multiplies, and in chunks of fewer than it is asked for.
#[test]
fn fast_products_are_as_near_to_transformers() {
    let Some(device) = emulated_cuda() else { return };
    let model = MODELS[0];
    let dir = fixtures_dir().join(model);
    let reference = expected(&dir);
    assert!(reference.prompts.iter().any(|prompt| prompt.ids.len() > 64), "no product has many rows");
    let base = builder(&device, model).gemm(Gemm::Fast);
    for dtype in [DTypeSpec::Bf16, DTypeSpec::F16] {
        let [many, few] = [512, 41].map(|chunk| errors_of(&dir, &reference, base.clone().dtype(dtype), chunk));
        println!("{model} {dtype}: {many:.4?}, in few rows {few:.4?}");
        for errors in [many, few] {
            match dtype {
                DTypeSpec::Bf16 => assert_bf16_sized(model, errors, reference.bf16_error_against_f32),
                _ => assert!(4.0 * worst(&errors) <= worst(&reference.bf16_error_against_f32), "{}", worst(&errors)),
            }
        }
    }
    let engine = base.dtype(DTypeSpec::Bf16).build().expect("engine");
    let info = engine.info();
    assert!(info.identity.numerics_id.contains(" fast "), "{}", info.identity.numerics_id);
    assert!(!info.warnings.iter().any(|warning| warning.contains("gemm")), "{:?}", info.warnings);
}

/// Whose sums go from device to device.
#[test]
fn devices_that_share_layers_are_as_near_to_transformers() {
    let Some(DeviceSpec::Cuda(Some(device))) = emulated_cuda() else { return };
    let devices: DeviceSpec = format!("cuda:{device}+cuda:{device}").parse().expect("two devices");
    for model in ["llama2", "qwen3-moe-plain"] {
        let dir = fixtures_dir().join(model);
        let f32 = worst(&errors_of(&dir, &expected(&dir), builder(&devices, model).dtype(DTypeSpec::F32), 37));
        println!("{model} on {devices}: f32 max error {f32:.1e}");
        assert!(f32 <= F32_TOLERANCE, "{model}: error {f32} in f32");
    }
}

/// As on wgpu with packed bytes: see `parity.rs`.
#[test]
fn integer_weights_give_the_bits_of_the_cpu_until_a_byte_turns() {
    let Some(device) = emulated_cuda() else { return };
    let model = MODELS[0];
    let logits = |device: &DeviceSpec, quantize| -> Vec<f32> {
        let mut executor =
            builder(device, model).dtype(DTypeSpec::F32).quantize(quantize).executor().expect("executor");
        let mut driver = Driver { executor: &mut *executor, chunk: 37 };
        let prompt = expected(&fixtures_dir().join(model)).prompts.swap_remove(0);
        let rows: Vec<usize> = prompt.rows.iter().map(|r| r.position).collect();
        driver.score(&prompt.ids, &rows).1.concat()
    };
    let plain = logits(&DeviceSpec::Cpu, QuantizeSpec::None);
    for quantize in [QuantizeSpec::Q8, QuantizeSpec::Q4] {
        let [cpu, cuda] = [&DeviceSpec::Cpu, &device].map(|device| logits(device, quantize));
        let mean = |other: &[f32]| {
            cpu.iter().zip(other).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / cpu.len() as f64
        };
        let same = cpu.iter().zip(&cuda).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
        let (error, lost) = (mean(&cuda), mean(&plain));
        println!("{quantize}: {same} of {} logits are the CPU's; mean error {error:.1e}, lost {lost:.1e}", cpu.len());
        assert!(2.0 * error <= lost, "{quantize}: mean error {error}, of quantization {lost}");
    }
}

#[test]
fn bits_do_not_depend_on_company_chunks_pages_and_preemption() {
    let Some(device) = emulated_cuda() else { return };
    let requests: Vec<GenerateRequest> = requests(6).into_iter().map(|request| request.max_tokens(9)).collect();
    for (model, dtype, quantize, kv) in [
        (MODELS[1], DTypeSpec::Bf16, QuantizeSpec::None, KvDType::Auto),
        (MODELS[0], DTypeSpec::F16, QuantizeSpec::None, KvDType::F16),
        (MODELS[2], DTypeSpec::Bf16, QuantizeSpec::Q4, KvDType::I8),
        (MODELS[3], DTypeSpec::Bf16, QuantizeSpec::None, KvDType::F8),
        (MODELS[6], DTypeSpec::Bf16, QuantizeSpec::F8, KvDType::Auto),
        (MODELS[6], DTypeSpec::Bf16, QuantizeSpec::None, KvDType::F8),
    ] {
        let what = format!("{model} {dtype} {quantize} {kv}");
        let base = builder(&device, model).dtype(dtype).quantize(quantize).kv_dtype(kv).max_num_seqs(6);
        let want = alone(&base.clone().prefix_cache(false).build().expect("engine"), &requests);
        assert_same(&format!("{what}, together"), &together(&base.clone().build().expect("engine"), &requests), &want);
        let small = base.page_size(3).max_batch_tokens(40);
        let fits = |bytes: &u64| {
            let plan = small.clone().kv_cache_bytes(*bytes).plan();
            plan.is_ok_and(|plan| plan.limits.cache.groups.iter().all(|group| group.pages <= 48))
        };
        let sizes = std::iter::successors(Some(1 << 20), |bytes: &u64| Some(bytes / 10 * 9));
        let bytes = sizes.take_while(|&bytes| bytes > 1024).find(fits).expect("a size");
        let engine = small.kv_cache_bytes(bytes).build().expect("engine");
        assert_same(&format!("{what}, in a small cache"), &together(&engine, &requests), &want);
        println!("{what}: {} preemptions, {} prefix hits", engine.stats().preemptions, engine.stats().prefix_hits);
    }
}
