//! The incremental detokenizer against whole-sequence decoding, on random ids.

use crate::common::{self, Rng};
use anyfleet_text::{Detokenizer, Tokenizer};
use serde_json::{Value, json};

/// Random ids that are hard to decode: runs of single-byte tokens (mostly invalid UTF-8), encoded text,
/// special tokens, ids outside the vocabulary, ordinary tokens.
fn random_ids(tokenizer: &Tokenizer, rng: &mut Rng, bytes: &[u32], special: &[u32]) -> Vec<u32> {
    let mut ids = Vec::new();
    for _ in 0..rng.below(12) {
        match rng.below(8) {
            0 | 1 if !bytes.is_empty() => {
                ids.extend((0..rng.below(9)).map(|_| bytes[rng.below(bytes.len())]));
            }
            2 | 3 => {
                let texts = [" the té", "你好", "é", "\n\n", " ", "  a", "🦙", "e\u{301}", "don't . , !", "the"];
                ids.extend(tokenizer.encode(texts[rng.below(texts.len())], rng.below(4) == 0).unwrap());
            }
            4 if !special.is_empty() => ids.push(special[rng.below(special.len())]),
            5 => ids.push(tokenizer.vocab_size() as u32 + rng.below(3) as u32),
            _ => ids.extend((0..rng.below(5)).map(|_| rng.below(tokenizer.vocab_size()) as u32)),
        }
    }
    ids
}

fn check(name: &str, tokenizer: &Tokenizer, rounds: usize) {
    let mut rng = Rng::fresh(name);
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    let bytes: Vec<u32> =
        ids.iter().copied().filter(|&id| matches!(tokenizer.token_bytes(id)[..], [b] if b >= 0x80)).collect();
    let special: Vec<u32> = ids.iter().copied().filter(|&id| tokenizer.is_special(id)).collect();
    for round in 0..rounds {
        let skip = round % 2 == 0;
        let ids = random_ids(tokenizer, &mut rng, &bytes, &special);
        let expected = tokenizer.decode(&ids, skip).unwrap();
        let mut stream = Detokenizer::new(tokenizer, skip);
        let mut text = String::new();
        for (at, &id) in ids.iter().enumerate() {
            text += &stream.push(id);
            assert!(expected.starts_with(&text), "{name}: {ids:?} gave {text:?} after {at}, not {expected:?}");
        }
        text += &stream.finish();
        assert_eq!(text, expected, "{name}: {ids:?}");
        assert_eq!(stream.finish(), "", "{name}: nothing is left");

        let cut = rng.below(ids.len() + 1);
        let (prompt, new) = ids.split_at(cut);
        let before = tokenizer.decode(prompt, skip).unwrap();
        if let Some(expected) = expected.strip_prefix(&before).filter(|_| !before.ends_with('\u{FFFD}')) {
            let at = rng.below(new.len() + 1);
            let (mut stream, mut text) = Detokenizer::replay(tokenizer, prompt, &new[..at], skip);
            text += &stream.push_all(&new[at..]);
            text += &stream.finish();
            assert_eq!(text, expected, "{name}: {prompt:?} then {new:?}");
        }
    }
    println!("{name}: {rounds} random sequences, {} byte tokens, {} special", bytes.len(), special.len());
}

#[test]
fn built_byte_level() {
    check("byte level", &common::tokenizer(&common::byte_level()), 1500);
}

#[test]
fn built_byte_fallback() {
    check("byte fallback", &common::tokenizer(&common::byte_fallback()), 1500);
}

/// Every decoder of the library, over one vocabulary that gives each something to do.
#[test]
fn built_decoders() {
    let replace = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let regex = json!({"type": "Replace", "pattern": {"Regex": "[te]+"}, "content": "_"});
    let late = json!({"type": "Replace", "pattern": {"String": "the"}, "content": "THE!"});
    let fuse = json!({"type": "Fuse"});
    let fallback = json!({"type": "ByteFallback"});
    let strip = |n: usize| json!({"type": "Strip", "content": " ", "start": n, "stop": 0});
    let meta = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let never = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true});
    let piece = json!({"type": "WordPiece", "prefix": "▁", "cleanup": true});
    let bpe = json!({"type": "BPEDecoder", "suffix": "e"});
    let ctc = json!({"type": "CTC", "pad_token": "a", "word_delimiter_token": "▁", "cleanup": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let chains: Vec<Vec<&Value>> = vec![
        vec![&replace, &fallback, &fuse],
        vec![&fallback, &meta],
        vec![&fallback, &never],
        vec![&fallback, &fuse, &meta],
        vec![&regex, &fallback, &fuse, &late],
        vec![&fallback, &fuse, &regex],
        vec![&piece],
        vec![&bpe],
        vec![&fallback, &bpe],
        vec![&ctc],
        vec![&byte_level],
        vec![&byte_level, &late],
        vec![&byte_level, &fallback],
        vec![&fuse, &fallback, &late],
        vec![&meta, &fallback, &bpe, &fuse, &late],
    ];
    let mut file = common::byte_fallback();
    for (at, chain) in chains.iter().enumerate() {
        file["decoder"] = json!({"type": "Sequence", "decoders": chain});
        check(&format!("chain {at}"), &common::tokenizer(&file), 200);
        file["decoder"] = json!({"type": "Sequence", "decoders":
            [strip(1), {"type": "Sequence", "decoders": chain}, strip(2)]});
        check(&format!("stripped chain {at}"), &common::tokenizer(&file), 100);
    }
    file["decoder"] = Value::Null;
    check("no decoder", &common::tokenizer(&file), 200);
}

#[test]
fn shared_tokenizers() {
    for (name, tokenizer) in common::shared_tokenizers() {
        check(name, tokenizer, 500);
    }
}

#[test]
fn a_character_is_never_split() {
    let tokenizer = common::tokenizer(&common::byte_level());
    let mut stream = Detokenizer::new(&tokenizer, true);
    let pieces: Vec<String> = "a🦙é".bytes().map(|b| stream.push(b.into())).collect();
    assert_eq!(pieces, ["a", "", "", "", "🦙", "", "é"]);
    assert_eq!(stream.push(0xF0), "");
    assert_eq!(stream.push(0x9F), "");
    assert_eq!(stream.finish(), "\u{FFFD}");
}

#[test]
fn a_prompt_keeps_the_space_after_it() {
    let tokenizer = common::tokenizer(&common::byte_fallback());
    let the = tokenizer.token_to_id("▁the").unwrap();
    assert_eq!(Detokenizer::new(&tokenizer, true).push(the), "the");
    assert_eq!(Detokenizer::after_prompt(&tokenizer, &[1, the], true).push(the), " the");
    // A special token alone yields no text, so the next word still begins it.
    assert_eq!(Detokenizer::after_prompt(&tokenizer, &[1], true).push(the), "the");
    // A prompt that ends in a byte token: its newline is old text, not new.
    let newline = tokenizer.token_to_id("<0x0A>").unwrap();
    let mut stream = Detokenizer::after_prompt(&tokenizer, &[the, newline], true);
    assert_eq!(stream.push(newline), "");
    assert_eq!(stream.push(the), "\n the");
}

/// A run of a hundred thousand byte tokens costs a hundred thousand steps, not their square.
#[test]
fn long_runs_are_linear() {
    for file in [common::byte_level(), common::byte_fallback()] {
        let tokenizer = common::tokenizer(&file);
        let byte = tokenizer.encode("🦙", false).unwrap().into_iter().next_back().unwrap();
        let start = std::time::Instant::now();
        let mut stream = Detokenizer::new(&tokenizer, true);
        let mut text = String::new();
        for _ in 0..100_000 {
            text += &stream.push(byte);
        }
        text += &stream.finish();
        assert_eq!(text.chars().count(), 100_000);
        assert!(start.elapsed().as_secs() < 10, "took {:?}", start.elapsed());
    }
}
