//! What a step has to read and compute: the work that times are compared with.
use crate::device::{Ceilings, Rate};
use crate::options::{Quantize, is_integer};
use anyfleet::MemoryPlan;
use anyfleet_models::{DecoderSpec, LayerSpec, LayerWeights, WeightMap};
use anyfleet_runtime::CacheKind;
use anyfleet_tensor::DType;
use anyfleet_weights::MatrixSpec;

/// Bytes and operations of a model as it was loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// Bytes of weights that every step reads once: all that was packed, but of an embedding that is not
    /// also the head only the rows of its tokens, and of experts those that a token has.
    pub weights_per_step: u64,
    /// Of each layer with experts: their bytes, how many there are, and how many a token has.
    experts: Vec<ExpertBytes>,
    /// Per layer: keys and values of a token in elements, and the tokens attention looks back.
    kv: Vec<(usize, f64)>,
    /// Bytes of an element of keys and values, scales included.
    kv_element: f64,
    /// Elements of matrices that a prompt token is multiplied with.
    layer_elements: u64,
    /// Elements of the head, which the last prompt token alone is multiplied with.
    head_elements: u64,
    /// Per layer: query heads times head size, and the tokens attention looks back.
    attention: Vec<(usize, f64)>,
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertBytes {
    /// Bytes of all.
    pub bytes: u64,
    /// How many there are.
    pub count: usize,
    /// How many a token has.
    pub per_token: usize,
}

impl ExpertBytes {
    /// Bytes that `tokens` tokens read where routers choose any expert as often as any other: one that none of them has
    /// is not read.
    fn read(&self, tokens: usize) -> f64 {
        let missed = (1.0 - self.per_token as f64 / self.count as f64).powi(tokens as i32);
        self.bytes as f64 * (1.0 - missed)
    }
}

/// The tokens a layer's attention looks back at most.
fn window(layer: &LayerSpec) -> f64 {
    layer.attention.window.map_or(f64::INFINITY, |window| window as f64)
}

impl Account {
    /// Of a model that is loaded by `plan`. `embedding` is the bytes its packed embedding takes, `experts` those of its
    /// layers with experts.
    pub fn new(spec: &DecoderSpec, plan: &MemoryPlan, embedding: u64, experts: Vec<ExpertBytes>) -> Account {
        let map = WeightMap::new(spec);
        let kv_elements = |layer: &LayerSpec| layer.attention.cached_width();
        // Bytes of the cache over its elements: whatever type it has, and with whatever scales.
        let len = plan.limits.max_model_len;
        let cache = &plan.limits.cache;
        let planned: u64 = spec
            .layers
            .iter()
            .map(|layer| {
                let kind = match layer.attention.window.filter(|&window| window < len) {
                    _ if layer.attention.latent.is_some() => CacheKind::Latent,
                    Some(window) => CacheKind::Window(window as u32),
                    None => CacheKind::Paged,
                };
                let pages = cache.groups.iter().find(|g| g.kind == kind).map_or(0, |g| g.pages);
                u64::from(pages) * u64::from(cache.page_size) * kv_elements(layer) as u64
            })
            .sum();
        // A token meets some of a stack of experts.
        let met = |(layer, weights): (&LayerSpec, &LayerWeights)| -> u64 {
            let per_token = layer.mlp.experts.map_or(1, |experts| experts.per_token);
            // One of each head, all of which a token meets.
            let of_heads = |m: &MatrixSpec| weights.latent.as_ref().is_some_and(|l| *m == l.keys || *m == l.values);
            let met = |m: &MatrixSpec| if m.stack > 1 && !of_heads(m) { per_token } else { m.stack };
            let elements = |m: &MatrixSpec| m.matrix_rows() * m.cols * met(m);
            weights.matrices().map(|m| elements(m) as u64).sum()
        };
        let packed = if spec.tied_head { plan.weights } else { plan.weights.saturating_sub(embedding) };
        let of_experts: u64 = experts.iter().map(|experts| experts.bytes).sum();
        let of_a_token: f64 = experts.iter().map(|experts| experts.read(1)).sum();
        Account {
            weights_per_step: packed.saturating_sub(of_experts) + of_a_token as u64,
            experts,
            kv: spec.layers.iter().map(|l| (kv_elements(l), window(l))).collect(),
            kv_element: plan.kv_cache as f64 / planned.max(1) as f64,
            layer_elements: spec.layers.iter().zip(&map.layers).map(met).sum(),
            head_elements: (spec.vocab_size * spec.hidden_size) as u64,
            attention: spec.layers.iter().map(|l| (l.attention.heads * l.attention.head_dim, window(l))).collect(),
        }
    }

    /// Bytes of keys and values that a step of `batch` sequences reads, of `context` tokens each on average.
    pub fn kv_per_step(&self, batch: usize, context: f64) -> f64 {
        let sequence: f64 = self.kv.iter().map(|&(elements, window)| elements as f64 * context.min(window)).sum();
        batch as f64 * sequence * self.kv_element
    }

    /// Bytes that a decode step reads at least.
    pub fn bytes_per_step(&self, batch: usize, context: f64) -> f64 {
        let more: f64 = self.experts.iter().map(|experts| experts.read(batch) - experts.read(1)).sum();
        self.weights_per_step as f64 + more + self.kv_per_step(batch, context)
    }

    /// Operations of the prefill of `prompt` tokens up to its first new token; a multiply-add is two. Half of
    /// the score matrix is masked and not counted.
    pub fn prefill_operations(&self, prompt: usize) -> f64 {
        let linear = 2.0 * (self.layer_elements as f64 * prompt as f64 + self.head_elements as f64);
        let keys = |window: f64| -> f64 { (1..=prompt).map(|position| (position as f64).min(window)).sum() };
        // Scores, then the weighted sum of values.
        let attention: f64 = self.attention.iter().map(|&(width, window)| 4.0 * width as f64 * keys(window)).sum();
        linear + attention
    }

    /// Matrix elements that a token meets: parameters without norms and biases, a tied head counted once.
    pub fn layer_and_head_elements(&self) -> u64 {
        self.layer_elements + self.head_elements
    }
}

/// The rate that bounds products of this kind on this machine, and its name.
pub fn matrix_rate(ceilings: &Ceilings, dtype: DType, quantize: Quantize) -> Option<(&'static str, f64)> {
    fn of<'a>(name: &'static str, rate: Option<&'a Rate>) -> Option<(&'static str, &'a Rate)> {
        rate.map(|rate| (name, rate))
    }
    let fma = of("f32 multiply-add", ceilings.fma.as_ref());
    let int8 =
        || of("int8 tiles", ceilings.amx_int8.as_ref().ok()).or(of("int8 dot products", ceilings.vnni.as_ref().ok()));
    let found = match dtype {
        _ if is_integer(quantize) => int8().or(fma),
        DType::BF16 => of("bf16 tiles", ceilings.amx_bf16.as_ref().ok())
            .or(of("bf16 dot products", ceilings.dot_bf16.as_ref().ok()))
            .or(fma),
        _ => fma,
    };
    found.map(|(name, rate)| (name, rate.all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::example;
    use anyfleet::{DTypeSpec, Engine, KvDType};
    use anyfleet_models::open_model;
    use std::path::{Path, PathBuf};

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/parity/fixtures").join(name)
    }

    fn account(name: &str, dtype: DTypeSpec, embedding: u64) -> (DecoderSpec, MemoryPlan, Account) {
        let dir = fixture(name);
        let spec = open_model(&dir).unwrap().spec;
        let plan = Engine::builder(dir.to_str().unwrap()).dtype(dtype).plan().unwrap();
        let account = Account::new(&spec, &plan, embedding, Vec::new());
        (spec, plan, account)
    }

    #[test]
    fn a_tied_embedding_is_read_once_as_the_head() {
        let (spec, plan, account) = account("qwen3-tied", DTypeSpec::F32, 1);
        assert!(spec.tied_head);
        assert_eq!(account.weights_per_step, plan.weights);
    }

    #[test]
    fn another_embedding_is_not_read() {
        let (spec, plan, account) = account("llama2", DTypeSpec::F32, 4096);
        assert!(!spec.tied_head);
        assert_eq!(account.weights_per_step, plan.weights - 4096);
    }

    #[test]
    fn keys_and_values_have_the_planned_size() {
        for (dtype, size) in [(DTypeSpec::F32, 4.0), (DTypeSpec::Bf16, 2.0)] {
            for name in ["llama2", "qwen3", "mistral-window", "qwen2-window"] {
                let (spec, _, account) = account(name, dtype, 0);
                assert_eq!(account.kv_element, size, "{name}");
                let token: usize = spec.layers.iter().map(|l| 2 * l.attention.kv_heads * l.attention.head_dim).sum();
                assert_eq!(account.kv_per_step(3, 2.0), 3.0 * 2.0 * token as f64 * size, "{name}");
                let full = account.kv_per_step(1, 1e6) == 1e6 * token as f64 * size;
                assert_eq!(full, spec.layers.iter().all(|l| l.attention.window.is_none()), "{name}");
            }
        }
    }

    #[test]
    fn bytes_count_with_their_scales() {
        let dir = fixture("qwen3");
        let spec = open_model(&dir).unwrap().spec;
        let plan = Engine::builder(dir.to_str().unwrap()).kv_dtype(KvDType::I8).plan().unwrap();
        let size = spec.layers[0].attention.head_dim as f64;
        assert_eq!(Account::new(&spec, &plan, 0, Vec::new()).kv_element, (size + 4.0) / size);
    }

    #[test]
    fn operations_of_a_prefill() {
        let (spec, _, account) = account("llama2", DTypeSpec::F32, 0);
        let attention = &spec.layers[0].attention;
        let width = attention.heads * attention.head_dim;
        let per_layer = spec.hidden_size * (width + 2 * attention.kv_heads * attention.head_dim)
            + width * spec.hidden_size
            + 3 * spec.hidden_size * spec.layers[0].mlp.intermediate_size;
        let head = spec.vocab_size * spec.hidden_size;
        let linear = 2 * (5 * spec.layers.len() * per_layer + head);
        let attended = 4 * spec.layers.len() * width * (1 + 2 + 3 + 4 + 5);
        assert_eq!(account.prefill_operations(5), (linear + attended) as f64);
        assert_eq!(account.layer_and_head_elements(), (spec.layers.len() * per_layer + head) as u64);
    }

    #[test]
    fn experts_are_read_as_far_as_tokens_meet_them() {
        let dir = fixture("mixtral");
        let spec = open_model(&dir).unwrap().spec;
        let plan = Engine::builder(dir.to_str().unwrap()).dtype(DTypeSpec::F32).plan().unwrap();
        let experts = spec.layers[0].mlp.experts.unwrap();
        let (count, per_token) = (experts.count, experts.per_token);
        let layers = vec![ExpertBytes { bytes: 1000, count, per_token }; 2];
        let account = Account::new(&spec, &plan, 0, layers);
        assert_eq!(account.weights_per_step, plan.weights - 2000 + 2 * 1000 * 2 / 5);
        let bytes = |batch| account.bytes_per_step(batch, 0.0) - account.weights_per_step as f64;
        assert!(bytes(1) == 0.0 && (bytes(2) - 2000.0 * (0.64 - 0.4)).abs() < 1e-6 && (bytes(64) - 1200.0).abs() < 1.0);
        let dense = 3 * spec.hidden_size * spec.layers[0].mlp.intermediate_size;
        let router = count * spec.hidden_size;
        let width = spec.layers[0].attention.q_width() + spec.layers[0].attention.qkv_width();
        let layer = (per_token * dense + router + spec.hidden_size * width) as u64;
        assert_eq!(account.layer_and_head_elements(), 2 * layer + (spec.vocab_size * spec.hidden_size) as u64);
    }

    #[test]
    fn the_rate_that_bounds() {
        let rate = |dtype| matrix_rate(&example(), dtype, Quantize::None).unwrap();
        assert_eq!(rate(DType::BF16), ("bf16 tiles", 4e12));
        assert_eq!(rate(DType::F32), ("f32 multiply-add", 2e11));
        let without = Ceilings { amx_bf16: Err("none"), ..example() };
        assert_eq!(matrix_rate(&without, DType::BF16, Quantize::None), Some(("bf16 dot products", 4e11)));
        let without = Ceilings { dot_bf16: Err("none"), ..without };
        assert_eq!(matrix_rate(&without, DType::BF16, Quantize::None), Some(("f32 multiply-add", 2e11)));
        assert_eq!(matrix_rate(&Ceilings { fma: None, ..without }, DType::BF16, Quantize::None), None);
    }
}
