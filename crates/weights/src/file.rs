//! Opening files that other people made: only regular files, never waiting, never more than a limit.
use crate::{Error, Result};
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::path::Path;

/// True when something has this name, a dangling link included: a broken file is reported, not
/// taken for an absent one.
pub(crate) fn present(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Opens a regular file for reading, following links, and returns its size in bytes.
///
/// # Errors
/// [`Error::File`] when it is missing, unreadable, a directory, or something a read could block on.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64)> {
    check_regular(path, &stat(path)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    // Between the check above and the open, the name can come to mean a FIFO, whose open would wait
    // for a writer.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
    let file = options.open(path).map_err(|e| Error::file(path, format!("cannot be opened: {e}")))?;
    let meta = file.metadata().map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    check_regular(path, &meta)?;
    Ok((file, meta.len()))
}

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`], and when the file is larger.
pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, len) = open_regular(path)?;
    if len > limit {
        return Err(too_large(path, len, limit));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let len = bytes.len() as u64;
    if len > limit { Err(too_large(path, len, limit)) } else { Ok(bytes) }
}

/// The error for a file of more than `limit` bytes.
pub(crate) fn too_large(path: &Path, len: u64, limit: u64) -> Error {
    Error::file(path, format!("has {len} bytes, but at most {limit} are accepted here; is it the right file?"))
}

/// Metadata of what `path` leads to.
fn stat(path: &Path) -> Result<Metadata> {
    fs::metadata(path).map_err(|e| {
        let link = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
        let reason = match (link, e.kind()) {
            (true, ErrorKind::NotFound) => {
                "is a symbolic link to a file that does not exist; download the model again".to_owned()
            }
            (true, ErrorKind::PermissionDenied) => "is a symbolic link to a file that may not be read".to_owned(),
            (true, _) => format!("is a symbolic link that leads nowhere ({e}); download the model again"),
            (false, ErrorKind::NotFound) => "does not exist; download the model again".to_owned(),
            (false, _) => format!("cannot be read: {e}"),
        };
        Error::file(path, reason)
    })
}

fn check_regular(path: &Path, meta: &Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    Err(Error::file(path, format!("is a {}; a regular file is expected", kind(meta.file_type()))))
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        return "directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if file_type.is_fifo() {
            return "FIFO";
        }
        if file_type.is_socket() {
            return "socket";
        }
        if file_type.is_char_device() || file_type.is_block_device() {
            return "device";
        }
    }
    "special file"
}
