//! What the test files share: the shared data, and small tokenizers built here.

use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The shared data directory, or `None` with a loud line where there is none.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("ANYFLEET_DATA") {
        Some(root) => PathBuf::from(root),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
    };
    let found = root.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("SKIPPED: {} is not there (set ANYFLEET_DATA to the shared data)", found.display());
    None
}

/// Names and paths of the tokenizers in the shared data.
pub const SHARED_TOKENIZERS: [(&str, &str); 5] = [
    ("gpt2", "tokenizers/built/gpt2.tokenizer.json"),
    ("qwen2", "tokenizers/built/qwen2_qwen3.tokenizer.json"),
    ("mistral-v0.3", "tokenizers/mistral-7b-v0.3/tokenizer.json"),
    ("phi-3", "tokenizers/phi3/tokenizer.json"),
    ("stories260K", "stories260K/hf/tokenizer.json"),
];

/// The tokenizers of the shared data, with a name each, loaded once.
pub fn shared_tokenizers() -> &'static [(&'static str, anyfleet_text::Tokenizer)] {
    static LOADED: OnceLock<Vec<(&'static str, anyfleet_text::Tokenizer)>> = OnceLock::new();
    LOADED.get_or_init(|| {
        SHARED_TOKENIZERS
            .into_iter()
            .filter_map(|(name, path)| Some((name, anyfleet_text::Tokenizer::from_file(shared(path)?).unwrap())))
            .collect()
    })
}

/// GPT-2's byte alphabet.
pub fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..);
    if printable(byte) {
        return byte as char;
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap()
}

/// A byte-level BPE tokenizer: 256 bytes, a few merges, two special tokens and an added one.
pub fn byte_level() -> Value {
    let mut vocab: serde_json::Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), b.into())).collect();
    let merges = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["Ã", "©"], ["ä", "½"], ["ä½", "ł"]];
    for [a, b] in merges {
        let id = vocab.len();
        vocab.insert(format!("{a}{b}"), id.into());
    }
    let added = ["<|end|>", "<|user|>", "<think>"];
    let added: Vec<Value> = (0..3)
        .map(|i| {
            json!({"id": vocab.len() + i, "content": added[i], "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": i < 2})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": merges},
    })
}

/// A SentencePiece-like BPE tokenizer with byte fallback, as Llama 2's.
pub fn byte_fallback() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for b in 0..=255u8 {
        vocab.insert(format!("<0x{b:02X}>"), vocab.len().into());
    }
    for token in ["▁", "t", "h", "e", "a", ".", "▁t", "he", "▁the", "▁▁", "é", "你"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"]
        .into_iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "vocab": vocab, "merges": [["▁", "t"], ["h", "e"], ["▁t", "he"], ["▁", "▁"]]},
    })
}

/// The tokenizer of a JSON value.
pub fn tokenizer(json: &Value) -> anyfleet_text::Tokenizer {
    anyfleet_text::Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

/// A small deterministic generator (Marsaglia's xorshift64*).
pub struct Rng(pub u64);

impl Rng {
    /// Seeded by the clock; the seed is printed, and `ANYFLEET_SEED` sets it.
    pub fn fresh(what: &str) -> Self {
        let seed = match std::env::var("ANYFLEET_SEED") {
            Ok(seed) => seed.parse().expect("ANYFLEET_SEED is a number"),
            Err(_) => {
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
            }
        };
        println!("{what}: ANYFLEET_SEED={seed}");
        Self(seed | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }
}
