//! One memory-mapped safetensors file.
use crate::header::{self, Entry};
use crate::{Error, Result, file};
use memmap2::Mmap;
use std::path::{Path, PathBuf};

/// A safetensors file whose header was checked.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    map: Mmap,
}

impl Shard {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Entry>)> {
        let bad = |reason: String| Error::file(path, reason);
        let (file, len) = file::open_regular(path)?;
        if len < 8 {
            let what = if len == 0 { "is empty".into() } else { format!("is truncated: it has {len} bytes") };
            return Err(bad(format!("{what}; a safetensors file has at least 8; download it again")));
        }
        // SAFETY: the map is read-only and private to this process. Its contents change only if
        // another process writes to or truncates the file while it is in use, which no user of a
        // model directory does and no program can rule out; every reader of weights has this risk.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| {
            bad(format!("cannot be mapped into memory: {e}; it has {len} bytes: check that, and the limit `ulimit -v`"))
        })?;
        let Some(prefix) = map.first_chunk::<8>() else {
            return Err(bad("changed while it was opened; try again".into()));
        };
        let end = header::header_end(map.len() as u64, *prefix).map_err(bad)?;
        let entries = header::parse(&map[8..end], end, map.len()).map_err(bad)?;
        Ok((Shard { path: path.to_owned(), map }, entries))
    }

    /// Bytes of an entry of this file.
    pub(crate) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map[entry.range.clone()]
    }
}
