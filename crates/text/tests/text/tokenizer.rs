//! What a tokenizer promises its callers.

use crate::common;
use std::time::{Duration, Instant};

use anyfleet_text::{Error, Tokenizer};
use serde_json::json;

#[test]
fn encodes_and_decodes() {
    let tokenizer = common::tokenizer(&common::byte_fallback());
    let the = tokenizer.token_to_id("▁the").unwrap();
    assert_eq!(tokenizer.encode("the the", true).unwrap(), [1, the, the]);
    assert_eq!(tokenizer.encode("the the", false).unwrap(), [the, the]);
    assert_eq!(tokenizer.encode("", true).unwrap(), [1]);
    assert_eq!(tokenizer.encode("the</s>", false).unwrap(), [the, 2]);
    assert_eq!(tokenizer.decode(&[1, the, 2, the], true).unwrap(), "the the");
    assert_eq!(tokenizer.decode(&[1, the], false).unwrap(), "<s> the");
    assert_eq!(tokenizer.decode(&[], false).unwrap(), "");
    assert_eq!(tokenizer.decode(&[u32::MAX, 9999], true).unwrap(), "");
    assert_eq!(tokenizer.vocab_size(), 271);
    assert_eq!(tokenizer.id_to_token(the).unwrap(), "▁the");
    assert_eq!(tokenizer.id_to_token(271), None);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(the));
    assert_eq!(tokenizer.token_bytes(the), b" the");
    assert_eq!(tokenizer.token_bytes(3 + 0xE4), [0xE4]);
    assert_eq!(tokenizer.token_bytes(1), b"<s>");
    assert_eq!(tokenizer.token_bytes(271), b"");
    assert_eq!(tokenizer.token_text(3 + 0xE4), "\u{FFFD}");

    let tokenizer = common::tokenizer(&common::byte_level());
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("Ġthe").unwrap()), b" the");
    assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("ä½").unwrap()), [0xE4, 0xBD]);
    let text = "the <|user|>té 你 🦙\n\n\u{0}";
    assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), false).unwrap(), text);
}

#[test]
fn is_shared_and_identified() {
    fn check<T: Clone + Send + Sync + 'static>(_: &T) {}
    let file = common::byte_level();
    let tokenizer = common::tokenizer(&file);
    check(&tokenizer);
    assert_eq!(tokenizer.content_hash(), common::tokenizer(&file).content_hash());
    let mut other = file.clone();
    other["added_tokens"][2]["special"] = true.into();
    assert_ne!(tokenizer.content_hash(), common::tokenizer(&other).content_hash());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let tokenizer = tokenizer.clone();
            scope.spawn(move || assert_eq!(tokenizer.encode("the é", true).unwrap().len(), 4));
        }
    });
}

#[test]
fn files_beside_it_have_their_say() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, json: serde_json::Value| std::fs::write(dir.path().join(name), json.to_string()).unwrap();
    let load = || Tokenizer::from_file(dir.path()).unwrap();
    write("tokenizer.json", common::byte_fallback());
    let plain = load();
    assert_eq!(plain.special_tokens().bos(), None);

    write(
        "tokenizer_config.json",
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": false, "add_eos_token": true,
            "pad_token": null, "added_tokens_decoder": {
                "271": {"content": "<|im_end|>", "special": true, "lstrip": false, "rstrip": false, "normalized": false, "single_word": false},
                "999": {"content": "<|nowhere|>", "special": true}}}),
    );
    write(
        "special_tokens_map.json",
        json!({"eos_token": "ignored", "additional_special_tokens": ["h", {"content": "."}]}),
    );
    let tokenizer = load();
    let a = plain.encode("a", false).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [&a[..], &[2]].concat());
    assert_eq!(tokenizer.special_tokens().bos(), Some("<s>"));
    assert_eq!(tokenizer.special_tokens().eos(), Some("</s>"));
    assert_eq!(tokenizer.special_tokens().get("pad_token"), None);
    assert_eq!(tokenizer.special_tokens().as_map()["additional_special_tokens"], json!(["h", "."]));
    assert!(tokenizer.is_special(tokenizer.token_to_id(".").unwrap()));
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(271));
    assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap(), [271]);
    assert_eq!(tokenizer.token_to_id("<|nowhere|>"), None);
    assert_ne!(tokenizer.content_hash(), plain.content_hash());
}

#[test]
fn a_model_without_a_type_is_recognised() {
    let mut file = common::byte_level();
    file["model"].as_object_mut().unwrap().remove("type");
    assert_eq!(common::tokenizer(&file).encode(" the", true).unwrap().len(), 1);
    file["model"] = json!({"unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["aa", -1.5]]});
    file["added_tokens"] = json!([]);
    file["pre_tokenizer"] = json!(null);
    assert_eq!(common::tokenizer(&file).encode("aa", true).unwrap(), [2]);
    file["model"] = json!({"unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1}});
    assert_eq!(common::tokenizer(&file).encode("a", true).unwrap(), [1]);
    file["model"]["vocab"] = json!({"b": 1});
    let error = common::tokenizer(&file).encode("a", true).unwrap_err();
    assert!(matches!(error, Error::Encode(_)) && !error.to_string().contains('\n'), "{error}");
}

/// The bound never refuses a text that fits: what it says is at most what encoding finds.
#[test]
fn bounds_are_below_the_truth() {
    let mut tokenizers = common::shared_tokenizers().to_vec();
    tokenizers.push(("byte level", common::tokenizer(&common::byte_level())));
    tokenizers.push(("byte fallback", common::tokenizer(&common::byte_fallback())));
    let mut unknown = common::byte_fallback();
    unknown["model"]["byte_fallback"] = false.into();
    tokenizers.push(("unknown", common::tokenizer(&unknown)));
    let texts = [
        " ".repeat(4000),
        "a".repeat(4000),
        "the ".repeat(1000),
        "\n".repeat(4000),
        "é".repeat(2000),
        "🦙".repeat(1000),
        "e\u{301}".repeat(1000),
        "\u{1112}\u{1161}\u{11ab}".repeat(500),
        "=".repeat(4000),
        "-".repeat(4000),
        "\t".repeat(4000),
        format!("<|user|>{}x", " ".repeat(4000)),
        "</s>\n\n".repeat(500),
        "1".repeat(4000),
    ];
    for (name, tokenizer) in &tokenizers {
        for text in &texts {
            let count = tokenizer.encode(text, false).unwrap().len();
            let ids = tokenizer.encode_bounded(text, false, count);
            assert_eq!(ids.unwrap().len(), count, "{name}: {text:.20}");
            if count > 0 {
                let error = tokenizer.encode_bounded(text, false, count - 1).unwrap_err();
                let Error::TooLong { tokens, exact, limit } = error else { panic!("{error}") };
                assert!(limit == count - 1 && if exact { tokens == count } else { tokens <= count });
            }
        }
    }
}

#[test]
fn a_huge_text_is_refused_unread() {
    let text = "word and ".repeat(12 << 20); // 108 MB
    let mut tokenizers = common::shared_tokenizers().to_vec();
    tokenizers.push(("byte fallback", common::tokenizer(&common::byte_fallback())));
    for (name, tokenizer) in &tokenizers {
        let start = Instant::now();
        let error = tokenizer.encode_bounded(&text, true, 32_768).unwrap_err();
        assert!(matches!(error, Error::TooLong { exact: false, .. }), "{name}: {error}");
        assert!(error.to_string().starts_with("the text has at least "));
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
    }
}

/// Recorded ids: the `.inp` files hold texts between separator lines, the `.out` files their ids, one
/// line each.
#[test]
fn published_tokenizers_give_the_recorded_ids() {
    for (fixture, name) in [("gpt-2", "gpt2"), ("qwen2", "qwen2"), ("phi-3", "phi-3")] {
        let path = |ext: &str| common::shared(&format!("tokenizers/fixtures/ggml-vocab-{fixture}.gguf.{ext}"));
        let (Some(inp), Some(out)) = (path("inp"), path("out")) else { return };
        let tokenizer = &common::shared_tokenizers().iter().find(|(n, _)| *n == name).unwrap().1;
        let inp = std::fs::read_to_string(inp).unwrap();
        // Every text ends in the separator, so what follows the last one is none.
        let mut texts: Vec<&str> = inp.split("\n__ggml_vocab_test__\n").collect();
        texts.pop();
        let out = std::fs::read_to_string(out).unwrap();
        let expected: Vec<Vec<u32>> =
            out.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
        assert_eq!(texts.len(), expected.len());
        for (text, expected) in texts.iter().zip(&expected) {
            assert_eq!(tokenizer.encode(text, false).unwrap(), *expected, "{fixture}: {text:?}");
        }
        println!("{fixture}: {} texts equal", texts.len());
    }
}
