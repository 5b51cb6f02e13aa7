//! A lower bound on the tokens of a text, from its length.

use serde_json::Value;

use super::vocab::Vocab;

/// How many bytes of text one token can stand for, at most.
pub(crate) struct TokenBound {
    bytes_per_token: usize,
    /// Whether whitespace can vanish (a token with `rstrip` takes all that follows it), so that only
    /// the rest of a text counts.
    whitespace_is_free: bool,
}

/// For tokenizers that can turn text of any length into one token (an unknown word), a ratio that no
/// ordinary text comes near.
const UNBOUNDED: usize = 4096;

impl TokenBound {
    pub(crate) fn new(file: &Value, vocab: &Vocab) -> Self {
        let mut whitespace_is_free = file["added_tokens"]
            .as_array()
            .is_some_and(|list| list.iter().any(|t| t["lstrip"] == true || t["rstrip"] == true));
        let mut bytes_per_token = vocab.longest().max(1);
        if swallows_unknown(&file["model"], vocab, &file["pre_tokenizer"]) {
            bytes_per_token = bytes_per_token.max(UNBOUNDED);
        }
        let mut stages = Vec::new();
        flatten(&file["normalizer"], &mut stages);
        flatten(&file["pre_tokenizer"], &mut stages);
        for stage in stages {
            match stage["type"].as_str().unwrap_or_default() {
                // Composition: a Hangul syllable is 3 bytes for up to 9, other characters at most 4 for 1.
                "NFC" | "NFKC" => bytes_per_token = bytes_per_token.saturating_mul(4),
                "Prepend" | "NFD" | "NFKD" | "ByteLevel" | "Metaspace" | "Digits" | "FixedLength"
                | "UnicodeScripts" => {}
                "Strip" | "Whitespace" | "WhitespaceSplit" => whitespace_is_free = true,
                "Lowercase" => bytes_per_token = bytes_per_token.saturating_mul(2),
                "Split" | "Punctuation" | "Delimiter" if stage["behavior"] != "Removed" => {}
                "Replace" => match (stage["pattern"]["String"].as_str(), stage["content"].as_str()) {
                    (Some(p), Some(c)) if c.len() >= p.len() => {}
                    _ => bytes_per_token = bytes_per_token.max(UNBOUNDED),
                },
                _ => bytes_per_token = bytes_per_token.max(UNBOUNDED),
            }
        }
        Self { bytes_per_token, whitespace_is_free }
    }

    /// The fewest tokens that `text` can have.
    pub(crate) fn at_least(&self, text: &str) -> usize {
        // A text below this is cheap to encode, so its whitespace is not worth counting either.
        if text.len() / self.bytes_per_token == 0 {
            return 0;
        }
        let bytes = if self.whitespace_is_free {
            text.chars().filter(|c| !c.is_whitespace()).map(char::len_utf8).sum()
        } else {
            text.len()
        };
        bytes / self.bytes_per_token
    }
}

/// Whether one unknown token can stand for any length of text.
fn swallows_unknown(model: &Value, vocab: &Vocab, pre_tokenizer: &Value) -> bool {
    let bytes_known = {
        let mut stages = Vec::new();
        flatten(pre_tokenizer, &mut stages);
        let mapped = stages.iter().any(|s| s["type"] == "ByteLevel");
        let has = |token: &str| vocab.id(token).is_some();
        // Every byte as its own token, in one of the two alphabets: there is no unknown character.
        (mapped && has("Ġ") && has("ł") && has("a")) || (model["byte_fallback"] == true && has("<0xFF>"))
    };
    match model["type"].as_str() {
        Some("BPE") => !bytes_known && (model["fuse_unk"] == true || model["unk_token"].is_null()),
        // A Unigram model always fuses unknown characters, then falls back to bytes where it can.
        Some("Unigram") => model["byte_fallback"] != true,
        _ => true,
    }
}

fn flatten<'a>(spec: &'a Value, list: &mut Vec<&'a Value>) {
    let inner = spec["normalizers"].as_array().or_else(|| spec["pretokenizers"].as_array());
    match inner {
        Some(inner) if spec["type"] == "Sequence" => inner.iter().for_each(|s| flatten(s, list)),
        _ if spec.is_null() => {}
        _ => list.push(spec),
    }
}
