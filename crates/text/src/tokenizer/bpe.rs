//! Regular BPE files, read without a JSON tree of their vocabulary and merges.
//!
//! A vocabulary of 150,000 tokens and as many merges are nearly all of a file and of the time to read it, most
//! of which goes into the tree, its checks, and the copies by which the library finds out what it is. Here both
//! tables go straight into the types of the library's builder. A file that is anything but regular is read the
//! general way, which also says what is wrong with it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Merges};
use tokenizers::{AddedToken, Tokenizer};

use super::vocab::Vocab;

#[derive(Deserialize)]
struct File {
    model: Model,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Tokens,
    merges: Pairs,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// A file whose vocabulary is sound and whose merges cannot make the library panic, its tables apart and
/// left empty in the value; `None` for every other file.
pub(crate) fn read(text: &str) -> Option<(Value, (Vocab, Merges))> {
    let File { model: Model { vocab, merges, rest: mut model }, rest: mut root } = serde_json::from_str(text).ok()?;
    let vocab = Vocab::regular(vocab.0)?;
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    for (left, right) in &merges.0 {
        // That the vocabulary holds both sides and the result is looked up by the library once more.
        if left.len() + right.strip_prefix(prefix)?.len() > vocab.longest() {
            return None;
        }
    }
    model.insert("vocab".into(), json!({}));
    model.insert("merges".into(), json!([]));
    root.insert("model".into(), model.into());
    Some((root.into(), (vocab, merges.0)))
}

/// The library's tokenizer of a validated file and its tables. Any error or panic is one of the file, which
/// the general way then reports.
pub(crate) fn tokenizer(mut file: Value, vocab: Vocab, merges: Merges) -> tokenizers::Result<Tokenizer> {
    let added: Vec<AddedToken> = serde_json::from_value(file["added_tokens"].take())?;
    file["added_tokens"] = json!([]);
    let mut library: Tokenizer = serde_json::from_value(file)?;
    let ModelWrapper::BPE(empty) = library.get_model() else { return Err("the model is no BPE".into()) };
    let mut builder = BPE::builder().vocab_and_merges(vocab.into_ids(), merges);
    if let Some(prefix) = &empty.continuing_subword_prefix {
        builder = builder.continuing_subword_prefix(prefix.clone());
    }
    let mut model = builder.build()?;
    model.dropout = empty.dropout;
    model.unk_token.clone_from(&empty.unk_token);
    model.end_of_word_suffix.clone_from(&empty.end_of_word_suffix);
    model.fuse_unk = empty.fuse_unk;
    model.byte_fallback = empty.byte_fallback;
    model.ignore_merges = empty.ignore_merges;
    library.with_model(model);
    // After the model, which gives them their ids.
    library.add_tokens(added)?;
    Ok(library)
}

/// A vocabulary in the order of the file.
struct Tokens(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TokensVisitor;
        impl<'de> Visitor<'de> for TokensVisitor {
            type Value = Tokens;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = map.next_entry()? {
                    tokens.push(token);
                }
                Ok(Tokens(tokens))
            }
        }
        deserializer.deserialize_map(TokensVisitor)
    }
}

/// Merges, all of them pairs or all of them lines of two tokens.
struct Pairs(Merges);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                let mut lines = None;
                while let Some(Merge { pair, line }) = list.next_element()? {
                    if *lines.get_or_insert(line) != line {
                        return Err(A::Error::custom("two forms of merges"));
                    }
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_seq(PairsVisitor)
    }
}

struct Merge {
    pair: (String, String),
    /// Whether it was one string.
    line: bool,
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
                match line.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') && !line.starts_with("#version") => {
                        Ok(Merge { pair: (left.to_owned(), right.to_owned()), line: true })
                    }
                    _ => Err(E::custom("not two tokens")),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Merge, A::Error> {
                let (Some(left), Some(right)) = (pair.next_element()?, pair.next_element()?) else {
                    return Err(A::Error::custom("not two tokens"));
                };
                Ok(Merge { pair: (left, right), line: false })
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Inner, config::Neighbours, validate};
    use super::*;

    fn regular(text: &str) -> Option<Inner> {
        let (file, tables) = read(text)?;
        Inner::assemble(file, Some(tables), &Neighbours::default(), [0; 32]).ok()
    }

    fn general(text: &str) -> Result<Inner, String> {
        Inner::assemble(validate::parse(text)?, None, &Neighbours::default(), [0; 32])
    }

    /// Everything the library knows of a tokenizer, and everything we add to it.
    fn all_of(inner: &Inner) -> (String, Vec<u32>, usize) {
        let mut special: Vec<u32> = inner.special_ids.iter().copied().collect();
        special.sort_unstable();
        (serde_json::to_string(&inner.library).unwrap(), special, inner.vocab_size)
    }

    /// A small file that has all there is around a BPE model.
    fn file(model: &str, merges: &str) -> String {
        format!(
            r###"{{"version": "1.0", "truncation": null, "padding": null, "other": [1e3, {{}}], "added_tokens": [
            {{"id": 1, "content": "b", "single_word": false, "lstrip": false, "rstrip": true, "normalized": true, "special": false}},
            {{"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}}],
            "normalizer": {{"type": "Lowercase"}},
            "pre_tokenizer": {{"type": "Digits", "individual_digits": true}},
            "post_processor": {{"type": "BertProcessing", "sep": ["<s>", 7], "cls": ["b", 1]}},
            "decoder": {{"type": "Fuse"}},
            "model": {{{model}
                "vocab": {{"a": 0, "b": 1, "ab": 2, "abb": 3, "##b": 4, "\"": 5, "é": 6}}, "merges": {merges}}}}}"###
        )
    }

    #[test]
    fn regular_files_are_what_they_are_the_general_way() {
        let pairs = r#"[["a", "b"], ["ab", "b"]]"#;
        let prefixed = r###"[["a", "##b"], ["ab", "##b"]]"###;
        for (model, merges) in [
            ("", pairs),
            (r#""type": "BPE","#, r#"["a b", "ab b"]"#),
            (r#""type": "BPE","#, "[]"),
            (r#""dropout": null, "unk_token": null, "fuse_unk": null, "byte_fallback": null,"#, pairs),
            (r#""dropout": 0.5, "unk_token": "a", "fuse_unk": true, "byte_fallback": true,"#, pairs),
            (r#""ignore_merges": true, "end_of_word_suffix": "b","#, pairs),
            (r###""continuing_subword_prefix": "##","###, prefixed),
            (r###""continuing_subword_prefix": "##", "ignore_merges": true,"###, r###"["a ##b", "ab ##b"]"###),
        ] {
            let text = file(model, merges);
            let inner = regular(&text).expect(&text);
            let general = general(&text).unwrap();
            assert_eq!(all_of(&inner), all_of(&general), "{text}");
            assert_eq!(inner.library.get_model(), general.library.get_model(), "{text}");
        }
    }

    /// Every token of a file's text replaced by others, one at a time: what is read as regular is valid, and
    /// the same, the general way.
    #[test]
    fn a_regular_file_is_never_one_that_the_general_way_refuses() {
        let others = [
            "null",
            "true",
            "-1",
            "-0",
            "1",
            "7",
            "0.5",
            "1e400",
            "99999999999",
            "\"\"",
            "\"a\"",
            "\"a b\"",
            "\"a  b\"",
            "\"#version b\"",
            "\"vocab\"",
            "\"type\"",
            "\"BPE\"",
            "\"WordPiece\"",
            "\"\\ud800\"",
            "[]",
            "{}",
            "[\"a\"]",
            "[\"a\", \"b\", \"ab\"]",
        ];
        let (mut regulars, mut count) = (0, 0);
        for text in [
            file(r###""type": "BPE", "unk_token": "a", "continuing_subword_prefix": "##","###, r###"[["a", "##b"]]"###),
            file(r###""dropout": null, "end_of_word_suffix": "b", "fuse_unk": true,"###, r#"["a b", "ab b"]"#),
        ] {
            let delimiters: Vec<usize> = text.match_indices(|c| "[]{}:,".contains(c)).map(|(at, _)| at).collect();
            for ends in delimiters.windows(2) {
                for other in others {
                    let changed = format!("{}{other}{}", &text[..=ends[0]], &text[ends[1]..]);
                    count += 1;
                    let Some(inner) = regular(&changed) else { continue };
                    regulars += 1;
                    let general = general(&changed).unwrap_or_else(|e| panic!("{e}: {changed}"));
                    assert_eq!(all_of(&inner), all_of(&general), "{changed}");
                }
            }
        }
        assert!(regulars > 100 && regulars < count / 2, "{regulars} of {count}");
    }
}
