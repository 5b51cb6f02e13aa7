//! Broken and hostile tokenizer files: one clear line each, no panic, no hang, no runaway memory.

use crate::common;
use std::time::{Duration, Instant};

use anyfleet_text::{Error, Tokenizer};
use serde_json::{Value, json};

/// Loads, and checks that the file is refused in one short line, at once, without a panic.
fn refused(what: &str, bytes: &[u8]) -> String {
    let start = Instant::now();
    let error = Tokenizer::from_bytes(bytes).map(drop).expect_err(what).to_string();
    assert!(!error.contains('\n') && error.len() < 600, "{what}: {error}");
    assert!(!error.contains("panicked"), "{what} reached the library: {error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{what} took {:?}", start.elapsed());
    error
}

/// The byte-fallback tokenizer with one change.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut file = common::byte_fallback();
    change(&mut file);
    file.to_string().into_bytes()
}

#[test]
fn broken_json() {
    let good = common::byte_level().to_string();
    for cut in [0, 1, good.len() / 3, good.len() - 1] {
        refused("truncated", &good.as_bytes()[..cut]);
    }
    refused("not UTF-8", b"{\"version\": \"\xFF\"}");
    refused("a list", b"[]");
    refused("no model", b"{}");
    refused("deep nesting", "[".repeat(1 << 20).as_bytes());
    refused("deep objects", "{\"a\":".repeat(1 << 20).as_bytes());
    let many = format!("{{\"model\": [{}0]}}", "0,".repeat(9 << 20));
    assert!(refused("values without end", many.as_bytes()).contains("values"));
    refused("version", &changed(|f| f["version"] = json!("9")));
}

/// Files that use each kind of model and most other parts.
pub fn variants() -> Vec<Value> {
    let mut word_piece = common::byte_fallback();
    word_piece["model"] = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "the": 1, "##m": 2, "t": 3}});
    word_piece["added_tokens"] = json!([]);
    word_piece["normalizer"] = json!({"type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
    word_piece["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "BertPreTokenizer"}, {"type": "Digits", "individual_digits": true},
        {"type": "Punctuation", "behavior": "Isolated"}, {"type": "FixedLength", "length": 7}]});
    word_piece["post_processor"] = json!({"type": "BertProcessing", "sep": ["t", 3], "cls": ["the", 1]});
    word_piece["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});

    let mut unigram = word_piece.clone();
    unigram["model"] = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
        "vocab": [["<unk>", 0.0], ["▁the", -1.0], ["t", -2.0], ["é", -3.0]]});
    unigram["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Strip", "strip_left": true, "strip_right": true},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, {"type": "Prepend", "prepend": "x"}]});
    unigram["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    unigram["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["t", 2], "cls": ["é", 3],
        "trim_offsets": true, "add_prefix_space": true});
    unigram["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});

    let mut word_level = word_piece.clone();
    word_level["model"] = json!({"type": "WordLevel", "unk_token": "t", "vocab": {"t": 3, "the": 1}});
    word_level["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": false});
    word_level["normalizer"] = json!({"type": "Lowercase"});
    word_level["decoder"] = json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true});
    vec![common::byte_fallback(), word_piece, unigram, word_level]
}

/// Every value of a file replaced by every other kind of value, one at a time: loads or is refused, and
/// what loads encodes and decodes without a panic.
#[test]
fn every_field_with_every_kind() {
    let kinds = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(3),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("x"),
        json!("the"),
        json!([]),
        json!({}),
        json!([[]]),
        json!({"a": {}}),
    ];
    let (mut fields, mut loaded) = (0, 0);
    for file in variants() {
        let mut paths = Vec::new();
        collect(&file, &mut String::new(), &mut paths);
        // The byte tokens repeat themselves.
        paths.retain(|p| !p.contains("/vocab/<0x") || p.ends_with("41>"));
        for path in &paths {
            for kind in &kinds {
                let mut changed = file.clone();
                *changed.pointer_mut(path).unwrap() = kind.clone();
                loaded += usize::from(survives(&changed, &format!("{path} = {kind}")));
            }
            let mut changed = file.clone();
            let (parent, name) = path.rsplit_once('/').unwrap();
            if let Some(map) = changed.pointer_mut(parent).and_then(Value::as_object_mut) {
                map.remove(&name.replace("~1", "/").replace("~0", "~"));
                survives(&changed, &format!("without {path}"));
            }
        }
        fields += paths.len();
        assert!(survives(&file, "unchanged"));
    }
    println!("{fields} fields, {loaded} changed files still load");
    assert!(fields > 150 && loaded > 200);
}

/// Whether a file loads; either way nothing may panic.
fn survives(file: &Value, what: &str) -> bool {
    let calm = |error: Error| {
        let error = error.to_string();
        assert!(!error.contains('\n') && !error.contains("panicked"), "{what}: {error}");
    };
    let tokenizer = match Tokenizer::from_bytes(file.to_string().as_bytes()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            calm(error);
            return false;
        }
    };
    for text in ["the té <s> 12, them", "", "\u{10FFFF}", " ", "你好"] {
        for special in [true, false] {
            match tokenizer.encode(text, special) {
                Ok(ids) => drop(tokenizer.decode(&ids, special).map_err(calm)),
                Err(error) => calm(error),
            }
        }
    }
    let all: Vec<u32> = (0..tokenizer.vocab_size().min(300) as u32).collect();
    drop(tokenizer.decode(&all, true).map_err(calm));
    drop(tokenizer.decode(&[], true).map_err(calm));
    true
}

fn collect(value: &Value, path: &mut String, paths: &mut Vec<String>) {
    let mut child = |name: &str, value: &Value| {
        let length = path.len();
        path.push('/');
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        paths.push(path.clone());
        collect(value, path, paths);
        path.truncate(length);
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(k, v)| child(k, v)),
        Value::Array(list) => list.iter().take(2).enumerate().for_each(|(i, v)| child(&i.to_string(), v)),
        _ => {}
    }
}

#[test]
fn vocabularies() {
    refused("huge id", &changed(|f| f["model"]["vocab"]["t"] = json!(u32::MAX)));
    refused("negative id", &changed(|f| f["model"]["vocab"]["t"] = json!(-1)));
    refused("fractional id", &changed(|f| f["model"]["vocab"]["t"] = json!(0.5)));
    assert!(refused("repeated id", &changed(|f| f["model"]["vocab"]["t"] = json!(3))).contains("belongs to both"));
    refused("long token", &changed(|f| f["model"]["vocab"]["x".repeat(1 << 20)] = json!(271)));
    refused("unknown model", &changed(|f| f["model"]["type"] = json!("Neural")));

    let merges = |merges: Value| changed(move |f| f["model"]["merges"] = merges);
    let error = refused("merge longer than any token", &merges(json!([["<0x00>", "<0x01>"]])));
    assert!(error.contains("merges[0]"), "{error}");
    refused("unknown side", &merges(json!([["nope", "t"]])));
    refused("one side", &merges(json!([["t"]])));
    refused("three sides", &merges(json!(["t h e"])));
    refused("no space", &merges(json!(["th"])));
    refused("mixed forms", &merges(json!(["▁ t", ["h", "e"]])));
    refused("numbers", &merges(json!([[1, 2]])));
    let prefix = |prefix: &str| changed(|f| f["model"]["continuing_subword_prefix"] = json!(prefix));
    refused("prefix longer than a token", &prefix("xxxxxxxxxxxxxxxxxxx"));
    refused("prefix that cuts a character", &prefix("\u{1}"));

    let unigram = |model: Value| changed(move |f| f["model"] = model);
    refused("unk_id", &unigram(json!({"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]})));
    refused("negative unk_id", &unigram(json!({"type": "Unigram", "unk_id": -1, "vocab": [["a", 0.0]]})));
    refused("long piece", &unigram(json!({"type": "Unigram", "vocab": [["a".repeat(100_000), 0.0]]})));
    refused("no score", &unigram(json!({"type": "Unigram", "vocab": [["a"]]})));
    refused("piece twice", &unigram(json!({"type": "Unigram", "vocab": [["a", 0.0], ["a", 1.0]]})));
    let word_piece = json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 1_000_000_000, "vocab": {"a": 0}});
    refused("endless words", &unigram(word_piece));
}

#[test]
fn added_tokens() {
    let added = |id: Value, content: &str| {
        let content = content.to_owned();
        changed(move |f| {
            let token = json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true});
            f["added_tokens"].as_array_mut().unwrap().push(token);
        })
    };
    refused("huge id", &added(json!(u32::MAX), "<new>"));
    refused("id beyond 32 bits", &added(json!(1u64 << 40), "<new>"));
    refused("gap", &added(json!(1000), "<new>"));
    refused("another token's id", &added(json!(5), "<new>"));
    refused("known token, other id", &added(json!(271), "<s>"));
    refused("no id", &added(json!(null), "<new>"));
    refused("long", &added(json!(271), &"x".repeat(1 << 20)));
    refused("no list", &changed(|f| f["added_tokens"] = json!({"a": 1})));
    assert!(Tokenizer::from_bytes(&added(json!(271), "<new>")).is_ok());
}

#[test]
fn pipelines() {
    let with = |part: &str, spec: Value| changed(|f| f[part] = spec);
    refused("fixed length 0", &with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})));
    refused("unknown kind", &with("pre_tokenizer", json!({"type": "Nope"})));
    refused("no kind", &with("normalizer", json!({"pattern": {"String": "a"}, "content": "b"})));
    refused("a string", &with("decoder", json!("ByteLevel")));
    refused(
        "strips what is not there",
        &with("decoder", json!({"type": "Strip", "content": " ", "start": 1, "stop": 1})),
    );
    refused("no character", &with("decoder", json!({"type": "Strip", "content": "", "start": 1, "stop": 0})));
    refused("no list", &with("decoder", json!({"type": "Sequence"})));

    let mut nested = json!({"type": "NFC"});
    for _ in 0..60 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    refused("deep sequence", &with("normalizer", nested));
    let wide: Vec<Value> = (0..1000).map(|_| json!({"type": "NFC"})).collect();
    refused("wide sequence", &with("normalizer", json!({"type": "Sequence", "normalizers": wide})));
    let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"});
    let bomb = json!({"type": "Sequence", "normalizers": vec![replace; 10]});
    refused("replace bomb", &with("normalizer", bomb));
    let everywhere = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(1 << 20)});
    refused("long insert", &with("normalizer", everywhere));
    let mapped = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false});
    refused("byte level bomb", &with("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![mapped; 20]})));
}

#[test]
fn post_processors() {
    let template = |single: Value, tokens: Value| {
        changed(move |f| {
            f["post_processor"] =
                json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens});
        })
    };
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let token = |id: u64| json!({"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}});
    let named = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    refused("absent token", &template(json!([named, a]), json!({})));
    refused("second sequence", &template(json!([{"Sequence": {"id": "B", "type_id": 0}}]), json!({})));
    refused("no text", &template(json!([named]), token(1)));
    refused("text twice", &template(json!([a, a]), json!({})));
    refused("id beyond the vocabulary", &template(json!([named, a]), token(99_999)));
    let uneven = json!({"<s>": {"id": "<s>", "ids": [1, 1], "tokens": ["<s>"]}});
    refused("uneven token", &template(json!([named, a]), uneven));
    let one = json!({"type": "TemplateProcessing", "single": [named, a], "pair": [a], "special_tokens": token(1)});
    let twice = json!({"type": "Sequence", "processors": [one, one]});
    refused("two templates", &changed(|f| f["post_processor"] = twice));
    let disguised = json!({"type": "ByteLevel", "sep": ["</s>", 99_999], "cls": ["<s>", 1], "trim_offsets": true, "add_prefix_space": true});
    refused("disguised", &changed(|f| f["post_processor"] = disguised));
}

#[test]
fn truncation_padding_and_dropout_are_ignored() {
    let plain = common::tokenizer(&common::byte_fallback());
    let text = "the the the the";
    for bytes in [
        changed(|f| {
            f["truncation"] = json!({"max_length": 1, "strategy": "LongestFirst", "stride": 9, "direction": "Right"})
        }),
        changed(|f| {
            f["padding"] = json!({"strategy": {"Fixed": 1u64 << 40}, "direction": "Right", "pad_to_multiple_of": null,
                "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
        }),
        changed(|f| f["model"]["dropout"] = json!(0.9)),
        changed(|f| f["truncation"] = json!("nonsense")),
    ] {
        let tokenizer = Tokenizer::from_bytes(&bytes).unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), plain.encode(text, true).unwrap());
    }
}

#[test]
fn regular_expressions() {
    let split = |regex: &str| {
        let spec = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        changed(|f| f["pre_tokenizer"] = spec)
    };
    for regex in [r"(a+)+(?!b)c", r"(x+x+)+y\1", r"((?:a|aa)+)\1+c(?!d)", r"(\s+\s+)+(?!\s)\d", r"(", r"[", r"\p{Nope}"]
    {
        refused(regex, &split(regex));
    }
    refused("deep groups", &split(&("(".repeat(5000) + &")".repeat(5000))));
    refused("long pattern", &split(&"a".repeat(1 << 20)));
    // What GPT-2, GPT-4, Llama 3, Qwen 2, DeepSeek and GPT-4o use.
    for regex in [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\s?\p{L}+|\p{N}{1,3}(?=(?:\p{N}{3})*\b)|[^\s\p{L}\p{N}]+",
    ] {
        Tokenizer::from_bytes(&split(regex)).expect(regex);
    }
}

#[test]
fn charsmaps() {
    let normalizer = |blob: &[u8]| {
        let text = base64(blob);
        changed(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": text}))
    };
    let map = |units: &[u32], text: &[u8]| {
        let mut blob = (units.len() as u32 * 4).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|u| u.to_le_bytes()));
        blob.extend(text);
        blob
    };
    refused("8 GB of trie", &normalizer(&u32::MAX.to_le_bytes()));
    refused("empty", &normalizer(&[]));
    refused("no trie", &normalizer(&map(&[], b"a\0")));
    refused("a trie too small for its own root", &normalizer(&map(&[1 << 10], b"a\0")));
    refused("an offset beyond the end", &normalizer(&map(&vec![!(1 << 31); 256], b"a\0")));
    refused("not UTF-8", &normalizer(&map(&[0; 256], b"\xFF\0")));
    refused(
        "not base64",
        &changed(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "@@@@"})),
    );
    refused(
        "bad padding",
        &changed(|f| f["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "AB=="})),
    );
    refused("no map", &changed(|f| f["normalizer"] = json!({"type": "Precompiled"})));

    // A map from "A" to "th": the root at 0 with offset 256 (so that all its children lie within), the
    // unit of "A" at 256 ^ 65 with a leaf at itself ^ 1.
    let mut units = vec![0u32; 512];
    units[0] = 256 << 10;
    let child = 256 ^ 65;
    units[child] = 65 | 1 << 8 | 1 << 10;
    units[child ^ 1] = 1 << 31;
    let tokenizer = Tokenizer::from_bytes(&normalizer(&map(&units, b"th\0"))).unwrap();
    assert_eq!(tokenizer.encode("A", false).unwrap(), tokenizer.encode("th", false).unwrap());
    units[child ^ 1] = 1 << 31 | 9;
    refused("a replacement beyond the end", &normalizer(&map(&units, b"th\0")));
    units[child ^ 1] = 1 << 31;
    refused("a replacement bomb", &normalizer(&map(&units, &vec![b't'; 1 << 20])));
    let mut rng = common::Rng::fresh("random charsmaps");
    for _ in 0..200 {
        let units: Vec<u32> = (0..512).map(|_| rng.next() as u32 & 0x0003_FFFF).collect();
        if let Ok(tokenizer) = Tokenizer::from_bytes(&normalizer(&map(&units, b"abc\0"))) {
            let text: String = (0..200).map(|_| char::from_u32(rng.below(0x500) as u32).unwrap()).collect();
            assert!(!tokenizer.encode(&text, false).is_err_and(|e| e.to_string().contains("panicked")));
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(*chunk.get(i).unwrap_or(&0)));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

#[test]
fn files_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let refused = |what: &str| {
        let start = Instant::now();
        let error = Tokenizer::from_file(dir.path()).map(drop).expect_err(what).to_string();
        assert!(error.contains("tokenizer.json") && !error.contains('\n'), "{what}: {error}");
        assert!(start.elapsed() < Duration::from_secs(5), "{what} took {:?}", start.elapsed());
    };
    refused("nothing");
    std::fs::create_dir(&path).unwrap();
    refused("a directory");
    std::fs::remove_dir(&path).unwrap();
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    refused("a terabyte of nothing");
    std::fs::remove_file(&path).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&path, dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("other"), &path).unwrap();
        refused("a loop");
        std::fs::remove_file(&path).unwrap();
        if std::process::Command::new("mkfifo").arg(&path).status().is_ok_and(|s| s.success()) {
            refused("a FIFO");
            std::fs::remove_file(&path).unwrap();
        }
    }
    std::fs::write(&path, common::byte_level().to_string()).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), "[1]").unwrap();
    assert!(matches!(Tokenizer::from_file(&path), Err(Error::File { .. })));
}
