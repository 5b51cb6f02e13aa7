//! What the files beside `tokenizer.json` add to it, as transformers 5 applies them
//! (`TokenizersBackend.__init__`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::kind;
use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::file::Files;

/// Published ones reach 200 KB.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The named special tokens of a model: `bos_token`, `eos_token`, ... as strings, and
/// `additional_special_tokens` or `extra_special_tokens` as a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpecialTokens {
    map: Map<String, Value>,
}

impl SpecialTokens {
    /// Tokens by name, for a model without configuration files.
    pub fn new<'a>(named: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self { map: named.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect() }
    }

    /// The token of a name such as `bos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.map.get(name)?.as_str()
    }

    /// `bos_token`: begins a text.
    pub fn bos(&self) -> Option<&str> {
        self.get("bos_token")
    }

    /// `eos_token`: ends a text.
    pub fn eos(&self) -> Option<&str> {
        self.get("eos_token")
    }

    /// Everything, as chat templates see it.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Reads the names from `tokenizer_config.json`, then from `special_tokens_map.json`.
    fn read(config: &Value, map: &Value) -> Self {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];
        let mut found = Map::new();
        for name in NAMES {
            if let Some(token) = [config, map].iter().find_map(|m| content(&m[name])) {
                found.insert(name.into(), token.into());
            }
        }
        for name in LISTS {
            let list = [config, map].iter().find_map(|m| m[name].as_array().filter(|l| !l.is_empty()));
            if let Some(list) = list {
                let tokens = list.iter().filter_map(content).map(Value::from).collect();
                found.insert(name.into(), Value::Array(tokens));
            }
        }
        Self { map: found }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.map
            .values()
            .flat_map(|v| match v {
                Value::Array(list) => list.iter().collect::<Vec<_>>(),
                one => vec![one],
            })
            .filter_map(Value::as_str)
    }
}

/// A token written as a string, or as an object with its flags.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// The files beside a `tokenizer.json`; null where there is none.
#[derive(Default)]
pub(crate) struct Neighbours {
    config: Value,
    special_tokens_map: Value,
}

impl Neighbours {
    pub(crate) fn read(files: Files<'_>) -> Result<Self> {
        let read = |name: &str| match files.read_json(name, MAX_CONFIG_BYTES)? {
            None => Ok(Value::Null),
            Some(object @ Value::Object(_)) => Ok(object),
            Some(other) => {
                let reason = format!("is {}, it must be an object", kind(&other));
                Err(Error::File { path: files.path(name), reason })
            }
        };
        Ok(Self { config: read("tokenizer_config.json")?, special_tokens_map: read("special_tokens_map.json")? })
    }

    /// The parts that decide ids, in one string.
    pub(crate) fn digest_input(&self) -> String {
        let named = SpecialTokens::read(&self.config, &self.special_tokens_map);
        json!([
            self.config["added_tokens_decoder"],
            self.config["add_bos_token"],
            self.config["add_eos_token"],
            named.map,
        ])
        .to_string()
    }

    /// Writes into `file` (a tokenizer.json, not validated yet) what these files say: the flags of added
    /// tokens, which tokens are special, whether `bos` and `eos` are added. A `known` vocabulary stands for
    /// that of `file`.
    pub(crate) fn apply(&self, file: &mut Value, known: Option<&Vocab>) -> Result<SpecialTokens, String> {
        let named = SpecialTokens::read(&self.config, &self.special_tokens_map);
        let list = match file["added_tokens"].take() {
            Value::Null => Vec::new(),
            Value::Array(list) => list,
            other => return Err(format!("added_tokens is {}, it must be a list", kind(&other))),
        };
        let mut added = Added::new(list, ModelIds::new(known, &file["model"]["vocab"]));
        self.add_declared(&mut added);
        for token in named.all() {
            if let Some(entry) = added.get_mut(token) {
                entry["special"] = true.into();
            } else if let Some(id) = added.model_ids.get(token) {
                added.push(entry(id, token, &json!({"special": true})));
            }
        }
        let post_processor = self.post_processor(&added, &named);
        file["added_tokens"] = Value::Array(added.list);
        if let Some(post_processor) = post_processor {
            file["post_processor"] = post_processor;
        }
        Ok(named)
    }

    /// `added_tokens_decoder`: its flags win over those of tokenizer.json. A token that only it knows is
    /// added if its id is the one it would get.
    fn add_declared(&self, added: &mut Added) {
        let Some(declared) = self.config["added_tokens_decoder"].as_object() else { return };
        let mut declared: Vec<(u64, &Value)> =
            declared.iter().filter_map(|(id, token)| Some((id.parse().ok()?, token))).collect();
        declared.sort_by_key(|(id, _)| *id);
        let first = added.model_ids.len() as u64;
        let beyond = added.list.iter().filter_map(|e| e["id"].as_u64()).filter(|id| *id >= first).max();
        let mut next = beyond.map_or(first, |id| id.saturating_add(1));
        for (id, token) in declared {
            let Some(content) = token["content"].as_str() else { continue };
            if let Some(known) = added.get_mut(content) {
                *known = entry(known["id"].clone(), content, token);
            } else if let Some(id) = added.model_ids.get(content) {
                added.push(entry(id, content, token));
            } else if id == next {
                added.push(entry(id.into(), content, token));
                next += 1;
            }
        }
    }

    /// The post-processor that `add_bos_token` or `add_eos_token` asks for, where either is given.
    fn post_processor(&self, added: &Added, named: &SpecialTokens) -> Option<Value> {
        let flag = |name: &str| self.config[name].as_bool();
        let (bos, eos) = (flag("add_bos_token"), flag("add_eos_token"));
        if bos.is_none() && eos.is_none() {
            return None;
        }
        let token = |wanted: Option<bool>, token: Option<&str>| -> Option<(String, Value)> {
            let token = token.filter(|_| wanted == Some(true))?;
            Some((token.to_owned(), added.id(token)?))
        };
        let (bos, eos) = (token(bos, named.bos()), token(eos, named.eos()));
        let piece = |token: &Option<(String, Value)>, type_id: u32| {
            token.as_ref().map(|(t, _)| json!({"SpecialToken": {"id": t, "type_id": type_id}}))
        };
        let sequence = |name: &str, type_id: u32| {
            let text = json!({"Sequence": {"id": name, "type_id": type_id}});
            [piece(&bos, type_id), Some(text), piece(&eos, type_id)].into_iter().flatten()
        };
        let single: Vec<Value> = sequence("A", 0).collect();
        let pair: Vec<Value> = sequence("A", 0).chain(sequence("B", 1)).collect();
        let tokens: Map<String, Value> = [&bos, &eos]
            .into_iter()
            .flatten()
            .map(|(t, id)| (t.clone(), json!({"id": t, "ids": [id], "tokens": [t]})))
            .collect();
        Some(json!({
            "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
        }))
    }
}

/// The added tokens under construction, found by content.
struct Added<'a> {
    list: Vec<Value>,
    at: HashMap<String, usize>,
    model_ids: ModelIds<'a>,
}

/// The tokens of the model itself.
enum ModelIds<'a> {
    Known(&'a Vocab),
    Object(&'a Map<String, Value>),
    List(HashMap<&'a str, usize>),
}

impl<'a> ModelIds<'a> {
    fn new(known: Option<&'a Vocab>, vocab: &'a Value) -> Self {
        match (known, vocab) {
            (Some(vocab), _) => Self::Known(vocab),
            (None, Value::Object(vocab)) => Self::Object(vocab),
            (None, Value::Array(vocab)) => {
                Self::List(vocab.iter().enumerate().filter_map(|(i, e)| Some((e[0].as_str()?, i))).collect())
            }
            _ => Self::List(HashMap::new()),
        }
    }

    fn get(&self, token: &str) -> Option<Value> {
        match self {
            Self::Known(vocab) => vocab.id(token).map(Value::from),
            Self::Object(vocab) => vocab.get(token).cloned(),
            Self::List(ids) => ids.get(token).copied().map(Value::from),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Known(vocab) => vocab.len(),
            Self::Object(vocab) => vocab.len(),
            Self::List(ids) => ids.len(),
        }
    }
}

impl<'a> Added<'a> {
    fn new(list: Vec<Value>, model_ids: ModelIds<'a>) -> Self {
        let at = list.iter().enumerate().filter_map(|(i, e)| Some((e["content"].as_str()?.to_owned(), i))).collect();
        Self { list, at, model_ids }
    }

    fn get_mut(&mut self, content: &str) -> Option<&mut Value> {
        self.list.get_mut(*self.at.get(content)?)
    }

    fn push(&mut self, entry: Value) {
        if let Some(content) = entry["content"].as_str() {
            self.at.insert(content.to_owned(), self.list.len());
        }
        self.list.push(entry);
    }

    fn id(&self, token: &str) -> Option<Value> {
        match self.at.get(token) {
            Some(&at) => Some(self.list[at]["id"].clone()),
            None => self.model_ids.get(token),
        }
    }
}

/// An `added_tokens` entry; `flags` may leave any of them out.
fn entry(id: Value, content: &str, flags: &Value) -> Value {
    let flag = |name: &str| flags[name].as_bool().unwrap_or(false);
    json!({
        "id": id, "content": content, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
        "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
    })
}
