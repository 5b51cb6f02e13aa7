//! `ORG/NAME` to a directory: the Hugging Face cache on disk and, with the feature `hub`, downloads
//! into it.
//!
//! The layout is that of Python's `huggingface_hub`, so both share one cache:
//! `models--ORG--NAME/{refs/REVISION, snapshots/COMMIT/FILE -> ../../blobs/ETAG, blobs/ETAG}`.
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;

use crate::error::{quote, show_path};
use crate::{Error, Result, dir, file};
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where models come from: the cache, and the hub or a mirror of it.
#[derive(Clone)]
pub struct Hub {
    /// Directory with the `models--ORG--NAME` directories; `None` where the environment names none.
    pub cache: Option<PathBuf>,
    /// Base URL, without a slash at its end.
    pub endpoint: String,
    /// Sent as `Authorization: Bearer` to the endpoint.
    pub token: Option<String>,
    /// Nothing is downloaded.
    pub offline: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "...");
        f.debug_struct("Hub")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &token)
            .field("offline", &self.offline)
            .finish()
    }
}

/// How far the download of one file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Its name in the repository.
    pub file: &'a str,
    /// Bytes on disk.
    pub done: u64,
    /// Bytes of the file, where the server says.
    pub total: Option<u64>,
}

/// Resolves a model with [`Hub::from_env`], without showing progress.
///
/// # Errors
/// As [`Hub::resolve`].
pub fn resolve(model: &str) -> Result<PathBuf> {
    Hub::from_env().resolve(model, &mut |_| {})
}

impl Hub {
    /// The environment's settings, as `huggingface_hub` reads them: `HF_HUB_CACHE`, `HF_HOME`,
    /// `HF_ENDPOINT`, `HF_TOKEN` (or the file `$HF_HOME/token`), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let var = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let home = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let user_cache = var("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| home.map(|h| h.join(".cache")));
        let hf_home = var("HF_HOME").map(PathBuf::from).or_else(|| user_cache.map(|c| c.join("huggingface")));
        let token_file = var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hf_home.as_ref().map(|h| h.join("token")));
        let stored = || file::read_limited(&token_file?, 4096).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let offline = var("HF_HUB_OFFLINE").unwrap_or_default().to_ascii_uppercase();
        Hub {
            cache: var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| hf_home.map(|h| h.join("hub"))),
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: var("HF_TOKEN").or_else(stored).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()),
            offline: ["1", "ON", "YES", "TRUE"].contains(&offline.as_str()),
        }
    }

    /// The directory of a model: `model` itself where it is one, otherwise the snapshot of
    /// `ORG/NAME` or `ORG/NAME@REVISION` in the cache, downloaded first where it is not complete.
    ///
    /// # Errors
    /// [`Error::Hub`] when it is none of these; [`Error::File`] when the cache cannot be written.
    pub fn resolve(&self, model: &str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let path = Path::new(model);
        if !model.is_empty() && file::present(path) {
            return Ok(path.to_owned());
        }
        let Some(repo) = Repo::parse(model) else {
            return Err(hub_error(
                model,
                "is neither a directory nor the name of a model on the hub; pass a directory, ORG/NAME or ORG/NAME@REVISION",
            ));
        };
        let Some(cache) = &self.cache else {
            return Err(hub_error(model, "has no cache to live in; set HF_HOME to a directory"));
        };
        let root = cache.join(format!("models--{}--{}", repo.org, repo.name));
        let snapshot = snapshot(&root, &repo);
        let lacks = snapshot.as_deref().map_or(Some(Lack::Snapshot), lack);
        match (snapshot, lacks) {
            (Some(snapshot), None) => Ok(snapshot),
            // Whoever loads the model says what is wrong with it when this matters.
            (Some(snapshot), Some(Lack::Tokenizer)) if self.offline || !cfg!(feature = "hub") => Ok(snapshot),
            (_, Some(lack)) if self.offline => Err(hub_error(
                model,
                format!(
                    "is not a directory, and {} while HF_HUB_OFFLINE is set; unset it to download",
                    lack.words(cache)
                ),
            )),
            (_, lack) => self.download(model, &repo, &root, lack.unwrap_or(Lack::Snapshot), progress),
        }
    }

    #[cfg(feature = "hub")]
    fn download(
        &self,
        model: &str,
        repo: &Repo<'_>,
        root: &Path,
        _: Lack,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        download::Download::new(self, model, repo, root)?.run(progress)
    }

    #[cfg(not(feature = "hub"))]
    fn download(
        &self,
        model: &str,
        _: &Repo<'_>,
        _: &Path,
        lack: Lack,
        _: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf> {
        let cache = self.cache.as_deref().unwrap_or(Path::new(""));
        Err(hub_error(
            model,
            format!(
                "is not a directory, and {}; this program was built without downloads (cargo feature hub): \
                 fetch it with `hf download {}` or pass a directory",
                lack.words(cache),
                quote(model)
            ),
        ))
    }
}

pub(crate) fn hub_error(model: &str, reason: impl AsRef<str>) -> Error {
    Error::Hub { model: quote(model), reason: reason.as_ref().to_owned() }
}

/// A model's name on the hub.
struct Repo<'a> {
    org: &'a str,
    name: &'a str,
    revision: &'a str,
}

impl<'a> Repo<'a> {
    fn parse(model: &'a str) -> Option<Self> {
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        let (org, name) = id.split_once('/')?;
        let word = |s: &str| {
            let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !s.is_empty() && s.len() <= 96 && s.chars().all(safe) && !s.starts_with(['.', '-']) && !s.contains("..")
        };
        let fits = word(org) && word(name) && revision.len() <= 256 && revision.split('/').all(word);
        fits.then_some(Repo { org, name, revision })
    }
}

/// The snapshot directory the cache has for a revision: a branch, a tag or a commit.
fn snapshot(root: &Path, repo: &Repo<'_>) -> Option<PathBuf> {
    let reference = file::read_limited(&root.join("refs").join(repo.revision), 256).ok();
    let commit = reference.and_then(|bytes| String::from_utf8(bytes).ok());
    let commit = commit.as_deref().map_or(repo.revision, str::trim);
    let snapshot = root.join("snapshots").join(commit);
    (is_plain(commit) && snapshot.is_dir()).then_some(snapshot)
}

/// True for a name that stays in its directory.
fn is_plain(name: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= 160 && !name.starts_with('.') && name.chars().all(safe)
}

/// What a snapshot does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lack {
    Snapshot,
    File(String),
    Tokenizer,
}

impl Lack {
    fn words(&self, cache: &Path) -> String {
        match self {
            Lack::Snapshot => format!("the cache {} does not have it", show_path(cache)),
            Lack::File(name) => format!("the cache {} has it without {}", show_path(cache), quote(name)),
            Lack::Tokenizer => format!("the cache {} has it without tokenizer.json", show_path(cache)),
        }
    }
}

/// The first thing missing for loading the model.
fn lack(snapshot: &Path) -> Option<Lack> {
    let missing = |name: &str| !file::present(&snapshot.join(name));
    if missing("config.json") {
        return Some(Lack::File("config.json".into()));
    }
    if missing(dir::SINGLE) {
        if missing(dir::INDEX) {
            return Some(Lack::File(dir::SINGLE.into()));
        }
        // A damaged index is reported where it is loaded.
        let shards = dir::shard_names(&snapshot.into()).unwrap_or_default();
        if let Some(shard) = shards.into_iter().find(|name| missing(name)) {
            return Some(Lack::File(shard));
        }
    }
    missing("tokenizer.json").then_some(Lack::Tokenizer)
}
