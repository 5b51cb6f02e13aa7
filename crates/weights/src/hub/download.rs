//! Downloading a model into the cache.
//!
//! Written here rather than taken from the `hf-hub` crate: its blocking client trusts the server with
//! file names (an ETag becomes a path as it is), does not compare sizes or hashes, appends to a partial
//! file without looking whether the server resumed, waits for ever on a silent one, and needs byte
//! ranges, which plain file mirrors lack; its current release brings an async runtime.
use super::client::{Answer, Client, Meta};
use super::{Hub, Progress, Repo, hub_error, is_plain};
use crate::error::quote;
use crate::{Error, Result, dir};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use ureq::http::StatusCode;

/// Small files a model may have, in the order they are fetched. What is not there is left out.
const OPTIONAL: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
];
/// Largest of these in bytes.
const MAX_SMALL: u64 = 256 << 20;
/// Times a transfer is resumed while it makes progress.
const RESUMES: usize = 20;

pub(super) struct Download<'a> {
    client: Client<'a>,
    model: &'a str,
    repo: &'a Repo<'a>,
    root: &'a Path,
    /// Commit that all files must be of; known after the first.
    commit: Option<String>,
}

impl<'a> Download<'a> {
    pub(super) fn new(hub: &'a Hub, model: &'a str, repo: &'a Repo<'a>, root: &'a Path) -> Result<Self> {
        Ok(Download { client: Client::new(hub, model)?, model, repo, root, commit: None })
    }

    /// Fetches what the cache lacks and returns the snapshot directory. The reference to it is
    /// written last, so that a name in `refs` means a complete snapshot.
    pub(super) fn run(mut self, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        let config = self.required("config.json", Some(MAX_SMALL), progress)?;
        for name in OPTIONAL {
            self.fetch(name, Some(MAX_SMALL), progress)?;
        }
        if self.fetch(dir::INDEX, Some(MAX_SMALL), progress)?.is_some() {
            for shard in dir::shard_names(&self.snapshot().into())? {
                self.required(&shard, None, progress)?;
            }
        } else if self.fetch(dir::SINGLE, None, progress)?.is_none() {
            return Err(self.error(format!(
                "has neither {} nor {} on the hub; anyfleet reads safetensors only",
                dir::SINGLE,
                dir::INDEX
            )));
        }
        self.write_reference()?;
        Ok(config.parent().map_or_else(|| self.snapshot(), Path::to_owned))
    }

    fn required(&mut self, name: &str, limit: Option<u64>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        match self.fetch(name, limit, progress)? {
            Some(path) => Ok(path),
            None => Err(self.error(format!(
                "has no {} at revision {}, or does not exist; check the name and HF_ENDPOINT",
                quote(name),
                self.repo.revision
            ))),
        }
    }

    /// The path of a file in the snapshot, downloaded where needed; `None` where the hub has none.
    fn fetch(
        &mut self,
        name: &str,
        limit: Option<u64>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<PathBuf>> {
        let pointer = self.snapshot().join(name);
        if self.commit.is_some() && pointer.exists() {
            return Ok(Some(pointer));
        }
        let answer = self.client.get(&self.url_path(name), 0)?;
        if answer.status == StatusCode::NOT_FOUND {
            return match answer.meta.error_code.as_deref() {
                Some("RepoNotFound" | "RevisionNotFound") => Err(self.refused(name, &answer)),
                _ => Ok(None),
            };
        }
        if !answer.status.is_success() {
            return Err(self.refused(name, &answer));
        }
        self.check_commit(&answer.meta)?;
        let pointer = self.snapshot().join(name);
        if !pointer.exists() {
            let blob = self.blob(name, &answer.meta);
            if !blob.exists() {
                Transfer { download: self, name, limit, blob: &blob, meta: answer.meta.clone() }
                    .run(answer, progress)?;
            }
            link(&blob, &pointer, name)?;
        }
        Ok(Some(pointer))
    }

    /// A repository that changes under the download would leave files of two models together.
    fn check_commit(&mut self, meta: &Meta) -> Result<()> {
        let named = meta.commit.as_deref().filter(|c| is_plain(c));
        // A mirror that names no commit has one snapshot per revision.
        let commit = named.map_or_else(|| self.repo.revision.replace('/', "--"), str::to_owned);
        match &self.commit {
            Some(first) if *first != commit => Err(self.error("changed on the hub while it was downloaded; try again")),
            Some(_) => Ok(()),
            None => {
                self.commit = Some(commit);
                Ok(())
            }
        }
    }

    fn url_path(&self, name: &str) -> String {
        let Repo { org, name: model, revision } = self.repo;
        format!("{org}/{model}/resolve/{}/{}", revision.replace('/', "%2F"), percent(name))
    }

    fn snapshot(&self) -> PathBuf {
        self.root.join("snapshots").join(self.commit.as_deref().unwrap_or(self.repo.revision))
    }

    /// Where a file's contents are kept. An ETag that is no plain name is the server's to choose and
    /// not ours to use as a path.
    fn blob(&self, name: &str, meta: &Meta) -> PathBuf {
        let etag = meta.etag.as_deref().map(|e| e.trim_start_matches("W/").trim_matches('"'));
        let key = etag.filter(|e| is_plain(e)).map_or_else(
            || hex(&Sha256::digest(format!("{}\n{name}\n{etag:?}", self.commit.as_deref().unwrap_or_default()))),
            str::to_owned,
        );
        self.root.join("blobs").join(key)
    }

    fn write_reference(&self) -> Result<()> {
        let path = self.root.join("refs").join(self.repo.revision);
        let Some(commit) = &self.commit else { return Ok(()) };
        if commit == self.repo.revision {
            return Ok(());
        }
        create_parent(&path)?;
        fs::write(&path, commit).map_err(|e| cannot_write(&path, &e))
    }

    fn refused(&self, name: &str, answer: &Answer) -> Error {
        let said = answer.meta.message.as_deref().map_or_else(String::new, |m| format!(" ({})", quote(m)));
        let remedy = match answer.status.as_u16() {
            401 | 403 => "it does not exist, or it is private or gated: accept its terms on the hub and set HF_TOKEN",
            404 => "check the name and the revision",
            429 => "too many requests: wait, or set HF_TOKEN",
            _ => "try again later or check HF_ENDPOINT",
        };
        self.error(format!("the hub answered {} for {}{said}; {remedy}", answer.status.as_u16(), quote(name)))
    }

    fn error(&self, reason: impl AsRef<str>) -> Error {
        hub_error(self.model, reason)
    }
}

/// One file on its way to its blob.
struct Transfer<'a, 'd> {
    download: &'a Download<'d>,
    name: &'a str,
    limit: Option<u64>,
    blob: &'a Path,
    meta: Meta,
}

impl Transfer<'_, '_> {
    /// Reads `answer`, resumes while that gets further, checks size and hash, and gives the blob its
    /// name.
    fn run(&self, answer: Answer, progress: &mut dyn FnMut(Progress<'_>)) -> Result<()> {
        let partial = self.blob.with_file_name(format!("{}.incomplete", file_name(self.blob)));
        create_parent(&partial)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .map_err(|e| cannot_write(&partial, &e))?;
        // Another process may be fetching the same file: one writes, the other finds it done.
        file.lock().map_err(|e| cannot_write(&partial, &e))?;
        if self.blob.exists() {
            return Ok(());
        }
        self.read_all(&mut file, &partial, answer, progress)?;
        self.verify(&mut file, &partial)?;
        fs::rename(&partial, self.blob).map_err(|e| cannot_write(self.blob, &e))
    }

    /// Fills `file`, which may hold the start of it already, asking again from where an answer broke
    /// off for as long as that gets further.
    fn read_all(
        &self,
        file: &mut File,
        partial: &Path,
        answer: Answer,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let total = self.meta.size;
        let mut have = file.metadata().map_err(|e| cannot_write(partial, &e))?.len();
        if total.is_none_or(|total| have > total) {
            have = 0;
        }
        let mut first = Some(answer);
        for _ in 0..RESUMES {
            if total == Some(have) {
                return Ok(());
            }
            let answer = match first.take() {
                Some(answer) if have == 0 => answer,
                _ => self.again(have)?,
            };
            let (end, clean) = self.read(file, partial, answer, progress)?;
            if total.map_or(clean, |total| end == total) {
                return Ok(());
            }
            if end <= have {
                break;
            }
            have = end;
        }
        let of = total.map_or_else(String::new, |total| format!(" of {total}"));
        Err(self.download.error(format!(
            "{} broke off at {have}{of} bytes; try again, the download resumes there",
            quote(self.name)
        )))
    }

    /// The rest of the file from byte `from` on; a server without byte ranges starts over.
    fn again(&self, from: u64) -> Result<Answer> {
        let client = &self.download.client;
        let answer = client.get(&self.download.url_path(self.name), from)?;
        let fits = answer.status.is_success() && (answer.start == from || answer.start == 0);
        if fits { Ok(answer) } else { Err(self.download.refused(self.name, &answer)) }
    }

    /// Writes one answer into the file. Returns where it ended and whether it ended as it should: a
    /// broken connection is not an error yet.
    fn read(
        &self,
        file: &mut File,
        partial: &Path,
        answer: Answer,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(u64, bool)> {
        let cannot = |e: io::Error| cannot_write(partial, &e);
        let mut at = answer.start;
        file.set_len(at).map_err(cannot)?;
        file.seek(SeekFrom::Start(at)).map_err(cannot)?;
        let most = self.meta.size.unwrap_or(u64::MAX).min(self.limit.unwrap_or(u64::MAX));
        let mut body = answer.body.into_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            progress(Progress { file: self.name, done: at, total: self.meta.size });
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok((at, true)),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok((at, false)),
            };
            at += count as u64;
            if at > most {
                return Err(self.download.error(format!(
                    "{} goes on past {most} bytes, more than it may have; check HF_ENDPOINT",
                    quote(self.name)
                )));
            }
            file.write_all(&buffer[..count]).map_err(cannot)?;
        }
    }

    /// Compares the SHA-256 that the hub gives for large files.
    fn verify(&self, file: &mut File, partial: &Path) -> Result<()> {
        let cannot = |e: io::Error| cannot_write(partial, &e);
        let Some(want) = &self.meta.sha256 else { return Ok(()) };
        file.seek(SeekFrom::Start(0)).map_err(cannot)?;
        let mut hash = Sha256::new();
        io::copy(file, &mut hash).map_err(cannot)?;
        if hex(&hash.finalize()) == *want {
            return Ok(());
        }
        // What is wrong from start to end cannot be resumed.
        file.set_len(0).map_err(cannot)?;
        Err(self
            .download
            .error(format!("{} arrived damaged (another SHA-256 than announced); try again", quote(self.name))))
    }
}

/// Gives a blob its name in a snapshot: a relative link where there are links.
fn link(blob: &Path, pointer: &Path, name: &str) -> Result<()> {
    create_parent(pointer)?;
    #[cfg(unix)]
    {
        let up = "../".repeat(2 + name.matches('/').count());
        let target = format!("{up}blobs/{}", file_name(blob));
        match std::os::unix::fs::symlink(target, pointer) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(cannot_write(pointer, &e)),
            _ => Ok(()),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        fs::rename(blob, pointer).map_err(|e| cannot_write(pointer, &e))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn create_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(|e| cannot_write(parent, &e))
}

fn cannot_write(path: &Path, error: &io::Error) -> Error {
    Error::file(path, format!("cannot be written: {error}; set HF_HOME to a directory with room"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A file name in a URL.
fn percent(name: &str) -> String {
    name.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
