//! Checks of the parts around the model: normalizer, pre-tokenizer, decoder, post-processor.

use serde_json::{Map, Value};

use super::vocab::Vocab;
use super::{charsmap, kind, pattern};

/// Nesting of `Sequence`s: published files nest once. The library parses a nested part once per level.
const MAX_DEPTH: usize = 4;
/// Parts in all sequences of one stage; published files have a dozen.
const MAX_PARTS: usize = 64;
/// How many times longer a stage may make a text. NFKC alone can reach 11 (U+FDFA, 3 to 33 bytes).
const MAX_GROWTH: f64 = 256.0;
/// Longest string that a stage may insert.
const MAX_INSERT: usize = 256;

/// A part that is no sequence, with its place for messages.
struct Part<'a> {
    spec: &'a Map<String, Value>,
    kind: &'a str,
    path: String,
}

impl Part<'_> {
    fn fail<T>(&self, what: impl std::fmt::Display) -> Result<T, String> {
        Err(format!("{} ({}): {what}", self.path, self.kind))
    }

    /// A string of limited length; absent is the empty string (the library says what it requires).
    fn text(&self, field: &str) -> Result<&str, String> {
        match self.spec.get(field) {
            None | Some(Value::Null) => Ok(""),
            Some(Value::String(s)) if s.len() <= MAX_INSERT => Ok(s),
            Some(Value::String(s)) => {
                self.fail(format!("{field} is {} bytes long, the limit is {MAX_INSERT}", s.len()))
            }
            Some(other) => self.fail(format!("{field} is {}, it must be a string", kind(other))),
        }
    }

    /// Growth by a `Replace`: what one match turns into over the shortest text it can match.
    fn replace_growth(&self) -> Result<f64, String> {
        let content = self.text("content")?.len() as f64;
        let pattern = &self.spec.get("pattern").unwrap_or(&Value::Null);
        if let Some(p) = pattern["String"].as_str() {
            return Ok(if p.is_empty() { 1.0 + content } else { (content / p.len() as f64).max(1.0) });
        }
        if let Some(p) = pattern["Regex"].as_str() {
            let matches_empty = pattern::check(p).or_else(|e| self.fail(e))?;
            return Ok(if matches_empty { 1.0 + content } else { content.max(1.0) });
        }
        self.fail("pattern must be {\"String\": ...} or {\"Regex\": ...}")
    }
}

/// The parts of a stage in order, sequences flattened. The library guesses the kind of a part without
/// `type`; such parts, and unknown kinds, are refused here so that every check sees what it checks.
fn parts<'a>(stage: &str, list: &str, known: &[&str], root: &'a Value) -> Result<Vec<Part<'a>>, String> {
    let mut found = Vec::new();
    let mut stack = vec![(root, stage.to_owned(), 0)];
    while let Some((value, path, depth)) = stack.pop() {
        let Value::Object(spec) = value else {
            if value.is_null() && depth == 0 {
                return Ok(found);
            }
            return Err(format!("{path} is {}, it must be an object", kind(value)));
        };
        let Some(Value::String(of)) = spec.get("type") else {
            return Err(format!("{path} has no type"));
        };
        if depth > MAX_DEPTH || found.len() + stack.len() > MAX_PARTS {
            return Err(format!("{path}: more than {MAX_PARTS} parts or {MAX_DEPTH} levels of sequences"));
        }
        if of == "Sequence" {
            let Some(Value::Array(inner)) = spec.get(list) else {
                return Err(format!("{path} is a Sequence without the list {list}"));
            };
            if inner.len() > MAX_PARTS {
                return Err(format!("{path}.{list} has {} parts, the limit is {MAX_PARTS}", inner.len()));
            }
            for (at, part) in inner.iter().enumerate().rev() {
                stack.push((part, format!("{path}.{list}[{at}]"), depth + 1));
            }
        } else if known.contains(&of.as_str()) {
            found.push(Part { spec, kind: of, path });
        } else {
            return Err(format!("{path}: unknown type {of:?}"));
        }
    }
    Ok(found)
}

fn limit_growth(stage: &str, growth: f64) -> Result<(), String> {
    if growth > MAX_GROWTH {
        return Err(format!("{stage} can make a text {growth:.0} times longer, the limit is {MAX_GROWTH:.0} times"));
    }
    Ok(())
}

pub(crate) fn normalizer(root: &Value) -> Result<(), String> {
    const KNOWN: [&str; 13] = [
        "BertNormalizer",
        "Strip",
        "StripAccents",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "Nmt",
        "Precompiled",
        "Replace",
        "Prepend",
        "ByteLevel",
    ];
    let mut growth = 1.0;
    for part in parts("normalizer", "normalizers", &KNOWN, root)? {
        growth *= match part.kind {
            "NFKC" | "NFKD" => 11.0,
            "NFC" | "NFD" => 3.0,
            "Lowercase" | "BertNormalizer" => 1.5,
            "ByteLevel" => 2.0,
            "Precompiled" => charsmap::check(part.spec.get("precompiled_charsmap").unwrap_or(&Value::Null))
                .or_else(|e| part.fail(e))?,
            "Replace" => part.replace_growth()?,
            "Prepend" => {
                part.text("prepend")?;
                1.0
            }
            _ => 1.0,
        };
    }
    limit_growth("normalizer", growth)
}

pub(crate) fn pre_tokenizer(root: &Value) -> Result<(), String> {
    const KNOWN: [&str; 11] = [
        "BertPreTokenizer",
        "ByteLevel",
        "Delimiter",
        "Metaspace",
        "Whitespace",
        "Split",
        "Punctuation",
        "WhitespaceSplit",
        "Digits",
        "UnicodeScripts",
        "FixedLength",
    ];
    let mut growth = 1.0;
    for part in parts("pre_tokenizer", "pretokenizers", &KNOWN, root)? {
        match part.kind {
            "ByteLevel" => growth *= if part.spec.get("add_prefix_space") == Some(&true.into()) { 3.0 } else { 2.0 },
            "Metaspace" => growth *= 4.0,
            // The library divides the text into chunks of this length.
            "FixedLength" if part.spec.get("length").is_some_and(|l| l.as_u64() == Some(0)) => {
                return part.fail("length is 0, it must be at least 1");
            }
            "Split" => {
                let pattern = &part.spec.get("pattern").unwrap_or(&Value::Null);
                if let Some(regex) = pattern["Regex"].as_str() {
                    pattern::check(regex).or_else(|e| part.fail(e))?;
                }
            }
            _ => {}
        }
    }
    limit_growth("pre_tokenizer", growth)
}

pub(crate) fn decoder(root: &Value) -> Result<(), String> {
    const KNOWN: [&str; 9] =
        ["BPEDecoder", "ByteLevel", "WordPiece", "Metaspace", "CTC", "Replace", "Fuse", "Strip", "ByteFallback"];
    let mut growth = 1.0;
    for part in parts("decoder", "decoders", &KNOWN, root)? {
        match part.kind {
            "Replace" => growth *= part.replace_growth()?,
            // The library counts back from the end of a token without looking where it begins.
            "Strip" if part.spec.get("stop").is_some_and(|s| s.as_u64() != Some(0)) => {
                return part.fail("stop is not 0: stripping the end of tokens is not supported");
            }
            // An empty suffix matches between any two characters, and becomes a space.
            "BPEDecoder" => growth *= if part.text("suffix")?.is_empty() { 2.0 } else { 1.0 },
            "WordPiece" => {
                part.text("prefix")?;
                growth *= 2.0;
            }
            "CTC" => {
                part.text("pad_token")?;
                part.text("word_delimiter_token")?;
                growth *= 2.0;
            }
            _ => {}
        }
    }
    limit_growth("decoder", growth)
}

/// The library tells post-processors apart by their fields, not by `type`, so the fields are checked
/// wherever they are.
pub(crate) fn post_processor(root: &Value, vocab: &Vocab) -> Result<(), String> {
    const KNOWN: [&str; 4] = ["BertProcessing", "RobertaProcessing", "ByteLevel", "TemplateProcessing"];
    let mut adding = 0;
    for part in parts("post_processor", "processors", &KNOWN, root)? {
        for field in ["sep", "cls"] {
            if let Some(token) = part.spec.get(field) {
                token_id(&part, field, &token[1], vocab)?;
            }
        }
        if part.spec.contains_key("processors") {
            return part.fail("has processors, but is no Sequence");
        }
        if part.kind == "TemplateProcessing" || part.spec.contains_key("single") {
            template(&part, vocab)?;
        }
        adding += usize::from(part.kind != "ByteLevel");
    }
    if adding > 1 {
        // After the first the library has several pieces, and no plan for more than two.
        return Err("post_processor: only one part of a Sequence may add tokens".into());
    }
    Ok(())
}

fn token_id(part: &Part<'_>, what: &str, id: &Value, vocab: &Vocab) -> Result<(), String> {
    match id.as_u64() {
        Some(id) if vocab.contains_id(id) => Ok(()),
        _ => part.fail(format!("{what} has the id {id}, which is not in the vocabulary")),
    }
}

/// A template: the library indexes the sequences and `special_tokens` by what its pieces name.
fn template(part: &Part<'_>, vocab: &Vocab) -> Result<(), String> {
    let none = Map::new();
    let tokens = match part.spec.get("special_tokens") {
        Some(Value::Object(tokens)) => tokens,
        _ => &none,
    };
    for (name, token) in tokens {
        let (Some(ids), Some(texts)) = (token["ids"].as_array(), token["tokens"].as_array()) else {
            return part.fail(format!("special token {name:?} has no ids or no tokens"));
        };
        if ids.len() != texts.len() || ids.len() > MAX_PARTS {
            return part.fail(format!("special token {name:?}: {} ids, {} tokens", ids.len(), texts.len()));
        }
        for id in ids {
            token_id(part, &format!("special token {name:?}"), id, vocab)?;
        }
    }
    for (field, sequences) in [("single", 1), ("pair", 2)] {
        let Some(Value::Array(pieces)) = part.spec.get(field) else {
            return part.fail(format!("{field} is not a list"));
        };
        if pieces.len() > MAX_PARTS {
            return part.fail(format!("{field} has {} pieces, the limit is {MAX_PARTS}", pieces.len()));
        }
        let mut texts = 0;
        for piece in pieces {
            if let Some(name) = piece["SpecialToken"]["id"].as_str() {
                if !tokens.contains_key(name) {
                    return part.fail(format!("{field} names {name:?}, which special_tokens lacks"));
                }
            } else {
                match piece["Sequence"]["id"].as_str() {
                    Some("A") => texts += 1,
                    Some("B") if sequences == 2 => {}
                    _ => return part.fail(format!("{field} has the piece {piece}, which is not known there")),
                }
            }
        }
        if sequences == 1 && texts != 1 {
            return part.fail(format!("{field} holds the text {texts} times, it must hold it once"));
        }
    }
    Ok(())
}
