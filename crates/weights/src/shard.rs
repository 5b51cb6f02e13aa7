//! One safetensors file: memory-mapped, or part of the program.
use crate::header::{self, Entry};
use crate::{Error, ModelFiles, Result, file};
use memmap2::Mmap;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A safetensors file whose header was checked.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    contents: Contents,
}

/// A file's bytes.
enum Contents {
    Mapped(Mmap),
    Bundled(&'static [u8]),
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Contents::Mapped(map) => map,
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
            ModelFiles::Dir(_) => Contents::Mapped(map(&path)?),
            ModelFiles::Bundle(_) => Contents::Bundled(files.bundled(name)?),
        };
        let Some(prefix) = contents.first_chunk::<8>() else {
            return Err(too_short(&path, contents.len() as u64));
        };
        let bad = |reason: String| Error::file(&path, reason);
        let end = header::header_end(contents.len() as u64, *prefix).map_err(bad)?;
        let entries = header::parse(&contents[8..end], end, contents.len()).map_err(bad)?;
        Ok((Shard { path, contents }, entries))
    }

    /// Bytes of an entry of this file.
    pub(crate) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.contents[entry.range.clone()]
    }
}

/// Maps a file of at least 8 bytes.
fn map(path: &Path) -> Result<Mmap> {
    let (file, len) = file::open_regular(path)?;
    if len < 8 {
        return Err(too_short(path, len));
    }
    // SAFETY: the map is read-only and private to this process. Its contents change only if
    // another process writes to or truncates the file while it is in use, which no user of a
    // model directory does and no program can rule out; every reader of weights has this risk.
    unsafe { Mmap::map(&file) }.map_err(|e| {
        let reason =
            format!("cannot be mapped into memory: {e}; it has {len} bytes: check that, and the limit `ulimit -v`");
        Error::file(path, reason)
    })
}

fn too_short(path: &Path, len: u64) -> Error {
    let what = if len == 0 { "is empty".into() } else { format!("is truncated: it has {len} bytes") };
    Error::file(path, format!("{what}; a safetensors file has at least 8; download it again"))
}
