//! Checks of the four models and of the added tokens.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tokenizers::models::bpe::Vocab as Ids;

use super::kind;

/// Ids lie below this: 64 times the largest published vocabulary. What is sized by the vocabulary
/// (logits, embeddings) is then sized by a number that fits in memory.
const MAX_ID: u64 = 1 << 24;
/// Longest token in bytes; the longest published ones are a few hundred.
const MAX_TOKEN: usize = 8192;
/// Longest token of a Unigram model, whose trie the library frees by recursion, one level a byte.
const MAX_UNIGRAM_TOKEN: usize = 512;
/// The library matches every added token against every text.
const MAX_ADDED: usize = 1 << 20;

/// The tokens of a file: the model's, and of the added ones the largest id and length.
pub(crate) struct Vocab {
    /// The model's own.
    ids: Ids,
    max_id: Option<u32>,
    longest: usize,
}

impl Vocab {
    fn new(ids: Ids) -> Self {
        let longest = ids.keys().map(String::len).max().unwrap_or(0);
        Self { max_id: ids.values().max().copied(), ids, longest }
    }

    /// A vocabulary object's entries; `None` where [`id_map`] refuses them or a token is there twice.
    pub(crate) fn regular(entries: Vec<(String, u32)>) -> Option<Self> {
        let mut ids = Ids::with_capacity(entries.len());
        let mut used = Vec::new();
        for (token, id) in entries {
            if u64::from(id) >= MAX_ID || token.len() > MAX_TOKEN {
                return None;
            }
            let at = id as usize;
            if used.len() <= at {
                used.resize(at + 1, false);
            }
            if std::mem::replace(&mut used[at], true) || ids.insert(token, id).is_some() {
                return None;
            }
        }
        Some(Self::new(ids))
    }

    /// The id of a token of the model.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// The model's tokens.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn into_ids(self) -> Ids {
        self.ids
    }

    /// The largest id + 1.
    pub(crate) fn size(&self) -> usize {
        self.max_id.map_or(0, |id| id as usize + 1)
    }

    /// Length in bytes of the longest token, as the vocabulary writes it.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn contains_id(&self, id: u64) -> bool {
        self.max_id.is_some_and(|max| id <= u64::from(max))
    }

    /// Takes the `added_tokens` list.
    ///
    /// The library ignores the ids in it: a token of the model keeps its id, a new one gets the next id
    /// after the model's size. A file that says otherwise was made for other ids than it would get, so
    /// it is refused rather than run with the wrong rows of the embedding.
    pub(crate) fn add(&mut self, list: &Value) -> Result<(), String> {
        let list = match list {
            Value::Null => return Ok(()),
            Value::Array(list) if list.len() <= MAX_ADDED => list,
            Value::Array(list) => return Err(format!("added_tokens has {} entries", list.len())),
            other => return Err(format!("added_tokens is {}, it must be a list", kind(other))),
        };
        let mut owner: HashMap<u32, &str> = HashMap::new();
        let mut new: HashMap<&str, u32> = HashMap::new();
        let mut next = self.ids.len() as u32;
        for (at, entry) in list.iter().enumerate() {
            let fail = |what: String| format!("added_tokens[{at}]: {what}");
            let content = entry["content"].as_str().ok_or_else(|| fail("has no content".into()))?;
            if content.is_empty() {
                continue; // as the library does
            }
            if content.len() > MAX_TOKEN {
                return Err(fail(format!("is {} bytes long, the limit is {MAX_TOKEN}", content.len())));
            }
            let declared = id(&entry["id"]).map_err(|e| fail(format!("id {e}")))?;
            let given = self.id(content).unwrap_or_else(|| {
                *new.entry(content).or_insert_with(|| {
                    next += 1;
                    next - 1
                })
            });
            if declared != given {
                return Err(fail(format!(
                    "{content:?} declares id {declared}, but its id is {given}: ids of added tokens must \
                     be those of the vocabulary, or follow it without gaps or repeats"
                )));
            }
            if let Some(other) = owner.insert(given, content).filter(|other| *other != content) {
                return Err(fail(format!("{content:?} has id {given}, which is also that of {other:?}")));
            }
            self.max_id = self.max_id.max(Some(given));
            self.longest = self.longest.max(content.len());
        }
        Ok(())
    }
}

fn id(value: &Value) -> Result<u32, String> {
    match value.as_u64() {
        Some(id) if id < MAX_ID => Ok(id as u32),
        Some(id) => Err(format!("is {id}, the limit is {MAX_ID}")),
        None => Err(format!("is {value}, it must be a non-negative integer")),
    }
}

/// A vocabulary object: token to id, every id used once (the library would keep either token of a
/// repeated id, at random).
fn id_map(model: &Map<String, Value>) -> Result<Vocab, String> {
    let vocab = match model.get("vocab") {
        Some(Value::Object(vocab)) => vocab,
        Some(other) => return Err(format!("model.vocab is {}, it must be an object", kind(other))),
        None => return Err("model.vocab is missing".into()),
    };
    let mut ids = Ids::with_capacity(vocab.len());
    let mut owner: HashMap<u32, &str> = HashMap::with_capacity(vocab.len());
    for (token, value) in vocab {
        let id = id(value).map_err(|e| format!("model.vocab: the id of {} {e}", quoted(token)))?;
        if token.len() > MAX_TOKEN {
            return Err(format!("model.vocab: token {id} is {} bytes long, the limit is {MAX_TOKEN}", token.len()));
        }
        if let Some(other) = owner.insert(id, token) {
            return Err(format!("model.vocab: id {id} belongs to both {} and {}", quoted(other), quoted(token)));
        }
        ids.insert(token.clone(), id);
    }
    Ok(Vocab::new(ids))
}

/// A token in an error message, at a readable length.
fn quoted(token: &str) -> String {
    let short: String = token.chars().take(40).collect();
    if short.len() < token.len() { format!("{short:?}...") } else { format!("{short:?}") }
}

fn optional_string<'a>(model: &'a Map<String, Value>, field: &str) -> Result<Option<&'a str>, String> {
    match model.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.len() <= MAX_TOKEN => Ok(Some(s)),
        Some(Value::String(s)) => Err(format!("model.{field} is {} bytes long", s.len())),
        Some(other) => Err(format!("model.{field} is {}, it must be a string", kind(other))),
    }
}

/// A BPE model. The library copies both sides of a merge into a buffer as long as the longest token, and
/// cuts `continuing_subword_prefix` off the right side by length alone.
pub(crate) fn bpe(model: &Map<String, Value>) -> Result<Vocab, String> {
    let vocab = id_map(model)?;
    let prefix = bpe_strings(model)?;
    let merges = match model.get("merges") {
        Some(Value::Array(merges)) => merges,
        Some(other) => return Err(format!("model.merges is {}, it must be a list", kind(other))),
        None => return Err("model.merges is missing".into()),
    };
    let legacy = merges.first().is_some_and(Value::is_string);
    let mut merged = String::new();
    for (at, merge) in merges.iter().enumerate() {
        let fail = |what: String| format!("model.merges[{at}]: {what}");
        let (left, right) = match merge {
            Value::String(line) if legacy => {
                if line.starts_with("#version") {
                    continue;
                }
                match line.split_once(' ') {
                    Some((l, r)) if !r.contains(' ') => (l, r),
                    _ => return Err(fail(format!("{} is not two tokens", quoted(line)))),
                }
            }
            Value::Array(pair) if !legacy && pair.len() == 2 => match (pair[0].as_str(), pair[1].as_str()) {
                (Some(l), Some(r)) => (l, r),
                _ => return Err(fail("is not two strings".into())),
            },
            other => return Err(fail(format!("is {}, unlike the first merge", kind(other)))),
        };
        for side in [left, right] {
            if !vocab.ids.contains_key(side) {
                return Err(fail(format!("{} is not in the vocabulary", quoted(side))));
            }
        }
        let Some(rest) = right.strip_prefix(prefix) else {
            return Err(fail(format!("{} lacks the subword prefix {prefix:?}", quoted(right))));
        };
        merged.clear();
        merged.push_str(left);
        merged.push_str(rest);
        if !vocab.ids.contains_key(&merged) {
            return Err(fail(format!("its result {} is not in the vocabulary", quoted(&merged))));
        }
    }
    Ok(vocab)
}

/// The optional strings of a BPE model; returns `continuing_subword_prefix`.
pub(crate) fn bpe_strings(model: &Map<String, Value>) -> Result<&str, String> {
    let prefix = optional_string(model, "continuing_subword_prefix")?.unwrap_or_default();
    optional_string(model, "end_of_word_suffix")?;
    optional_string(model, "unk_token")?;
    Ok(prefix)
}

/// A WordPiece model. Matching a word takes time in the cube of its length, so the length has a limit.
pub(crate) fn word_piece(model: &Map<String, Value>) -> Result<Vocab, String> {
    const MAX_WORD: u64 = 1000;
    optional_string(model, "continuing_subword_prefix")?;
    optional_string(model, "unk_token")?;
    match model.get("max_input_chars_per_word").map(|v| (v, v.as_u64())) {
        None | Some((_, Some(0..=MAX_WORD))) => id_map(model),
        Some((v, _)) => Err(format!("model.max_input_chars_per_word is {v}, it must be an integer up to {MAX_WORD}")),
    }
}

pub(crate) fn word_level(model: &Map<String, Value>) -> Result<Vocab, String> {
    optional_string(model, "unk_token")?;
    id_map(model)
}

/// A Unigram model: a list of [token, score], the index being the id.
pub(crate) fn unigram(model: &Map<String, Value>) -> Result<Vocab, String> {
    let list = match model.get("vocab") {
        Some(Value::Array(list)) if (list.len() as u64) < MAX_ID => list,
        Some(Value::Array(list)) => return Err(format!("model.vocab has {} entries", list.len())),
        Some(other) => return Err(format!("model.vocab is {}, it must be a list", kind(other))),
        None => return Err("model.vocab is missing".into()),
    };
    let mut ids = Ids::with_capacity(list.len());
    for (at, entry) in list.iter().enumerate() {
        let fail = |what: String| format!("model.vocab[{at}]: {what}");
        let (Some(token), Some(_)) = (entry[0].as_str(), entry[1].as_f64()) else {
            return Err(fail("is not a [token, score] pair".into()));
        };
        if token.len() > MAX_UNIGRAM_TOKEN {
            let length = token.len();
            return Err(fail(format!("is {length} bytes long, the limit is {MAX_UNIGRAM_TOKEN}")));
        }
        if ids.insert(token.to_owned(), at as u32).is_some() {
            return Err(fail(format!("{} is there twice", quoted(token))));
        }
    }
    match model.get("unk_id") {
        None | Some(Value::Null) => {}
        Some(v) if v.as_u64().is_some_and(|id| id < list.len() as u64) => {}
        Some(v) => return Err(format!("model.unk_id is {v}, the vocabulary has {} tokens", list.len())),
    }
    Ok(Vocab::new(ids))
}
