//! Impossible and unsupported configurations.
use crate::checkpoint::Checkpoint;
use crate::http::post;
use crate::process::{Refusals, Server};
use serde_json::{Value, json};

const SUPPORTED: [&str; 6] = [
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
];

/// `config.json` with this text after its opening brace.
fn prefixed(text: &str) -> Checkpoint {
    let checkpoint = Checkpoint::chat();
    let config = String::from_utf8(checkpoint.read("config.json")).expect("UTF-8");
    let body = config.trim_start().strip_prefix('{').expect("an object").to_owned();
    checkpoint.write("config.json", format!("{{{text},{body}"))
}

/// `config.json` with `from` in its text replaced.
fn replaced(from: &str, to: &str) -> Checkpoint {
    let checkpoint = Checkpoint::chat();
    let config = String::from_utf8(checkpoint.read("config.json")).expect("UTF-8");
    assert!(config.contains(from), "{from}");
    checkpoint.write("config.json", config.replace(from, to))
}

#[test]
fn impossible_numbers() {
    let mut refusals = Refusals::default();
    let bad = [json!(0), json!(-1), json!(1e30), json!(8.5), json!("8"), json!(true), json!([[8]]), json!({"a": 8})];
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
    ] {
        for value in &bad {
            // A norm may do without, and a base may be a fraction.
            if !matches!((key, value.as_f64()), ("rms_norm_eps", Some(0.0)) | ("rope_theta", Some(8.5))) {
                let checkpoint = Checkpoint::chat().config(key, value.clone());
                refusals.model(&format!("{key} {value}"), checkpoint.path(), &["config.json", key, "expected"]);
            }
        }
    }
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"] {
        let checkpoint = Checkpoint::chat().config(key, Value::Null);
        refusals.model(&format!("{key} null"), checkpoint.path(), &["config.json", key, "expected"]);
        let checkpoint =
            Checkpoint::chat().edit("config.json", |c| drop(c.as_object_mut().and_then(|c| c.remove(key))));
        refusals.model(&format!("no {key}"), checkpoint.path(), &["config.json", key, "missing", "expected"]);
    }
    refusals.done();
}

#[test]
fn values_that_do_not_go_together() {
    let mut refusals = Refusals::default();
    let mut check = |key: &str, value: Value, says: &[&str]| {
        refusals.model(&format!("{key} {value}"), Checkpoint::chat().config(key, value).path(), says);
    };
    check("num_hidden_layers", json!(1_000_000_000), &["num_hidden_layers", "expected"]);
    // The most that is read, which the checkpoint does not have.
    check("num_hidden_layers", json!(1024), &["lacks", "model.layers.2.", "download"]);
    check("num_attention_heads", json!(5), &["num_key_value_heads", "divisor"]);
    check("num_key_value_heads", json!(3), &["num_key_value_heads", "divisor"]);
    check("head_dim", json!(15), &["head_dim", "even"]);
    check("head_dim", json!(1022), &["q_proj", "shape", "config.json"]);
    check("hidden_size", json!(66), &["shape", "config.json"]);
    check("intermediate_size", json!(1 << 20), &["_proj", "shape", "config.json"]);
    check("vocab_size", json!(444), &["embed_tokens", "[443, 64]", "[444, 64]"]);
    check("vocab_size", json!(442), &["embed_tokens", "[443, 64]", "[442, 64]"]);
    check("vocab_size", json!(1 << 22), &["embed_tokens", "config.json"]);
    check("hidden_act", json!("relu"), &["hidden_act", "silu"]);
    check("hidden_act", json!(3), &["hidden_act", "expected"]);
    check("tie_word_embeddings", json!("yes"), &["tie_word_embeddings", "true or false"]);
    check("tie_word_embeddings", json!(false), &["lm_head.weight", "download"]);
    check("attention_bias", json!(true), &["lacks", "bias"]);
    check("mlp_bias", json!(true), &["lacks", "bias"]);
    check("max_position_embeddings", json!(1), &["max_position_embeddings is 1", "use at least 2"]);
    check("partial_rotary_factor", json!(0.5), &["partial_rotary_factor", "1"]);
    refusals.done();
}

#[test]
fn rotary_scalings_of_no_shape() {
    let mut refusals = Refusals::default();
    let mut check = |value: Value, says: &[&str]| {
        for key in ["rope_scaling", "rope_parameters"] {
            refusals.model(&format!("{key} {value}"), Checkpoint::chat().config(key, value.clone()).path(), says);
        }
    };
    check(json!("linear"), &["expected", "object"]);
    check(json!([2.0]), &["expected", "object"]);
    check(json!({"rope_type": 5}), &["rope_type", "string"]);
    check(json!({"rope_type": "ntk\u{1b}[2J\nerror: forged"}), &["not supported; supported are", "yarn"]);
    check(json!({"rope_type": "dynamic", "factor": 2.0}), &["rope_type", "dynamic", "use yarn"]);
    check(json!({"type": "mrope", "mrope_section": [1, 2]}), &["mrope", "not supported; supported are"]);
    check(json!({"rope_type": "linear"}), &["factor", "missing"]);
    check(json!({"rope_type": "linear", "factor": 0}), &["factor", "expected"]);
    check(json!({"rope_type": "linear", "factor": "2"}), &["factor", "expected"]);
    check(json!({"rope_type": "yarn", "factor": 1e300}), &["factor", "expected"]);
    check(json!({"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 9}), &["beta_fast"]);
    check(json!({"rope_type": "llama3", "factor": 2}), &["low_freq_factor", "missing"]);
    check(
        json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}),
        &["high_freq_factor"],
    );
    check(
        json!({"rope_type": "llama3", "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 0}),
        &["original_max_position_embeddings", "expected"],
    );
    refusals.done();
}

#[test]
fn unsupported_models_are_named_with_the_supported_ones() {
    let mut refusals = Refusals::default();
    let mut check = |architectures: Value, says: &[&str]| {
        let says: Vec<&str> = says.iter().copied().chain(SUPPORTED).chain(["config.json"]).collect();
        let checkpoint = Checkpoint::chat().config("architectures", architectures.clone());
        // An unsupported model may lack anything that a supported one has.
        let checkpoint = checkpoint.remove("model.safetensors").remove("tokenizer.json");
        refusals.model(&format!("architectures {architectures}"), checkpoint.path(), &says);
    };
    for name in [
        "DeciLMForCausalLM",
        "GptOssForCausalLM",
        "MambaForCausalLM",
        "llamaforcausallm",
        "",
        "LlamaForSequenceClassification",
    ] {
        check(json!([name]), &[name, "not supported"]);
    }
    check(json!(["x".repeat(1 << 20)]), &["xxx...", "not supported"]);
    check(json!(["A\nerror: forged\u{1b}[31m"]), &["not supported"]);
    for shape in [json!("LlamaForCausalLM"), json!(5), json!([5]), json!({"0": "LlamaForCausalLM"})] {
        let checkpoint = Checkpoint::chat().config("architectures", shape.clone());
        refusals.model(&format!("architectures {shape}"), checkpoint.path(), &["architectures", "a list of strings"]);
    }
    for (model_type, says) in [
        (json!("deci"), &["model_type deci is not supported; supported are"][..]),
        (json!("gpt_oss"), &["model_type gpt_oss is not supported; supported are"]),
        (json!(5), &["model_type", "a string"]),
        (Value::Null, &["architectures", "expected one of"]),
    ] {
        for architectures in [json!([]), Value::Null] {
            let checkpoint =
                Checkpoint::chat().config("architectures", architectures).config("model_type", model_type.clone());
            refusals.model(&format!("model_type {model_type}"), checkpoint.path(), says);
        }
    }
    for quantization in
        [json!({"quant_method": "gptq", "bits": 4}), json!({"quant_method": "bitsandbytes"}), json!({"bits": 4})]
    {
        let checkpoint = Checkpoint::chat().config("quantization_config", quantization.clone());
        let says = ["quantized", "not supported", "f32, bf16 or f16"];
        refusals.model(&format!("quantization_config {quantization}"), checkpoint.path(), &says);
    }
    for quantization in [json!("fp8"), json!([])] {
        let checkpoint = Checkpoint::chat().config("quantization_config", quantization.clone());
        refusals.model(
            &format!("quantization_config {quantization}"),
            checkpoint.path(),
            &["quantization_config", "object"],
        );
    }
    refusals.done();
}

#[test]
fn hostile_json() {
    let mut refusals = Refusals::default();
    let mut check = |name: &str, checkpoint: Checkpoint, says: &[&str]| {
        refusals.model(name, checkpoint.path(), &says.iter().copied().chain(["config.json"]).collect::<Vec<_>>());
    };
    for number in ["NaN", "Infinity", "-Infinity"] {
        let checkpoint = replaced("\"rope_theta\": 10000.0", &format!("\"rope_theta\": {number}"));
        check(number, checkpoint, &["NaN or Infinity", "write a number"]);
    }
    check("1e999", replaced("10000.0", "1e999"), &["number out of range"]);
    check("a later key", replaced("\"torch_dtype\"", "\"vocab_size\": 0, \"x\""), &["vocab_size", "expected"]);
    let nested = |open: &str, close: &str| format!("\"x\": {}{}", open.repeat(100_000), close.repeat(100_000));
    check("lists in lists", prefixed(&nested("[", "]")), &["recursion limit", "download"]);
    check(
        "objects in objects",
        prefixed(&format!("\"x\": {}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000))),
        &["recursion limit"],
    );
    check("never closed", prefixed(&format!("\"x\": {}", "[".repeat(100_000))), &["JSON"]);
    check(
        "invalid UTF-8",
        Checkpoint::chat().write("config.json", b"{\"architectures\": [\"\xff\xfe\"]}"),
        &["JSON", "download"],
    );
    check("a byte order mark", Checkpoint::chat().write("config.json", "\u{feff}{}"), &["JSON", "download"]);
    check("trailing bytes", Checkpoint::chat().write("config.json", "{} {}"), &["JSON", "download"]);
    check("a list", Checkpoint::chat().write("config.json", "[]"), &["not an object", "download"]);
    check("null", Checkpoint::chat().write("config.json", "null"), &["not an object", "download"]);
    check(
        "an empty object",
        Checkpoint::chat().write("config.json", "{}"),
        &["architectures", "missing", "expected one of"],
    );
    check("17 MiB of spaces", prefixed(&format!("\"x\":{}1", " ".repeat(17 << 20))), &["at most"]);
    refusals.done();
}

#[test]
fn broken_generation_configs() {
    let mut refusals = Refusals::default();
    let mut check = |key: &str, value: Value| {
        let checkpoint = Checkpoint::chat().edit("generation_config.json", |config| config[key] = value.clone());
        refusals.model(&format!("{key} {value}"), checkpoint.path(), &["generation_config.json", key, "expected"]);
    };
    for value in [json!(-1), json!("3"), json!([3, "x"]), json!(4_294_967_296_u64), json!([1.5]), json!({})] {
        check("eos_token_id", value);
    }
    check("bos_token_id", json!("<s>"));
    for value in [json!(-0.5), json!(1e30), json!("hot"), json!([1])] {
        check("temperature", value);
    }
    check("top_p", json!(1.5));
    check("top_p", json!(-1));
    check("top_k", json!(-2));
    check("top_k", json!(0.5));
    check("min_p", json!(2));
    check("repetition_penalty", json!(0));
    check("do_sample", json!("no"));
    check("max_new_tokens", json!(-5));
    for text in ["[]", "5", "{\"a\":", "{\"temperature\": NaN}"] {
        let checkpoint = Checkpoint::chat().write("generation_config.json", text);
        refusals.model(text, checkpoint.path(), &["generation_config.json"]);
    }
    for key in ["eos_token_id", "bos_token_id"] {
        let checkpoint = Checkpoint::chat().remove("generation_config.json").config(key, json!({"id": 1}));
        refusals.model(&format!("{key} of config.json"), checkpoint.path(), &["config.json", key, "token id"]);
    }
    refusals.done();
}

#[test]
fn odd_but_sound_configs_serve() {
    let eos = |ids: Value| {
        Checkpoint::chat()
            .config("eos_token_id", ids.clone())
            .edit("generation_config.json", |c| c["eos_token_id"] = ids)
    };
    for (name, checkpoint) in [
        ("end-of-sequence ids outside the vocabulary", eos(json!([3, 1_000_000]))),
        ("no end-of-sequence id", eos(Value::Null)),
        ("the same key twice", replaced("\"use_cache\": true", "\"vocab_size\": 443")),
        ("whole floats", Checkpoint::chat().config("hidden_size", json!(64.0))),
        ("no epsilon", Checkpoint::chat().config("rms_norm_eps", json!(0.0))),
        ("empty scaling", Checkpoint::chat().config("rope_scaling", json!({}))),
        ("a type alone", Checkpoint::chat().config("architectures", json!([]))),
        ("garbage under a name that nobody reads", Checkpoint::chat().config("x\n\u{0}", json!([[[{"a": [null]}]]]))),
        ("the shortest context", Checkpoint::chat().config("max_position_embeddings", json!(2))),
        (
            "sampling defaults beyond OpenAI's",
            Checkpoint::chat().edit("generation_config.json", |c| {
                *c = json!({"temperature": 3.5, "top_k": 1_000_000, "repetition_penalty": 150.0});
            }),
        ),
    ] {
        let server = Server::of(checkpoint.path(), &[]);
        let body = format!(r#"{{"model": "{}", "prompt": [5], "max_tokens": 1}}"#, checkpoint.name());
        let reply = post(&server.address, "/v1/completions", body.as_bytes());
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        server.stop();
    }
}
