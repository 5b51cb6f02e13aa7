//! JSON configuration files, read generically: families ask for the keys they know, and a value
//! that does not fit is one clear error.
use crate::error::{quote, show_path};
use crate::{Error, ModelFiles, Result, file};
use anyfleet_tensor::DType;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;
use std::path::Path;

/// Largest configuration file read, in bytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A JSON object from a file.
///
/// ```
/// use anyfleet_weights::Config;
/// # fn main() -> anyfleet_weights::Result<()> {
/// let config = Config::parse("config.json".as_ref(), br#"{"hidden_size": 64, "rope": {"theta": -1}}"#)?;
/// assert_eq!(config.root().uint("hidden_size", 1..=1024)?, Some(64));
/// let rope = config.root().section("rope")?.unwrap();
/// assert_eq!(
///     rope.float("theta", 1.0..=1e9).unwrap_err().to_string(),
///     "config.json: rope.theta is -1; expected a number in 1..=1000000000"
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    file: String,
    map: Map<String, Value>,
}

impl Config {
    /// Reads `config.json` of a model directory, or of a model that is part of the program.
    ///
    /// # Errors
    /// [`Error::File`] when the directory is none, or the file is missing, not a regular file, larger
    /// than 16 MiB or not a JSON object.
    pub fn open(model: impl Into<ModelFiles>) -> Result<Self> {
        let files = model.into();
        match files.dir().map(std::fs::metadata) {
            Some(Err(e)) => {
                let reason = format!("cannot be opened as a model directory: {e}; check the path");
                return Err(Error::file(&files.root(), reason));
            }
            Some(Ok(meta)) if !meta.is_dir() => {
                let reason = "is not a directory; pass the directory with config.json and the safetensors files";
                return Err(Error::file(&files.root(), reason));
            }
            Some(Ok(_)) | None => {}
        }
        if !files.has("config.json") {
            let reason = "has no config.json; pass a model directory as published on the Hugging Face hub";
            return Err(Error::file(&files.root(), reason));
        }
        Self::read_from(&files, "config.json")
    }

    /// Reads a JSON file of a model.
    pub(crate) fn read_from(files: &ModelFiles, name: &str) -> Result<Self> {
        Self::parse(&files.path(name), &files.read(name, MAX_CONFIG)?)
    }

    /// Reads a JSON file.
    ///
    /// # Errors
    /// [`Error::File`] when it is missing, not a regular file, larger than 16 MiB or not a JSON object.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &file::read_limited(path, MAX_CONFIG)?)
    }

    /// Parses the contents of the file `path`, which is only named in errors.
    ///
    /// # Errors
    /// [`Error::File`] when `bytes` is not a JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => Ok(Config { file: show_path(path), map }),
            Ok(_) => Err(Error::file(path, "is JSON, but not an object; download the file again")),
            Err(e) => Err(Error::file(path, not_json(bytes, &e))),
        }
    }

    /// An object without keys, standing in for an optional file that is absent.
    pub(crate) fn empty(path: &Path) -> Self {
        Config { file: show_path(path), map: Map::new() }
    }

    /// The file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The top-level object.
    pub fn root(&self) -> Section<'_> {
        Section { file: &self.file, path: String::new(), map: &self.map }
    }

    /// Element type the weights were saved in: `dtype`, or `torch_dtype` as it was called before.
    ///
    /// # Errors
    /// [`Error::Config`] when it is not a string. Types that are not f32, bf16 or f16 give `None`.
    pub fn dtype(&self) -> Result<Option<DType>> {
        let root = self.root();
        let name = if root.has("dtype") { root.text("dtype")? } else { root.text("torch_dtype")? };
        Ok(match name.map(|n| n.trim_start_matches("torch.")) {
            Some("float32" | "float") => Some(DType::F32),
            Some("bfloat16") => Some(DType::BF16),
            Some("float16" | "half") => Some(DType::F16),
            _ => None,
        })
    }
}

/// Why `bytes` is no JSON. Python writes NaN and Infinity, which deserves its own words.
fn not_json(bytes: &[u8], error: &serde_json::Error) -> String {
    let line = bytes.split(|&b| b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = &line[error.column().saturating_sub(1).min(line.len())..];
    let number = [&b"NaN"[..], b"Infinity", b"-Infinity"].iter().any(|n| {
        // The column is that of the first character that does not fit: the N, the I, or the I after
        // a minus sign.
        rest.starts_with(n) || (n[0] == b'-' && rest.starts_with(&n[1..]))
    });
    if bytes.is_empty() {
        "is empty; download the file again".into()
    } else if number {
        format!("line {} holds NaN or Infinity, which JSON does not have; write a number", error.line())
    } else {
        format!("is not valid JSON: {error}; download the file again")
    }
}

/// An object inside a [`Config`], with typed access.
///
/// Getters return `None` when the key is missing or null; [`Section::get`] tells these apart.
#[derive(Clone, Debug)]
pub struct Section<'a> {
    file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The raw value; null is a value here.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.map.keys().map(String::as_str)
    }

    /// True when the object has no keys.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// True when the key is there and not null.
    pub fn has(&self, key: &str) -> bool {
        self.some(key).is_some()
    }

    /// A whole number in `range`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn uint(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        value
            .as_u64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0 && (0.0..9e15).contains(f)).map(|f| f as u64))
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| range.contains(n))
            .map(Some)
            .ok_or_else(|| self.error(key, format!("a whole number in {}..={}", range.start(), range.end())))
    }

    /// A list of whole numbers in `range`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn uints(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        let number = |v: &Value| usize::try_from(v.as_u64()?).ok().filter(|n| range.contains(n));
        let list: Option<Vec<usize>> = value.as_array().and_then(|list| list.iter().map(number).collect());
        let expected = || format!("a list of whole numbers in {}..={}", range.start(), range.end());
        list.map(Some).ok_or_else(|| self.error(key, expected()))
    }

    /// As [`Section::uint`], but the key must be there.
    ///
    /// # Errors
    /// [`Error::Config`] when it is missing, null or any other value.
    pub fn required_uint(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        let expected = format!("a whole number in {}..={}", range.start(), range.end());
        self.uint(key, range)?.ok_or_else(|| self.error(key, expected))
    }

    /// A number in `range`.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn float(&self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        value
            .as_f64()
            .filter(|f| range.contains(f))
            .map(Some)
            .ok_or_else(|| self.error(key, format!("a number in {}..={}", range.start(), range.end())))
    }

    /// As [`Section::float`], but the key must be there.
    ///
    /// # Errors
    /// [`Error::Config`] when it is missing, null or any other value.
    pub fn required_float(&self, key: &str, range: RangeInclusive<f64>) -> Result<f64> {
        let expected = format!("a number in {}..={}", range.start(), range.end());
        self.float(key, range)?.ok_or_else(|| self.error(key, expected))
    }

    /// A boolean.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(key, "true or false"))
    }

    /// A string.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.error(key, "a string"))
    }

    /// A list of strings.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.some(key) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| self.error(key, "a list of strings"))
    }

    /// A token id or a list of them; empty when the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.some(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.error(key, "a token id or a list of token ids"))
    }

    /// An object inside this one.
    ///
    /// # Errors
    /// [`Error::Config`] for any other value.
    pub fn section(&self, key: &str) -> Result<Option<Section<'a>>> {
        match self.some(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Section { file: self.file, path: self.dotted(key), map })),
            Some(_) => Err(self.error(key, "an object")),
        }
    }

    /// The error for the value of `key`, whatever it is.
    pub fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.map.get(key).map_or_else(|| "missing".to_owned(), |v| quote(&v.to_string()));
        Error::Config { file: self.file.to_owned(), key: self.dotted(key), found, expected: expected.into() }
    }

    /// The error for something well formed that this program does not run; text from files in
    /// `reason` goes through [`quote`].
    pub fn unsupported(&self, reason: impl Into<String>) -> Error {
        Error::Unsupported { file: self.file.to_owned(), reason: reason.into() }
    }

    fn some(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}
