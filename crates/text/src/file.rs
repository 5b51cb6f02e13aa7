//! Reading a user's files: only regular ones, and only up to a size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a whole regular file of at most `limit` bytes.
///
/// A directory, FIFO, device or socket is refused before it is opened (opening a FIFO blocks until
/// someone writes to it); a symlink loop is the operating system's error.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let fail = |reason: String| Error::File { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    if !meta.is_file() {
        return Err(fail("is not a regular file".into()));
    }
    let too_large = || fail(format!("is larger than {} MiB, which no such file is", limit >> 20));
    if meta.len() > limit {
        return Err(too_large());
    }
    let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    // The file may have grown since, or be one of those whose length reads as 0.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// [`read`], with `None` where nothing is there under that name.
pub(crate) fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read(path, limit).map(Some),
    }
}

/// Parses a JSON file of at most `limit` bytes; `None` where it does not exist.
pub(crate) fn read_json(path: &Path, limit: u64) -> Result<Option<serde_json::Value>> {
    let Some(bytes) = read_optional(path, limit)? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| Error::File { path: path.to_owned(), reason: format!("is not valid JSON: {e}") })
}
