//! Whichever way a file is read, its tokenizer is the one that the `tokenizers` library makes of it.

use crate::{common, hostile_tokenizers};
use anyfleet_text::Tokenizer;
use serde_json::{Value, json};

fn same(what: &str, bytes: &[u8]) {
    let ours = Tokenizer::from_bytes(bytes).expect(what);
    let mut library = tokenizers::Tokenizer::from_bytes(bytes).expect(what);
    library.with_truncation(None).unwrap().with_padding(None);
    for id in 0..ours.vocab_size() as u32 + 2 {
        let token = library.id_to_token(id);
        assert_eq!(ours.id_to_token(id), token, "{what}: {id}");
        if let Some(token) = token {
            assert_eq!(ours.token_to_id(&token), library.token_to_id(&token), "{what}: {token}");
        }
    }
    let long = "the <|user|>té 你 🦙\n\n\u{0} the  the <s>them 12 ".repeat(20);
    for text in ["", "the", " a.the t", "é\u{10FFFF}<think>the</s>", "\"\\\t", long.as_str()] {
        for special in [true, false] {
            let expected = library.encode_fast(text, special).ok().map(|e| e.get_ids().to_vec());
            assert_eq!(ours.encode(text, special).ok(), expected, "{what}: {text:?}");
            let Some(ids) = expected.filter(|ids| !ids.is_empty()) else { continue };
            assert_eq!(ours.decode(&ids, false).unwrap(), library.decode(&ids, false).unwrap(), "{what}: {text:?}");
        }
    }
}

#[test]
fn options_of_a_bpe_model() {
    for (name, file) in [("byte level", common::byte_level()), ("byte fallback", common::byte_fallback())] {
        same(name, file.to_string().as_bytes());
        let with = |fields: Value| {
            let mut changed = file.clone();
            let model = changed["model"].as_object_mut().unwrap();
            fields.as_object().unwrap().iter().for_each(|(k, v)| drop(model.insert(k.clone(), v.clone())));
            same(&format!("{name}, {fields}"), changed.to_string().as_bytes());
        };
        for on in [true, false] {
            with(json!({"byte_fallback": on}));
            with(json!({"fuse_unk": on, "unk_token": "t"}));
            with(json!({"ignore_merges": on}));
        }
        with(json!({"unk_token": null, "fuse_unk": null, "byte_fallback": null}));
        with(json!({"dropout": null, "merges": []}));
        with(json!({"end_of_word_suffix": "</w>"}));
        let pairs = file["model"]["merges"].as_array().unwrap();
        let mut lines: Vec<Value> =
            pairs.iter().map(|p| format!("{} {}", p[0].as_str().unwrap(), p[1].as_str().unwrap()).into()).collect();
        with(json!({"merges": lines}));
        lines.insert(0, "#version: 0.2".into());
        with(json!({"merges": lines}));
    }
}

#[test]
fn subword_prefixes() {
    let mut file = common::byte_level();
    file["added_tokens"] = json!([]);
    file["model"] = json!({"type": "BPE", "continuing_subword_prefix": "h", "merges": [["t", "he"], ["te", "hhe"]],
        "vocab": {"t": 0, "h": 1, "he": 2, "te": 3, "ht": 4, "hhe": 5, "tehe": 6, "Ġ": 7}});
    same("prefix", file.to_string().as_bytes());
}

#[test]
fn other_models() {
    for file in hostile_tokenizers::variants() {
        same(file["model"]["type"].as_str().unwrap(), file.to_string().as_bytes());
    }
}

#[test]
fn published_tokenizers() {
    for (name, path) in common::SHARED_TOKENIZERS {
        let Some(path) = common::shared(path) else { return };
        same(name, &std::fs::read(path).unwrap());
    }
}
