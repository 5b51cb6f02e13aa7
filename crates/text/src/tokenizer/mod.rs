//! Text to ids: a `tokenizers` pipeline behind a validator.

mod bound;
mod bpe;
mod charsmap;
mod config;
mod pattern;
mod pipeline;
mod validate;
mod vocab;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::Merges;

use crate::decode::DecodePlan;
use crate::error::{Error, Result, one_line, panic_text};
use crate::file::{self, Files};
use bound::TokenBound;
pub use config::SpecialTokens;
use vocab::Vocab;

const NAME: &str = "tokenizer.json";
/// Larger than any published tokenizer.json (about 35 MB) by a factor of three.
const MAX_TOKENIZER_BYTES: u64 = 100 << 20;

/// A tokenizer: text to ids and ids to text, as transformers does it with the same files.
///
/// Cheap to clone (the clones share everything) and usable from many threads at once. Truncation and
/// padding that a file asks for are ignored: a server must not drop what a user wrote.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    library: tokenizers::Tokenizer,
    plan: DecodePlan,
    bound: TokenBound,
    special_ids: HashSet<u32>,
    special_tokens: SpecialTokens,
    vocab_size: usize,
    hash: [u8; 32],
}

impl Inner {
    /// Checks a file and hands it to the library. `tables` are those of a BPE model, where the file lacks them.
    fn assemble(
        mut file: Value,
        tables: Option<(Vocab, Merges)>,
        neighbours: &config::Neighbours,
        hash: [u8; 32],
    ) -> Result<Self, String> {
        let (known, merges) = tables.unzip();
        let special_tokens = neighbours.apply(&mut file, known.as_ref())?;
        let vocab = validate::document(&mut file, known)?;
        let plan = DecodePlan::new(&file["decoder"])?;
        let bound = TokenBound::new(&file, &vocab);
        let vocab_size = vocab.size();
        let library = guarded(|| match merges {
            Some(merges) => bpe::tokenizer(file, vocab, merges),
            None => Ok(serde_json::from_value(file)?),
        })
        .map_err(|panic| format!("the tokenizers library panicked on it: {panic}"))?
        .map_err(|e| format!("not a tokenizer: {e}"))?;
        let added = library.get_added_vocabulary();
        let special_ids = added
            .get_added_tokens_decoder()
            .keys()
            .copied()
            .filter(|&id| library.id_to_token(id).is_some_and(|t| added.is_special_token(&t)))
            .collect();
        Ok(Self { library, plan, bound, special_ids, special_tokens, vocab_size, hash })
    }
}

impl Tokenizer {
    /// Opens a `tokenizer.json` (or the directory that holds one), with what `tokenizer_config.json`
    /// and `special_tokens_map.json` beside it add: special tokens, their flags, and whether
    /// `add_bos_token` and `add_eos_token` replace the post-processor.
    ///
    /// # Errors
    /// [`Error::File`] for what cannot be read as a regular file of sane size, [`Error::Tokenizer`] for
    /// what is broken or hostile; one line each.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // A directory of the file's own name is no model directory.
        let model = path.is_dir() && path.file_name().is_none_or(|name| name != NAME);
        let path = if model { path.join(NAME) } else { path.to_owned() };
        let bytes = file::read(&path, MAX_TOKENIZER_BYTES)?;
        let neighbours = config::Neighbours::read(Files::Dir(path.parent().unwrap_or(Path::new(""))))?;
        Self::build(&bytes, neighbours, &path.display().to_string())
    }

    /// The tokenizer of a model, as [`from_file`](Self::from_file) reads it; `None` where the model has
    /// no `tokenizer.json`.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_files(files: Files<'_>) -> Result<Option<Self>> {
        let Some(bytes) = files.read_optional(NAME, MAX_TOKENIZER_BYTES)? else { return Ok(None) };
        let neighbours = config::Neighbours::read(files)?;
        Self::build(&bytes, neighbours, &files.path(NAME).display().to_string()).map(Some)
    }

    /// A tokenizer from the contents of a `tokenizer.json` alone.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::build(bytes, config::Neighbours::default(), NAME)
    }

    fn build(bytes: &[u8], neighbours: config::Neighbours, origin: &str) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { origin: origin.to_owned(), reason: one_line(reason) };
        let text = validate::text(bytes).map_err(fail)?;
        // The hash covers what decides the ids: the file, and the neighbours' say in it.
        let mut hash = Sha256::new();
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
        hash.update(neighbours.digest_input());
        let hash = hash.finalize().into();
        let regular = bpe::read(text).and_then(|(file, t)| Inner::assemble(file, Some(t), &neighbours, hash).ok());
        let inner = match regular {
            Some(inner) => inner,
            None => {
                validate::parse(text).and_then(|file| Inner::assemble(file, None, &neighbours, hash)).map_err(fail)?
            }
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The ids of `text`. With `add_special`, the post-processor adds its special tokens (a leading
    /// `<s>`, say); special tokens written out in `text` are parsed either way, as transformers does,
    /// so a rendered chat template is encoded with `false`.
    ///
    /// # Errors
    /// [`Error::Encode`] when the tokenizer has no token for some character and no unknown token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.library.encode_fast(text, add_special))
            .map_err(|panic| Error::Encode(format!("the library panicked on this text: {panic}")))?
            .map_err(|e| Error::Encode(one_line(e)))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// [`encode`](Self::encode) for at most `max_tokens` tokens. A text that is certainly longer is
    /// refused by its length alone, so a prompt of 100 MB costs nothing.
    ///
    /// # Errors
    /// [`Error::TooLong`], and those of `encode`.
    pub fn encode_bounded(&self, text: &str, add_special: bool, max_tokens: usize) -> Result<Vec<u32>> {
        let tokens = self.inner.bound.at_least(text);
        if tokens > max_tokens {
            return Err(Error::TooLong { tokens, exact: false, limit: max_tokens });
        }
        let ids = self.encode(text, add_special)?;
        if ids.len() > max_tokens {
            return Err(Error::TooLong { tokens: ids.len(), exact: true, limit: max_tokens });
        }
        Ok(ids)
    }

    /// The text of `ids`: what transformers' `decode` gives with `clean_up_tokenization_spaces=False`.
    /// With `skip_special`, special tokens produce nothing; ids outside the vocabulary never do;
    /// bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Encode`] if the library fails, which no validated decoder does.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let library = &self.inner.library;
        let known = |&id: &u32| !(skip_special && self.is_special(id)) && library.id_to_token(id).is_some();
        if !ids.iter().any(known) {
            // Some decoders subtract from the number of tokens without looking.
            return Ok(String::new());
        }
        guarded(|| library.decode(ids, skip_special))
            .map_err(|panic| Error::Encode(format!("the library panicked on these ids: {panic}")))?
            .map_err(|e| Error::Encode(one_line(e)))
    }

    /// The id of a token, written as the vocabulary writes it (`Ġthe`, `▁the`, `<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.library.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it; `None` for a hole or beyond the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.library.id_to_token(id)
    }

    /// The largest id + 1.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Whether `id` is a special token, which `skip_special` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains(&id)
    }

    /// The bytes that `id` adds in the middle of a text: OpenAI's `bytes` of a log-probability. Not
    /// always valid UTF-8; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.id_to_token(id) {
            // A special token stands for itself: its text never went through the byte alphabet.
            Some(token) if self.is_special(id) => token.into_bytes(),
            Some(token) => self.inner.plan.bytes_of(token),
            None => Vec::new(),
        }
    }

    /// [`token_bytes`](Self::token_bytes) as text, invalid bytes as U+FFFD.
    pub fn token_text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.token_bytes(id)).into_owned()
    }

    /// The named special tokens of the configuration files, for chat templates and stopping.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.special_tokens
    }

    /// SHA-256 of what decides the ids: equal for equal files, on every machine.
    pub fn content_hash(&self) -> [u8; 32] {
        self.inner.hash
    }

    pub(crate) fn decode_plan(&self) -> &DecodePlan {
        &self.inner.plan
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.inner.vocab_size).finish_non_exhaustive()
    }
}

/// Runs library code that validation should keep from panicking, in case it does not.
fn guarded<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    // What `f` reads is never written, so a panic leaves nothing half-done behind.
    catch_unwind(AssertUnwindSafe(f)).map_err(|p| panic_text(&*p))
}

/// A value's kind in an error message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
