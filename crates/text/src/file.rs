//! Reading a user's files: only regular ones, and only up to a size.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where a model's tokenizer and chat template are.
#[derive(Clone, Copy, Debug)]
pub enum Files<'a> {
    /// In a model directory.
    Dir(&'a Path),
    /// In memory.
    Memory {
        /// What messages call all of them.
        label: &'a str,
        /// Names and contents, e.g. of `tokenizer.json`.
        files: &'a [(&'a str, &'a [u8])],
    },
}

impl<'a> Files<'a> {
    /// What messages call a file; a path to be read only in a directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self {
            Files::Dir(dir) => dir.join(name),
            Files::Memory { label, .. } => Path::new(label).join(name),
        }
    }

    /// A whole file of at most `limit` bytes; `None` where nothing is there under that name.
    pub(crate) fn read_optional(&self, name: &str, limit: u64) -> Result<Option<Cow<'a, [u8]>>> {
        match self {
            Files::Dir(dir) => Ok(read_optional(&dir.join(name), limit)?.map(Cow::Owned)),
            Files::Memory { files, .. } => match files.iter().find(|(n, _)| *n == name) {
                Some((_, bytes)) if bytes.len() as u64 > limit => {
                    Err(Error::File { path: self.path(name), reason: too_large(limit) })
                }
                found => Ok(found.map(|(_, bytes)| Cow::Borrowed(*bytes))),
            },
        }
    }

    /// Parses a JSON file of at most `limit` bytes; `None` where it does not exist.
    pub(crate) fn read_json(&self, name: &str, limit: u64) -> Result<Option<serde_json::Value>> {
        let Some(bytes) = self.read_optional(name, limit)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| Error::File { path: self.path(name), reason: format!("is not valid JSON: {e}") })
    }
}

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
    if meta.len() > limit {
        return Err(fail(too_large(limit)));
    }
    let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    // The file may have grown since, or be one of those whose length reads as 0.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| fail(format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(fail(too_large(limit)));
    }
    Ok(bytes)
}

fn too_large(limit: u64) -> String {
    format!("is larger than {} MiB, which no such file is", limit >> 20)
}

/// [`read`], with `None` where nothing is there under that name.
fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        _ => read(path, limit).map(Some),
    }
}
