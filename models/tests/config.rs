//! `config.json` to `DecoderSpec`: published configs, defaults, both spellings, and what is refused.
use anyfleet_models::{DecoderSpec, ExpertNames, MlpSpec, RopeScaling, spec_from_config, supported_architectures};
use anyfleet_tensor::ops::{Activation, ExpertGroups, GroupScore, Scoring};
use anyfleet_weights::{Config, Error};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn spec_of(value: &Value) -> Result<DecoderSpec, Error> {
    spec_from_config(&Config::parse("config.json".as_ref(), value.to_string().as_bytes())?)
}

/// A small config of a family.
fn config(architecture: &str) -> Map<String, Value> {
    let value = json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    });
    value.as_object().unwrap().clone()
}

/// The small config with some keys replaced, or removed where the value is `"remove"`.
fn with(architecture: &str, keys: Value) -> Result<DecoderSpec, Error> {
    let mut config = config(architecture);
    for (key, value) in keys.as_object().unwrap() {
        if value == "remove" {
            config.remove(key);
        } else {
            config.insert(key.clone(), value.clone());
        }
    }
    spec_of(&Value::Object(config))
}

fn llama(keys: Value) -> Result<DecoderSpec, Error> {
    with("LlamaForCausalLM", keys)
}

#[track_caller]
fn refused(result: Result<DecoderSpec, Error>, parts: &[&str]) {
    let line = result.expect_err("accepted").to_string();
    assert!(line.starts_with("config.json: ") && line.len() < 800, "{line}");
    assert!(!line.chars().any(char::is_control), "{line:?}");
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
}

fn windows(spec: &DecoderSpec) -> Vec<Option<usize>> {
    spec.layers.iter().map(|l| l.attention.window).collect()
}

fn scaling(spec: &DecoderSpec) -> RopeScaling {
    spec.layers[0].attention.rope.as_ref().unwrap().scaling.clone()
}

fn theta(spec: &DecoderSpec) -> f64 {
    spec.layers[0].attention.rope.as_ref().unwrap().theta
}

#[test]
fn defaults_of_each_family() {
    for (architecture, family, positions, kv_heads, head_dim, window, bias, qk_norm) in [
        ("LlamaForCausalLM", "llama", 2048, 32, 2, None, false, false),
        ("MistralForCausalLM", "mistral", 131_072, 8, 2, Some(4096), false, false),
        ("Qwen2ForCausalLM", "qwen2", 32_768, 32, 2, None, true, false),
        ("Qwen3ForCausalLM", "qwen3", 32_768, 32, 128, None, false, true),
        ("MixtralForCausalLM", "mixtral", 131_072, 8, 2, None, false, false),
        ("Qwen3MoeForCausalLM", "qwen3_moe", 32_768, 4, 2, None, false, true),
    ] {
        let spec = with(architecture, json!({"num_key_value_heads": "remove", "num_attention_heads": 32})).unwrap();
        let attention = &spec.layers[0].attention;
        assert_eq!((spec.family, spec.max_position_embeddings, spec.layers.len()), (family, positions, 4));
        assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (32, kv_heads, head_dim), "{family}");
        assert_eq!(windows(&spec), [window; 4]);
        assert_eq!((attention.qkv_bias, attention.output_bias), (bias, false), "{family}");
        assert_eq!(attention.qk_norm.map(|n| n.eps), qk_norm.then_some(1e-6));
        assert_eq!((spec.tied_head, spec.final_norm.eps, theta(&spec)), (false, 1e-6, 1e4));
        assert_eq!(attention.scale, (head_dim as f32).powf(-0.5));
        assert_eq!((spec.layers[0].mlp.activation, spec.layers[0].mlp.bias), (Activation::Silu, false));
        assert_eq!(scaling(&spec), RopeScaling::None);
    }
}

#[test]
fn options_of_each_family() {
    let spec = llama(json!({"attention_bias": true, "mlp_bias": true, "head_dim": 80, "tie_word_embeddings": true}));
    let spec = spec.unwrap();
    let layer = &spec.layers[3];
    assert!(layer.attention.qkv_bias && layer.attention.output_bias && layer.mlp.bias && spec.tied_head);
    assert_eq!((layer.attention.head_dim, layer.attention.rope.as_ref().unwrap().rotary_dim), (80, 80));

    let spec = with("MistralForCausalLM", json!({"sliding_window": null, "head_dim": 32, "num_key_value_heads": null}));
    let spec = spec.unwrap();
    assert_eq!((windows(&spec), spec.layers[0].attention.kv_heads), (vec![None; 4], 4));
    assert_eq!(windows(&with("MistralForCausalLM", json!({"sliding_window": 7})).unwrap()), [Some(7); 4]);

    let spec = with("Qwen3ForCausalLM", json!({"attention_bias": true, "rms_norm_eps": 1e-5})).unwrap();
    let attention = &spec.layers[0].attention;
    assert!(attention.qkv_bias && attention.output_bias);
    assert_eq!(attention.qk_norm.unwrap().eps, 1e-5);
    let spec = with("Qwen2ForCausalLM", json!({"attention_bias": false, "hidden_act": "gelu_pytorch_tanh"})).unwrap();
    assert!(spec.layers[0].attention.qkv_bias && !spec.layers[0].attention.output_bias);
    assert_eq!(spec.layers[0].mlp.activation, Activation::GeluTanh);

    let by_type = llama(json!({"architectures": null, "model_type": "qwen3"})).unwrap();
    assert_eq!(by_type.family, "qwen3");
    assert_eq!(with("Qwen3Model", json!({})).unwrap().family, "qwen3");
}

#[test]
fn experts_of_each_family() {
    let names = |spec: &DecoderSpec| spec.layers[0].mlp.experts.map(|experts| experts.names);
    let sizes = |spec: &DecoderSpec| -> Vec<_> {
        let of = |mlp: &MlpSpec| mlp.experts.map(|e| (e.count, e.per_token, e.renormalise));
        spec.layers.iter().map(|layer| (layer.mlp.intermediate_size, of(&layer.mlp))).collect()
    };
    let mixtral = with("MixtralForCausalLM", json!({})).unwrap();
    assert_eq!((names(&mixtral), sizes(&mixtral)), (Some(ExpertNames::BlockSparse), vec![(96, Some((8, 2, true))); 4]));
    let keys = json!({"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 9});
    let mixtral = with("MixtralForCausalLM", keys).unwrap();
    assert_eq!(sizes(&mixtral)[3], (96, Some((5, 3, true))));
    assert_eq!(windows(&mixtral), [Some(9); 4]);

    let moe = |keys| with("Qwen3MoeForCausalLM", keys);
    let plain = moe(json!({})).unwrap();
    assert_eq!((names(&plain), sizes(&plain)), (Some(ExpertNames::Mlp), vec![(768, Some((128, 8, false))); 4]));
    let keys = json!({"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": true, "moe_intermediate_size": 40,
                      "mlp_only_layers": [2], "decoder_sparse_step": 1});
    let some = (40, Some((6, 2, true)));
    assert_eq!(sizes(&moe(keys).unwrap()), [some, some, (96, None), some]);
    let keys = json!({"num_local_experts": 6, "decoder_sparse_step": 2, "mlp_only_layers": []});
    let some = (768, Some((6, 8, false)));
    refused(moe(keys.clone()), &["num_experts_per_tok", "at most as many as there are experts (6)"]);
    let keys = json!({"num_local_experts": 9, "decoder_sparse_step": 2, "mlp_only_layers": null});
    assert_eq!(sizes(&moe(keys).unwrap())[..2], [(96, None), (some.0, Some((9, 8, false)))]);
    let windowed = moe(json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2})).unwrap();
    assert_eq!(windows(&windowed), [Some(5); 4]);

    for (key, value) in [("num_experts", json!(0)), ("num_experts", json!(1e9)), ("num_experts_per_tok", json!(-1))] {
        refused(moe(json!({key: value})), &[key, "expected a whole number in 1..="]);
    }
    refused(
        moe(json!({"num_experts": 2048, "num_hidden_layers": 1000})),
        &["num_experts is 2048", "over all 1000 layers"],
    );
    refused(moe(json!({"mlp_only_layers": [1.5]})), &["mlp_only_layers", "a list of whole numbers"]);
}

#[test]
fn latents_and_experts_of_deepseek() {
    let v2 = |keys| with("DeepseekV2ForCausalLM", keys);
    let v3 = |keys| with("DeepseekV3ForCausalLM", keys);
    let spec = v3(json!({"n_routed_experts": 32, "num_experts_per_tok": 5})).unwrap();
    assert_eq!((spec.family, spec.max_position_embeddings), ("deepseek_v3", 4096));
    for (i, layer) in spec.layers.iter().enumerate() {
        let attention = &layer.attention;
        let latent = attention.latent.unwrap();
        assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (4, 1, 576));
        assert_eq!((latent.query_rank, latent.rank, latent.plain), (Some(1536), 512, 128));
        assert_eq!((latent.rotated, latent.value, latent.norm.eps), (64, 128, 1e-6));
        assert_eq!(attention.scale, 192f64.powf(-0.5) as f32);
        let rope = attention.rope.as_ref().unwrap();
        assert!(rope.interleaved && rope.rotary_dim == 64);
        // The first three layers are dense.
        assert_eq!(layer.mlp.experts.is_some(), i == 3);
    }
    let experts = spec.layers[3].mlp.experts.unwrap();
    assert_eq!((experts.count, experts.per_token, experts.shared, experts.scale), (32, 5, 2048, 2.5));
    assert!(experts.biased && experts.renormalise && experts.scoring == Scoring::Sigmoid);
    assert_eq!(experts.groups, Some(ExpertGroups { count: 8, kept: 4, score: GroupScore::TwoHighest }));
    // Kimi K2: all experts are one group.
    let one = json!({"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": null});
    assert_eq!(v3(one).unwrap().layers[1].mlp.experts.unwrap().groups, None);

    let lite = json!({
        "q_lora_rank": null, "n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 2,
        "moe_intermediate_size": 10, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "rope_interleave": false,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1, "attention_bias": false, "rope_scaling": {
            "type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 32,
        },
    });
    let spec = v2(lite).unwrap();
    let attention = &spec.layers[0].attention;
    assert_eq!(attention.latent.unwrap().query_rank, None);
    let factor = 0.1 * 0.707 * 40f64.ln() + 1.0;
    assert_eq!(attention.scale, (24f64.powf(-0.5) * factor * factor) as f32);
    assert!(!attention.rope.as_ref().unwrap().interleaved);
    let RopeScaling::Yarn { attention_factor, .. } = scaling(&spec) else { panic!("no yarn") };
    assert_eq!(attention_factor, 1.0);
    let sparse: Vec<bool> = spec.layers.iter().map(|l| l.mlp.experts.is_some()).collect();
    assert_eq!(sparse, [false, false, true, false]);
    let experts = spec.layers[2].mlp.experts.unwrap();
    assert_eq!((experts.groups, experts.shared, experts.biased), (None, 20, false));
    let grouped = json!({"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3});
    let groups = v2(grouped).unwrap().layers[0].mlp.experts.unwrap().groups;
    assert_eq!(groups, Some(ExpertGroups { count: 8, kept: 3, score: GroupScore::Highest }));
    assert!(v2(json!({"n_routed_experts": null})).unwrap().layers.iter().all(|l| l.mlp.experts.is_none()));

    for (keys, parts) in [
        (json!({"n_group": 7}), ["n_group", "a divisor of n_routed_experts (256)"]),
        (json!({"topk_group": 9}), ["topk_group", "at most n_group (8)"]),
        (json!({"n_routed_experts": 8, "topk_group": 4}), ["num_experts_per_tok", "can choose from (4)"]),
        (json!({"scoring_func": "softmax"}), ["scoring_func", "sigmoid"]),
        (json!({"topk_method": "best"}), ["topk_method", "greedy or noaux_tc"]),
        (json!({"q_lora_rank": null, "attention_bias": true}), ["attention_bias", "q_lora_rank is null"]),
        (json!({"kv_lora_rank": 511}), ["kv_lora_rank", "an even number"]),
        (json!({"qk_rope_head_dim": 7}), ["qk_rope_head_dim", "an even number"]),
        (json!({"qk_nope_head_dim": 0}), ["qk_nope_head_dim", "a whole number in 1..=1024"]),
    ] {
        refused(v3(keys), &parts);
    }
    refused(v2(json!({"norm_topk_prob": true})), &["norm_topk_prob", "false"]);
}

#[test]
fn sliding_layers_of_qwen() {
    for architecture in ["Qwen2ForCausalLM", "Qwen3ForCausalLM"] {
        let of = |keys| with(architecture, keys);
        let on = json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 3});
        assert_eq!(windows(&of(on).unwrap()), [None, None, None, Some(9)]);
        let off = json!({"use_sliding_window": false, "sliding_window": 9, "max_window_layers": 0});
        assert_eq!(windows(&of(off).unwrap()), [None; 4]);
        let defaults = json!({"use_sliding_window": true, "max_window_layers": 0});
        assert_eq!(windows(&of(defaults).unwrap()), [Some(4096); 4]);
        let (full, sliding) = ("full_attention", "sliding_attention");
        let typed =
            json!({"use_sliding_window": true, "sliding_window": 9, "layer_types": [sliding, full, sliding, full]});
        assert_eq!(windows(&of(typed).unwrap()), [Some(9), None, Some(9), None]);
        refused(of(json!({"layer_types": [sliding, full, full, full]})), &["layer_types", "use_sliding_window is off"]);
        refused(of(json!({"layer_types": [full]})), &["one entry for each of the 4 layers"]);
        refused(of(json!({"layer_types": [full, full, full, "linear_attention"]})), &["the types supported"]);
    }
}

#[test]
fn gemma2() {
    let of = |keys| with("Gemma2ForCausalLM", keys);
    let spec = of(json!({"num_key_value_heads": "remove"})).unwrap();
    assert_eq!((spec.family, spec.max_position_embeddings, spec.tied_head), ("gemma2", 8192, true));
    assert_eq!((spec.embed_scale, spec.logit_softcap, spec.norms_less_one), (Some(8.0), Some(30.0), true));
    assert_eq!(windows(&spec), [Some(4096), None, Some(4096), None]);
    for layer in &spec.layers {
        let attention = &layer.attention;
        assert_eq!((attention.kv_heads, attention.head_dim, attention.scale), (4, 256, 0.0625));
        assert_eq!((attention.softcap, attention.qk_norm), (Some(50.0), None));
        assert_eq!((layer.mlp.activation, layer.post_norm.map(|n| n.eps)), (Activation::GeluTanh, Some(1e-6)));
    }
    // The key that others have for the activation is not read.
    let keys = json!({
        "hidden_act": "relu", "hidden_activation": "silu", "query_pre_attn_scalar": 144, "attn_logit_softcapping": null,
        "final_logit_softcapping": 12.5, "sliding_window": 9, "tie_word_embeddings": false, "attention_bias": true,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    });
    let spec = of(keys).unwrap();
    let attention = &spec.layers[1].attention;
    assert_eq!((attention.scale, attention.softcap, spec.logit_softcap), (1.0 / 12.0, None, Some(12.5)));
    assert_eq!((windows(&spec), spec.tied_head), (vec![None, Some(9), Some(9), None], false));
    assert!(attention.qkv_bias && attention.output_bias && spec.layers[0].mlp.activation == Activation::Silu);
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"] {
        for bad in [json!(0), json!(-1.5), json!("50"), json!(1e30)] {
            refused(of(json!({key: bad})), &[key]);
        }
    }
    refused(of(json!({"use_bidirectional_attention": true})), &["use_bidirectional_attention", "looks back only"]);
    refused(of(json!({"layer_types": ["full_attention"]})), &["one entry for each of the 4 layers"]);
}

#[test]
fn gemma3() {
    let of = |keys| with("Gemma3ForCausalLM", keys);
    let ropes = |spec: &DecoderSpec| -> Vec<(f64, RopeScaling)> {
        let ropes = spec.layers.iter().map(|l| l.attention.rope.as_ref().unwrap());
        ropes.map(|rope| (rope.theta, rope.scaling.clone())).collect()
    };
    let spec = of(json!({"num_hidden_layers": 7})).unwrap();
    assert_eq!((spec.family, spec.max_position_embeddings, spec.tied_head), ("gemma3", 131_072, true));
    assert_eq!((spec.embed_scale, spec.logit_softcap, spec.norms_less_one), (Some(8.0), None, true));
    let attention = &spec.layers[0].attention;
    assert_eq!((attention.softcap, attention.qk_norm.map(|n| n.eps), attention.scale), (None, Some(1e-6), 0.0625));
    let (local, global) = ((1e4, RopeScaling::None), (1e6, RopeScaling::None));
    let w = Some(4096);
    assert_eq!(windows(&spec), [w, w, w, w, w, None, w]);
    assert_eq!(ropes(&spec)[4..], [local.clone(), global, local]);

    let scaled = (5e5, RopeScaling::Linear { factor: 8.0 });
    let hub = json!({
        "sliding_window_pattern": 2, "sliding_window": 5, "rope_theta": 5e5, "rope_local_base_freq": 300.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    });
    let v5 = json!({
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"], "sliding_window": 5,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    });
    for keys in [hub, v5] {
        let spec = of(keys).unwrap();
        assert_eq!(windows(&spec), [Some(5), None, Some(5), None]);
        let local = (300.0, RopeScaling::None);
        assert_eq!(ropes(&spec), [local.clone(), scaled.clone(), local, scaled.clone()]);
    }
    refused(of(json!({"attn_logit_softcapping": 50.0})), &["attn_logit_softcapping", "null"]);
    refused(of(json!({"rope_local_base_freq": 0})), &["rope_local_base_freq"]);
    refused(of(json!({"sliding_window_pattern": 0})), &["sliding_window_pattern"]);
    assert_eq!(of(json!({"final_logit_softcapping": 20})).unwrap().logit_softcap, Some(20.0));
}

#[test]
fn rope_in_both_spellings() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let mut newer = llama3.clone();
    newer["rope_theta"] = json!(500_000.0);
    let older = llama(json!({"rope_theta": 500_000.0, "rope_scaling": llama3})).unwrap();
    assert_eq!(older, llama(json!({"rope_parameters": newer})).unwrap());
    assert_eq!(theta(&older), 500_000.0);
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(scaling(&older), expected);

    let plain = llama(json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}})).unwrap();
    assert_eq!((theta(&plain), scaling(&plain)), (1e6, RopeScaling::None));
    assert_eq!(plain, llama(json!({"rope_theta": 1_000_000, "rope_scaling": null})).unwrap());
    let linear = llama(json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
    assert_eq!(scaling(&linear), RopeScaling::Linear { factor: 2.0 });
}

#[test]
fn yarn_defaults() {
    let yarn = |keys: Value| {
        let mut p = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        p.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        scaling(&llama(json!({"rope_scaling": p, "max_position_embeddings": 131_072})).unwrap())
    };
    let expected = |attention_factor, beta_fast, beta_slow, truncate| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast,
        beta_slow,
        attention_factor,
        original_max_position_embeddings: 32_768,
        truncate,
    };
    let usual = 0.1 * 4f64.ln() + 1.0;
    assert_eq!(yarn(json!({})), expected(usual, 32.0, 1.0, true));
    assert_eq!(yarn(json!({"factor": null})), expected(usual, 32.0, 1.0, true));
    assert_eq!(yarn(json!({"beta_fast": 0, "beta_slow": null})), expected(usual, 32.0, 1.0, true));
    assert_eq!(
        yarn(json!({"attention_factor": 1.25, "beta_fast": 20, "beta_slow": 2, "truncate": false})),
        expected(1.25, 20.0, 2.0, false)
    );
    let weighted = (0.1 * 0.707 * 4f64.ln() + 1.0) / (0.1 * 0.5 * 4f64.ln() + 1.0);
    assert_eq!(yarn(json!({"mscale": 0.707, "mscale_all_dim": 0.5})), expected(weighted, 32.0, 1.0, true));
    assert_eq!(yarn(json!({"mscale": 0.707})), expected(usual, 32.0, 1.0, true));

    let beside = json!({"rope_scaling": {"type": "yarn", "factor": 2}, "original_max_position_embeddings": 1000});
    let RopeScaling::Yarn { original_max_position_embeddings, .. } = scaling(&llama(beside).unwrap()) else {
        panic!("not yarn");
    };
    assert_eq!(original_max_position_embeddings, 1000);
}

#[test]
fn ropes_that_are_refused() {
    for (parameters, words) in [
        (json!({"type": "dynamic", "factor": 2}), &["rope_scaling.type is \"dynamic\"", "yarn"][..]),
        (json!({"type": "longrope"}), &["longrope is not supported", "llama3 and yarn"]),
        (json!({"rope_type": 3}), &["rope_scaling.rope_type is 3", "a string"]),
        (json!({"type": "linear"}), &["rope_scaling.factor is missing"]),
        (json!({"type": "linear", "factor": 0}), &["rope_scaling.factor is 0"]),
        (json!({"type": "linear", "factor": "2"}), &["rope_scaling.factor is \"2\""]),
        (
            json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            &["high_freq_factor is 4"],
        ),
        (json!({"type": "llama3", "factor": 8}), &["low_freq_factor is missing"]),
        (json!({"type": "yarn", "factor": -1}), &["rope_scaling.factor is -1"]),
        (json!({"type": "yarn", "factor": 2, "attention_factor": 0}), &["attention_factor is 0"]),
        (json!({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}), &["beta_fast is 1"]),
        (
            json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}),
            &["original_max_position_embeddings is 0"],
        ),
        (json!({"type": "default", "partial_rotary_factor": 0.5}), &["partial_rotary_factor is 0.5", "whole heads"]),
        (json!({"full_attention": {"rope_theta": 1e4}}), &["full_attention", "by layer type"]),
        (json!([1]), &["rope_scaling is [1]", "an object"]),
    ] {
        refused(llama(json!({"rope_scaling": parameters})), words);
    }
    refused(llama(json!({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}})), &["rope_theta"]);
    for theta in [json!(0), json!(-1e4), json!("1e4"), json!(1e300), json!(0.5)] {
        refused(llama(json!({"rope_theta": theta})), &["rope_theta"]);
        refused(llama(json!({"rope_parameters": {"rope_theta": theta, "rope_type": "default"}})), &["rope_theta"]);
    }
}

#[test]
fn impossible_sizes() {
    for key in [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "head_dim",
        "max_position_embeddings",
    ] {
        for value in [json!(0), json!(-1), json!(1e9), json!(1e18), json!(1.5), json!("4"), json!([]), json!(u64::MAX)]
        {
            refused(llama(json!({key: value})), &[key, "expected a whole number in 1..="]);
        }
    }
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        for value in [json!("remove"), json!(null)] {
            refused(llama(json!({key: value})), &[key, "expected a whole number in 1..="]);
        }
    }
    refused(
        llama(json!({"num_key_value_heads": 3})),
        &["num_key_value_heads is 3", "divisor of num_attention_heads (4)"],
    );
    refused(llama(json!({"num_key_value_heads": 8})), &["divisor of num_attention_heads (4)"]);
    refused(llama(json!({"head_dim": 5})), &["head_dim is 5", "even"]);
    refused(llama(json!({"hidden_size": 66})), &["hidden_size is 66", "multiple of num_attention_heads (4)"]);
    refused(llama(json!({"hidden_size": 60})), &["hidden_size is 60", "even head size, not 15"]);
    refused(llama(json!({"hidden_size": 100_000})), &["heads of at most 1024"]);
    for eps in [json!(-1e-6), json!("1e-6"), json!(2)] {
        refused(llama(json!({"rms_norm_eps": eps})), &["rms_norm_eps"]);
    }
    refused(llama(json!({"hidden_act": "relu"})), &["hidden_act is \"relu\"", "silu or gelu_pytorch_tanh"]);
    refused(llama(json!({"tie_word_embeddings": "yes"})), &["tie_word_embeddings is \"yes\"", "true or false"]);
    for window in [json!(0), json!(-5), json!(1e12)] {
        refused(with("MistralForCausalLM", json!({"sliding_window": window})), &["sliding_window"]);
    }
}

#[test]
fn unsupported_models() {
    let all: Vec<&str> = supported_architectures().collect();
    let first = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM"];
    assert_eq!(all[..4], first);
    assert_eq!(
        all[4..],
        [
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "MixtralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM"
        ]
    );
    let tower = json!({"model_type": "gemma3", "text_config": {}, "vision_config": {}});
    refused(with("Gemma3ForConditionalGeneration", tower), &["vision tower", "text alone", &all.join(", ")]);
    let listed = all.join(", ");
    refused(with("MambaForCausalLM", json!({})), &["architecture MambaForCausalLM is not supported", &listed]);
    refused(with("LlamaForSequenceClassification", json!({})), &["LlamaForSequenceClassification", &listed]);
    refused(with(&format!("evil\n{}", "x".repeat(1 << 20)), json!({})), &["evil\\n", &listed]);
    refused(
        llama(json!({"architectures": null, "model_type": "gpt2"})),
        &["model_type gpt2 is not supported", &listed],
    );
    refused(llama(json!({"architectures": []})), &["architectures is []", &listed]);
    refused(llama(json!({"architectures": "LlamaForCausalLM"})), &["architectures", "a list of strings"]);
    let gptq = json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
    refused(llama(gptq), &["quantized (gptq)", "f32, bf16 or f16"]);
    for (config, named) in [
        (
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "compressed-tensors, pack-quantized",
        ),
        (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "modelopt, NVFP4"),
        (json!({"quant_method": "awq"}), "awq"),
    ] {
        refused(llama(json!({"quantization_config": config})), &["quantized", named, "float-quantized"]);
    }
    for config in [
        json!(null),
        json!({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
        json!({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}),
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]}),
        json!({"quant_method": "modelopt", "quant_algo": "FP8"}),
    ] {
        assert!(llama(json!({"quantization_config": config})).is_ok(), "{config}");
    }
}

/// Published configs, from `ANYFLEET_DATA` or beside the workspace.
fn data() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let configs = std::env::var_os("ANYFLEET_DATA").map_or_else(beside, PathBuf::from).join("configs");
    if configs.is_dir() {
        return Some(configs);
    }
    println!("SKIPPED: no published configs; set ANYFLEET_DATA to the directory that has configs/");
    None
}

fn find(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, found);
        } else if path.ends_with("config.json") {
            found.push(path);
        }
    }
}

#[test]
fn published_configs() {
    let Some(root) = data() else { return };
    let mut paths = Vec::new();
    find(&root, &mut paths);
    assert!(paths.len() >= 30, "{} configs", paths.len());
    let (mut mapped, mut unsupported) = (0, 0);
    for path in paths {
        let config = Config::read(&path).unwrap();
        let raw: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let architecture = raw["architectures"][0].as_str();
        match spec_from_config(&config) {
            Ok(spec) => {
                assert!(architecture.is_some_and(|a| supported_architectures().any(|s| s == a)), "{path:?}");
                agrees(&spec, &raw);
                mapped += 1;
            }
            Err(error) => {
                let line = error.to_string();
                assert!(
                    architecture.is_none_or(|a| line.contains(a) && !supported_architectures().any(|s| s == a)),
                    "{line}"
                );
                assert!(line.contains("LlamaForCausalLM, MistralForCausalLM"), "{line}");
                unsupported += 1;
            }
        }
    }
    println!("{mapped} configs mapped, {unsupported} refused");
    assert!(mapped >= 20 && unsupported >= 8);
}

/// What a config states is what the spec has.
fn agrees(spec: &DecoderSpec, raw: &Value) {
    let size = |key: &str| raw[key].as_u64().map(|n| n as usize);
    let heads = size("num_attention_heads").unwrap();
    let head_dim = size("head_dim").unwrap_or_else(|| size("hidden_size").unwrap() / heads);
    assert_eq!(spec.layers.len(), size("num_hidden_layers").unwrap());
    assert_eq!(Some(spec.hidden_size), size("hidden_size"));
    assert_eq!(Some(spec.vocab_size), size("vocab_size"));
    assert_eq!(Some(spec.max_position_embeddings), size("max_position_embeddings"));
    assert_eq!(spec.tied_head, raw["tie_word_embeddings"].as_bool().unwrap());
    for layer in &spec.layers {
        let attention = &layer.attention;
        assert_eq!((attention.heads, attention.head_dim), (heads, head_dim));
        assert_eq!(Some(attention.kv_heads), size("num_key_value_heads"));
        let inner = match layer.mlp.experts {
            Some(experts) => {
                assert_eq!(Some(experts.count), size("num_experts").or(size("num_local_experts")));
                assert_eq!(Some(experts.per_token), size("num_experts_per_tok"));
                size("moe_intermediate_size").or(size("intermediate_size"))
            }
            None => size("intermediate_size"),
        };
        assert_eq!(Some(layer.mlp.intermediate_size), inner);
        assert_eq!(layer.input_norm.eps, raw["rms_norm_eps"].as_f64().unwrap() as f32);
        // No published config among these uses its window.
        assert_eq!(attention.window, None);
        assert_eq!(attention.qkv_bias, spec.family == "qwen2");
        assert_eq!(attention.qk_norm.is_some(), spec.family.starts_with("qwen3"));
        let rope = attention.rope.as_ref().unwrap();
        assert_eq!(Some(rope.theta), raw["rope_theta"].as_f64());
        match raw["rope_scaling"]["rope_type"].as_str() {
            Some("llama3") => assert!(matches!(rope.scaling, RopeScaling::Llama3 { .. })),
            _ => assert_eq!(rope.scaling, RopeScaling::None),
        }
    }
}
