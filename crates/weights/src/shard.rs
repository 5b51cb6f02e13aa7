//! One safetensors file: memory-mapped, or part of the program.
use crate::header::{self, Entry};
use crate::{Error, ModelFiles, Result, file};
use memmap2::Mmap;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A safetensors file whose header was checked.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    contents: Contents,
    /// Bytes of the header.
    header: usize,
}

/// What a file was when it was opened.
#[derive(Debug)]
pub(crate) struct Stamp {
    /// Without links.
    pub path: PathBuf,
    pub len: u64,
    /// Time of the last change, in nanoseconds.
    pub modified: u128,
    /// The file's number and its disk's, where there are such.
    pub inode: [u64; 2],
}

impl Stamp {
    fn new(path: &Path, file: &File) -> std::io::Result<Stamp> {
        let meta = file.metadata()?;
        let modified = meta.modified()?.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        #[cfg(unix)]
        let inode = [std::os::unix::fs::MetadataExt::ino(&meta), std::os::unix::fs::MetadataExt::dev(&meta)];
        #[cfg(not(unix))]
        let inode = [0; 2];
        Ok(Stamp { path: path.canonicalize()?, len: meta.len(), modified, inode })
    }
}

/// A file's bytes.
enum Contents {
    /// And what the file was, where that can be told.
    Mapped(Mmap, Option<Stamp>),
    Bundled(&'static [u8]),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Contents::Mapped(map, _) => map,
            Contents::Bundled(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Shard {
    /// Maps or borrows a file and checks its header.
    pub(crate) fn open(files: &ModelFiles, name: &str) -> Result<(Self, Vec<Entry>)> {
        let path = files.path(name);
        let contents = match files {
            ModelFiles::Dir(_) => map(&path)?,
            ModelFiles::Bundle(_) => Contents::Bundled(files.bundled(name)?),
        };
        let Some(prefix) = contents.first_chunk::<8>() else {
            return Err(too_short(&path, contents.len() as u64));
        };
        let bad = |reason: String| Error::file(&path, reason);
        let end = header::header_end(contents.len() as u64, *prefix).map_err(bad)?;
        let entries = header::parse(&contents[8..end], end, contents.len()).map_err(bad)?;
        Ok((Shard { path, contents, header: end }, entries))
    }

    /// Bytes of an entry of this file.
    pub(crate) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.contents[entry.range.clone()]
    }

    /// What the file was when it was opened, and its header; nothing where it is part of the program.
    pub(crate) fn stamp(&self) -> Option<(&Stamp, &[u8])> {
        match &self.contents {
            Contents::Mapped(map, stamp) => Some((stamp.as_ref()?, &map[..self.header])),
            Contents::Bundled(_) => None,
        }
    }

    /// Lets the system take back the memory that the bytes of an entry were read into. They can be read again.
    pub(crate) fn release(&self, entry: &Entry) {
        #[cfg(unix)]
        if let Contents::Mapped(map, _) = &self.contents {
            let range = &entry.range;
            // SAFETY: the map is of a file and is never written to, so that the pages come back with the same
            // contents. Where the system refuses, it keeps them.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}

/// Maps a file of at least 8 bytes.
fn map(path: &Path) -> Result<Contents> {
    let (file, len) = file::open_regular(path)?;
    if len < 8 {
        return Err(too_short(path, len));
    }
    // SAFETY: the map is read-only and private to this process. Its contents change only if
    // another process writes to or truncates the file while it is in use, which no user of a
    // model directory does and no program can rule out; every reader of weights has this risk.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| {
        let reason =
            format!("cannot be mapped into memory: {e}; it has {len} bytes: check that, and the limit `ulimit -v`");
        Error::file(path, reason)
    })?;
    Ok(Contents::Mapped(map, Stamp::new(path, &file).ok()))
}

fn too_short(path: &Path, len: u64) -> Error {
    let what = if len == 0 { "is empty".into() } else { format!("is truncated: it has {len} bytes") };
    Error::file(path, format!("{what}; a safetensors file has at least 8; download it again"))
}
