//! The checks that come before the library parses a `tokenizer.json`.
//!
//! The library trusts its input: it slices buffers by lengths from the file, indexes maps by names from
//! it, recurses as deep as it nests and reserves what it says. Everything it trusts is checked here or in
//! the modules beside this one, each with the failure it prevents.

use serde_json::{Map, Value};

use super::vocab::Vocab;
use super::{kind, pipeline, vocab};

/// Values (strings, numbers, lists, ...) in a file: Gemma 3 has 2.1 million. A parsed value takes some
/// 100 bytes, so this bounds the memory of parsing to about 1 GB.
const MAX_VALUES: usize = 8 << 20;

/// Refuses what is no text or would take absurd memory to parse.
pub(crate) fn text(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    if separators(bytes) > MAX_VALUES {
        return Err(format!("holds more than {MAX_VALUES} values, no tokenizer does"));
    }
    Ok(text)
}

/// Parses the file.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("is not valid JSON: {e}"))?;
    if !value.is_object() {
        return Err(format!("is {}, it must be an object", kind(&value)));
    }
    Ok(value)
}

/// Commas and opening brackets outside strings: an upper bound on the number of values, less one.
fn separators(bytes: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (0, false, false);
    for &b in bytes {
        if in_string {
            match b {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match b {
                b'"' => in_string = true,
                b',' | b'[' | b'{' => count += 1,
                _ => {}
            }
        }
    }
    count
}

/// Checks the whole file and removes what a server must not honour: truncation, padding, dropout. A `known`
/// vocabulary, with its merges, is that of a BPE model and has been checked.
pub(crate) fn document(file: &mut Value, known: Option<Vocab>) -> Result<Vocab, String> {
    let Value::Object(root) = file else {
        return Err("it must be an object".into());
    };
    match root.get("version") {
        None => {}
        Some(Value::String(v)) if v == "1.0" => {}
        Some(other) => return Err(format!("version is {other}, only \"1.0\" is known")),
    }
    root.insert("truncation".into(), Value::Null);
    root.insert("padding".into(), Value::Null);
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let spec = root.entry(part).or_insert(Value::Null);
        if !spec.is_null() && !spec.is_object() {
            return Err(format!("{part} is {}, it must be an object or null", kind(spec)));
        }
    }
    let mut vocab = model(root, known)?;
    vocab.add(root.get("added_tokens").unwrap_or(&Value::Null))?;
    pipeline::normalizer(&root["normalizer"])?;
    pipeline::pre_tokenizer(&root["pre_tokenizer"])?;
    pipeline::decoder(&root["decoder"])?;
    pipeline::post_processor(&root["post_processor"], &vocab)?;
    Ok(vocab)
}

/// Checks the model and names its type, which files from before 2020 leave out.
fn model(root: &mut Map<String, Value>, known: Option<Vocab>) -> Result<Vocab, String> {
    let Some(Value::Object(model)) = root.get_mut("model") else {
        return Err("has no model".into());
    };
    let kind = match model.get("type") {
        Some(Value::String(t)) => t.clone(),
        Some(other) => return Err(format!("model.type is {other}, it must be a string")),
        None => {
            let guess = if model.contains_key("merges") {
                "BPE"
            } else if model.get("vocab").is_some_and(Value::is_array) {
                "Unigram"
            } else if model.contains_key("continuing_subword_prefix") {
                "WordPiece"
            } else {
                "WordLevel"
            };
            model.insert("type".into(), guess.into());
            guess.to_owned()
        }
    };
    match kind.as_str() {
        "BPE" => {
            model.insert("dropout".into(), Value::Null);
            match known {
                Some(vocab) => vocab::bpe_strings(model).map(|_| vocab),
                None => vocab::bpe(model),
            }
        }
        _ if known.is_some() => Err("its model is no BPE".into()),
        "WordPiece" => vocab::word_piece(model),
        "WordLevel" => vocab::word_level(model),
        "Unigram" => vocab::unigram(model),
        other => {
            Err(format!("model.type is {other:?}, known are \"BPE\", \"WordPiece\", \"WordLevel\" and \"Unigram\""))
        }
    }
}
