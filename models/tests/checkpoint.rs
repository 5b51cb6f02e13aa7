//! A decoder's weights found in checkpoints: names, shapes, merges, counts and what is missing.
use anyfleet_models::{DecoderSpec, WeightMap, check_weights, open_model, spec_from_config};
use anyfleet_tensor::{DType, WeightFormat};
use anyfleet_weights::{Config, ModelDir};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

type Tensors = BTreeMap<String, Vec<usize>>;

fn config(architecture: &str, keys: Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "hidden_size": 12, "intermediate_size": 10, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 7,
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

fn spec(config: &Value) -> DecoderSpec {
    spec_from_config(&Config::parse("config.json".as_ref(), config.to_string().as_bytes()).unwrap()).unwrap()
}

fn tensors(map: &WeightMap) -> Tensors {
    map.tensors().collect()
}

/// A directory with these tensors, whose bytes are `fill` of the name.
fn write(config: &Value, tensors: &Tensors, fill: impl Fn(&str) -> u8) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        data.resize(start + 4 * shape.iter().product::<usize>(), fill(name));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn error(dir: &Path) -> String {
    let line = open_model(dir).expect_err("opened").to_string();
    assert!(!line.contains('\n') && line.starts_with(&dir.display().to_string()), "{line:?}");
    line
}

#[test]
fn names_and_shapes() {
    let biased = config("LlamaForCausalLM", json!({"attention_bias": true, "mlp_bias": true}));
    let map = WeightMap::new(&spec(&biased));
    let all = tensors(&map);
    // Embedding, final norm and head; per layer 7 matrices, 2 norms and 7 biases.
    assert_eq!(all.len(), 3 + 2 * (7 + 2 + 7));
    for (name, shape) in [
        ("model.embed_tokens.weight", &[7, 12][..]),
        ("model.norm.weight", &[12]),
        ("lm_head.weight", &[7, 12]),
        ("model.layers.1.self_attn.q_proj.weight", &[18, 12]),
        ("model.layers.1.self_attn.k_proj.weight", &[6, 12]),
        ("model.layers.1.self_attn.v_proj.bias", &[6]),
        ("model.layers.1.self_attn.o_proj.weight", &[12, 18]),
        ("model.layers.1.self_attn.o_proj.bias", &[12]),
        ("model.layers.0.mlp.gate_proj.weight", &[10, 12]),
        ("model.layers.0.mlp.up_proj.bias", &[10]),
        ("model.layers.0.mlp.down_proj.weight", &[12, 10]),
        ("model.layers.0.input_layernorm.weight", &[12]),
        ("model.layers.0.post_attention_layernorm.weight", &[12]),
    ] {
        assert_eq!(all.get(name).map(Vec::as_slice), Some(shape), "{name}");
    }
    let layer = &map.layers[0];
    let parts: Vec<&str> = layer.qkv.parts.iter().map(|(n, _)| n.rsplit('.').nth(1).unwrap()).collect();
    assert_eq!(parts, ["q_proj", "k_proj", "v_proj"]);
    assert_eq!((layer.qkv.rows(), layer.qkv.cols, layer.gate_up.rows()), (30, 12, 20));
    assert_eq!(layer.qkv_bias.as_ref().map(|b| b.len()), Some(30));

    let qwen3 = WeightMap::new(&spec(&config("Qwen3ForCausalLM", json!({"tie_word_embeddings": true}))));
    let all = tensors(&qwen3);
    assert_eq!(all.len(), 2 + 2 * (7 + 2 + 2));
    assert_eq!(all["model.layers.0.self_attn.q_norm.weight"], [6]);
    assert_eq!(all["model.layers.0.self_attn.k_norm.weight"], [6]);
    assert_eq!(qwen3.head, None);

    let qwen2 = tensors(&WeightMap::new(&spec(&config("Qwen2ForCausalLM", json!({})))));
    assert!(qwen2.contains_key("model.layers.0.self_attn.k_proj.bias"));
    assert!(!qwen2.contains_key("model.layers.0.self_attn.o_proj.bias"));
}

#[test]
fn counts_for_the_memory_plan() {
    let map = WeightMap::new(&spec(&config("Qwen2ForCausalLM", json!({}))));
    let matrices: Vec<(usize, usize)> = map.matrices().map(|m| (m.rows(), m.cols)).collect();
    let layer = [(30, 12), (12, 18), (20, 12), (12, 10)];
    assert_eq!(matrices, [&[(7, 12)][..], &layer, &layer, &[(7, 12)]].concat());
    assert_eq!(map.vector_elements(), 12 + 2 * (12 + 12 + 30));
    let elements: usize = map.tensors().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!(elements, matrices.iter().map(|(r, c)| r * c).sum::<usize>() + map.vector_elements());
}

#[test]
fn opens_and_merges() {
    let config = config("LlamaForCausalLM", json!({}));
    let all = tensors(&WeightMap::new(&spec(&config)));
    let dir = write(&config, &all, |name| name.len() as u8);
    let model = open_model(dir.path()).unwrap();
    assert_eq!(model.spec, spec(&config));
    assert_eq!(model.weights.unused(&model.dir), [""; 0]);
    let mut copy = Vec::new();
    let qkv = model.dir.matrix(&model.weights.layers[1].qkv, WeightFormat::Float(DType::BF16), &mut copy).unwrap();
    assert_eq!(qkv.parts.iter().map(|p| p.rows).collect::<Vec<_>>(), [18, 6, 6]);
    let name = "model.layers.1.self_attn.k_proj.weight";
    assert!(qkv.parts[1].bytes.iter().all(|&b| b == name.len() as u8));
    assert_eq!(model.dir.vector(&model.weights.final_norm).unwrap().len(), 12);
}

#[test]
fn missing_and_wrong_tensors() {
    let config = config("LlamaForCausalLM", json!({}));
    let all = tensors(&WeightMap::new(&spec(&config)));
    let mut fewer = all.clone();
    fewer.retain(|name, _| !name.contains("layers.1."));
    let line = error(write(&config, &fewer, |_| 0).path());
    assert!(line.contains("lacks 9 of the 21 tensors") && line.contains("model.layers.1."), "{line}");
    let mut wrong = all.clone();
    wrong.insert("model.norm.weight".into(), vec![13]);
    let line = error(write(&config, &wrong, |_| 0).path());
    assert!(line.contains("tensor model.norm.weight has shape [13], but config.json asks for [12]"), "{line}");
    let mut headless = all;
    headless.remove("lm_head.weight");
    let line = error(write(&config, &headless, |_| 0).path());
    assert!(line.contains("lacks 1 of the 21 tensors") && line.contains("lm_head.weight"), "{line}");
}

#[test]
fn an_unsupported_model_is_refused_before_its_weights() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config("GPT2LMHeadModel", json!({})).to_string()).unwrap();
    let line = error(dir.path());
    assert!(line.contains("GPT2LMHeadModel is not supported") && line.contains("Qwen3ForCausalLM"), "{line}");
    std::fs::write(dir.path().join("config.json"), config("LlamaForCausalLM", json!({})).to_string()).unwrap();
    assert!(error(dir.path()).contains("has no weights"));
}

#[test]
fn tied_heads() {
    let tied = config("LlamaForCausalLM", json!({"tie_word_embeddings": true}));
    let all = tensors(&WeightMap::new(&spec(&tied)));
    let mut both = all.clone();
    both.insert("lm_head.weight".into(), vec![7, 12]);
    let same = write(&tied, &both, |_| 1);
    let model = open_model(same.path()).unwrap();
    assert!(model.spec.tied_head && model.weights.unused(&model.dir).is_empty(), "a copy is ignored");
    let other = write(&tied, &both, |name| u8::from(name == "lm_head.weight"));
    let model = open_model(other.path()).unwrap();
    assert!(!model.spec.tied_head && model.weights.head.is_some(), "a head of its own is believed");
    let mut swapped = both;
    swapped.remove("model.embed_tokens.weight");
    let model = open_model(write(&tied, &swapped, |_| 1).path()).unwrap();
    assert_eq!(model.weights.embed.parts[0].0, "lm_head.weight");
}

#[test]
fn exports_of_the_base_model() {
    let tied = config("Qwen3Model", json!({"tie_word_embeddings": true}));
    let all = tensors(&WeightMap::with_prefix(&spec(&tied), ""));
    let dir = write(&tied, &all, |_| 0);
    let model = open_model(dir.path()).unwrap();
    assert_eq!(model.weights.embed.parts[0].0, "embed_tokens.weight");
    assert_eq!(model.weights.layers[0].output.parts[0].0, "layers.0.self_attn.o_proj.weight");
}

#[test]
fn redundant_tensors_are_known() {
    let config = config("LlamaForCausalLM", json!({}));
    let mut all = tensors(&WeightMap::new(&spec(&config)));
    all.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![3]);
    all.insert("model.layers.2.mlp.up_proj.weight".into(), vec![10, 12]);
    let dir = write(&config, &all, |_| 0);
    let model = ModelDir::open(dir.path()).unwrap();
    let map = check_weights(&model, &spec(&config)).unwrap();
    assert_eq!(map.unused(&model), ["model.layers.2.mlp.up_proj.weight"]);
}

#[test]
fn latents_and_what_guesses_further_tokens() {
    let keys = json!({
        "num_key_value_heads": 3, "num_nextn_predict_layers": 1, "q_lora_rank": 5, "kv_lora_rank": 4, "qk_nope_head_dim": 2,
        "qk_rope_head_dim": 2, "v_head_dim": 3, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 1,
        "n_group": 2, "topk_group": 1, "moe_intermediate_size": 8, "n_shared_experts": 2,
    });
    let config = config("DeepseekV3ForCausalLM", keys);
    let mut all = tensors(&WeightMap::new(&spec(&config)));
    for (name, shape) in [
        ("model.layers.0.self_attn.q_a_proj.weight", &[5, 12][..]),
        ("model.layers.0.self_attn.q_a_layernorm.weight", &[5]),
        ("model.layers.0.self_attn.q_b_proj.weight", &[12, 5]),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", &[6, 12]),
        ("model.layers.0.self_attn.kv_a_layernorm.weight", &[4]),
        ("model.layers.0.self_attn.kv_b_proj.weight", &[15, 4]),
        ("model.layers.0.self_attn.o_proj.weight", &[12, 9]),
        ("model.layers.0.mlp.gate_proj.weight", &[10, 12]),
        ("model.layers.1.mlp.gate.weight", &[4, 12]),
        ("model.layers.1.mlp.gate.e_score_correction_bias", &[4]),
        ("model.layers.1.mlp.experts.3.down_proj.weight", &[12, 8]),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", &[16, 12]),
    ] {
        assert_eq!(all.get(name).map(Vec::as_slice), Some(shape), "{name}");
    }
    all.insert("model.layers.2.eh_proj.weight".into(), vec![12, 24]);
    all.insert("model.layers.3.eh_proj.weight".into(), vec![12, 24]);
    let dir = write(&config, &all, |_| 0);
    let model = open_model(dir.path()).unwrap();
    assert_eq!(model.weights.unused(&model.dir), ["model.layers.3.eh_proj.weight"]);
    let latent = model.weights.layers[0].latent.as_ref().unwrap();
    assert_eq!((latent.keys.stack, latent.keys.matrix_rows(), latent.keys.cols), (3, 4, 2));
    assert_eq!((latent.values.stack, latent.values.matrix_rows(), latent.values.cols), (3, 3, 4));
    assert_ne!(latent.keys.name(), latent.values.name());
}
