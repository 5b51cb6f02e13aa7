//! Tokenizers that are broken, or that ask for what no machine has.
use crate::checkpoint::Checkpoint;
use crate::http::post;
use crate::process::{Refusals, Server};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

const FILE: &str = "tokenizer.json";

fn edited(change: impl FnOnce(&mut Value)) -> Checkpoint {
    Checkpoint::chat().edit(FILE, change)
}

/// The tokenizer's text with `from` replaced.
fn prefixed(text: &str) -> Checkpoint {
    let checkpoint = Checkpoint::chat();
    let json = String::from_utf8(checkpoint.read(FILE)).expect("UTF-8");
    let body = json.trim_start().strip_prefix('{').expect("an object").to_owned();
    checkpoint.write(FILE, format!("{{{text},{body}"))
}

fn check_all(cases: Vec<(&str, Checkpoint, &[&str])>) {
    let mut refusals = Refusals::default();
    for (name, checkpoint, says) in cases {
        refusals.model(name, checkpoint.path(), &says.iter().copied().chain([FILE]).collect::<Vec<_>>());
    }
    refusals.done();
}

#[test]
fn broken_files() {
    let long = "x".repeat(200_000);
    check_all(vec![
        ("no object", Checkpoint::chat().write(FILE, "[]"), &["object"]),
        ("empty object", Checkpoint::chat().write(FILE, "{}"), &["model"]),
        ("no model", edited(|t| t["model"] = Value::Null), &["model"]),
        ("a list for a model", edited(|t| t["model"] = json!([])), &["model"]),
        ("another model", edited(|t| t["model"]["type"] = json!("Magic")), &["\"Magic\"", "BPE"]),
        ("a type that is a number", edited(|t| t["model"]["type"] = json!(5)), &["model.type"]),
        ("a type that fills the screen", edited(|t| t["model"]["type"] = json!(long)), &["model.type"]),
        ("another version", edited(|t| t["version"] = json!("9.0")), &["version"]),
        ("invalid UTF-8", Checkpoint::chat().write(FILE, b"{\"a\": \"\xc3\x28\"}"), &["UTF-8"]),
        ("deep nesting", prefixed(&format!("\"x\": {}{}", "[".repeat(100_000), "]".repeat(100_000))), &["JSON"]),
        ("deep objects", prefixed(&format!("\"x\": {}", "{\"a\":".repeat(100_000))), &["JSON"]),
        ("deep sequences", edited(|t| t["normalizer"] = sequences(50)), &["levels"]),
        ("ten million values", prefixed(&format!("\"x\": [{}1]", "1,".repeat(10_000_000))), &["values"]),
        ("150 MB", Checkpoint::chat().sparse(FILE, 150 << 20), &["MiB"]),
    ]);
}

fn sequences(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "NFC"}), |inner, _| json!({"type": "Sequence", "normalizers": [inner]}))
}

#[test]
fn broken_vocabularies() {
    let model = |key: &str, value: Value| edited(|t| t["model"][key] = value);
    let vocab = |change: fn(&mut Map<String, Value>)| {
        edited(|t| change(t["model"]["vocab"].as_object_mut().expect("a vocabulary")))
    };
    let merge = |merge: Value| edited(|t| t["model"]["merges"].as_array_mut().expect("merges").push(merge));
    let added = |entry: Value| edited(|t| t["added_tokens"].as_array_mut().expect("a list").push(entry));
    let token = |id: Value, content: &str| {
        added(
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}),
        )
    };
    check_all(vec![
        ("a huge id", vocab(|v| drop(v.insert("zz".into(), json!(4_000_000_000_u64)))), &["4000000000"]),
        ("an id beyond u32", vocab(|v| drop(v.insert("zz".into(), json!(1_u64 << 60)))), &["vocab"]),
        ("a negative id", vocab(|v| drop(v.insert("zz".into(), json!(-1)))), &["zz"]),
        ("a fractional id", vocab(|v| drop(v.insert("zz".into(), json!(1.5)))), &["zz"]),
        ("an id that is text", vocab(|v| drop(v.insert("zz".into(), json!("7")))), &["zz"]),
        ("an id twice", vocab(|v| drop(v.insert("zz".into(), json!(7)))), &["belongs to both"]),
        ("a token of 1 MB", vocab(|v| drop(v.insert("z".repeat(1 << 20), json!(440)))), &["bytes long"]),
        ("no vocabulary", model("vocab", Value::Null), &["vocab"]),
        ("a list for a vocabulary", model("vocab", json!([["a", 1]])), &["vocab"]),
        ("no merges", model("merges", Value::Null), &["merges"]),
        ("merges that are text", model("merges", json!("a b")), &["merges"]),
        ("a merge of one", merge(json!(["a"])), &["merges["]),
        ("a merge of numbers", merge(json!([1, 2])), &["merges["]),
        (
            "a merge longer than any token",
            merge(json!(["a".repeat(5000), "b".repeat(5000)])),
            &["merges[", "not in the vocabulary"],
        ),
        ("a merge without a result", merge(json!(["a", "\u{0120}"])), &["merges[", "not in the vocabulary"]),
        ("a prefix longer than tokens", model("continuing_subword_prefix", json!("#".repeat(100))), &["prefix"]),
        ("an added id that is taken", token(json!(7), "<new>"), &["<new>", "id 7"]),
        ("an added id far away", token(json!(4_000_000_000_u64), "<new>"), &["added_tokens"]),
        ("an added id after a gap", token(json!(500), "<new>"), &["<new>", "500"]),
        ("an added token without text", added(json!({"id": 443})), &["added_tokens", "content"]),
        ("an added token of 1 MB", token(json!(443), &"z".repeat(1 << 20)), &["added_tokens", "bytes long"]),
        ("added tokens that are none", edited(|t| t["added_tokens"] = json!(5)), &["added_tokens"]),
    ]);
}

#[test]
fn hostile_pipelines() {
    let with = |part: &str, value: Value| edited(|t| t[part] = value);
    let template = |change: fn(&mut Value)| {
        edited(|t| {
            let parts = t["post_processor"]["processors"].as_array_mut().expect("processors");
            change(parts.iter_mut().find(|p| p["type"] == "TemplateProcessing").expect("a template"));
        })
        // Which would replace the template.
        .edit("tokenizer_config.json", |c| drop(c.as_object_mut().and_then(|c| c.remove("add_bos_token"))))
    };
    let split = |pattern: &str| {
        with(
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
        )
    };
    let charsmap = |map: &str| with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": map}));
    let replace = |pattern: Value, content: &str| {
        with("normalizer", json!({"type": "Replace", "pattern": pattern, "content": content}))
    };
    let growing = json!({"type": "Sequence", "normalizers": vec![json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"}); 40]});
    check_all(vec![
        (
            "a template with an absent token",
            template(|t| t["single"][0] = json!({"SpecialToken": {"id": "[NOPE]", "type_id": 0}})),
            &["[NOPE]"],
        ),
        ("a template without its tokens", template(|t| t["special_tokens"] = json!({})), &["special_tokens"]),
        (
            "a template with a huge id",
            template(|t| t["special_tokens"]["<|bos|>"]["ids"] = json!([4_000_000_000_u64])),
            &["4000000000"],
        ),
        ("a template without text", template(|t| t["single"] = json!([])), &["single"]),
        ("fixed lengths of 0", with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})), &["length is 0"]),
        ("an unknown pre-tokenizer", with("pre_tokenizer", json!({"type": "Teleport"})), &["Teleport"]),
        ("a pre-tokenizer without type", with("pre_tokenizer", json!({"a": 1})), &["pre_tokenizer", "type"]),
        ("a number for a normalizer", with("normalizer", json!(5)), &["normalizer"]),
        ("a decoder of no kind", with("decoder", json!({"type": "Rot13"})), &["Rot13"]),
        ("a charsmap that asks for 4 GB", charsmap("/////w=="), &["charsmap"]),
        ("a charsmap that ends early", charsmap("AA=="), &["charsmap"]),
        ("a charsmap that points outside", charsmap("BAAAAP////8="), &["charsmap"]),
        ("a charsmap that is no base64", charsmap("*"), &["base64"]),
        ("a charsmap that is missing", with("normalizer", json!({"type": "Precompiled"})), &["charsmap"]),
        ("exponential backtracking", split(r"(?=(a+)+$)b|(?:a|a|aa)+(?!x)$"), &["backtracks"]),
        ("back references that explode", split(r"^(a*)*\1b(?!c)"), &["pre_tokenizer"]),
        ("a pattern of 10 GB", split(r"(((a{1000}){1000}){1000}){1000}"), &["pre_tokenizer"]),
        ("an unclosed pattern", split("("), &["regular expression"]),
        ("a pattern of 1 MB", split(&"a".repeat(1 << 20)), &["bytes long"]),
        ("deeply nested groups", split(&format!("{}a{}", "(".repeat(8000), ")".repeat(8000))), &["pre_tokenizer"]),
        ("text that grows without end", with("normalizer", growing), &["times longer"]),
        ("text replaced by a megabyte", replace(json!({"String": "a"}), &"b".repeat(1 << 20)), &["bytes long"]),
        ("a replacement without pattern", replace(Value::Null, "b"), &["pattern"]),
        (
            "a decoder that strips what is not there",
            with("decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 9})),
            &["Strip"],
        ),
    ]);
}

#[test]
fn files_beside_it() {
    let mut refusals = Refusals::default();
    for (file, text) in [
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "null"),
        ("tokenizer_config.json", "{\"a\":"),
        ("special_tokens_map.json", "[1]"),
        ("special_tokens_map.json", "{"),
    ] {
        let checkpoint = Checkpoint::chat().write(file, text);
        refusals.model(&format!("{file} {text}"), checkpoint.path(), &[file]);
    }
    refusals.done();
}

/// What is odd, or set to do harm that a server does not let happen, still serves: in bounded time.
#[test]
fn odd_but_harmless_tokenizers_serve() {
    let truncating = json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5});
    let padding = json!({"strategy": {"Fixed": 100_000_000}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"});
    let split =
        json!({"type": "Split", "pattern": {"Regex": r"(?=a)|(a+)+b"}, "behavior": "Isolated", "invert": false});
    for (name, checkpoint) in [
        ("a stride beyond the length", edited(|t| t["truncation"] = truncating)),
        ("padding to 100 million", edited(|t| t["padding"] = padding)),
        ("dropout", edited(|t| t["model"]["dropout"] = json!(1.5))),
        ("no decoder", edited(|t| t["decoder"] = Value::Null)),
        ("no pre-tokenizer", edited(|t| t["pre_tokenizer"] = Value::Null)),
        ("a pattern that is slow elsewhere", edited(|t| t["pre_tokenizer"] = split)),
        (
            "an empty vocabulary",
            edited(|t| {
                t["model"]["vocab"] = json!({});
                t["model"]["merges"] = json!([]);
                t["added_tokens"] = json!([]);
                t["post_processor"] = Value::Null;
            })
            .edit("tokenizer_config.json", |c| *c = json!({})),
        ),
        (
            "more tokens than the model has rows",
            edited(|t| drop(t["model"]["vocab"].as_object_mut().map(|v| v.insert("zz".into(), json!(443))))),
        ),
    ] {
        let server = Server::of(checkpoint.path(), &[]);
        for text in ["hello, world", &"a".repeat(20_000), &"a b".repeat(300_000), "zz"] {
            let body = json!({"model": checkpoint.name(), "prompt": text, "max_tokens": 2});
            let begin = Instant::now();
            let reply = post(&server.address, "/v1/completions", body.to_string().as_bytes());
            assert!(matches!(reply.status, 200 | 400), "{name}: {reply:?}");
            assert!(begin.elapsed() < Duration::from_secs(30), "{name}: {:?}", begin.elapsed());
        }
        server.stop();
    }
}
