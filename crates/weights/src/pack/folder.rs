//! The folder that packs are in: what is used, what makes room, what is being written.
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Of a pack's name.
pub(super) const EXTENSION: &str = "pack";
/// Of the name of a file that may become one.
const UNFINISHED: &str = "unfinished";
/// Where files cannot be locked: one that was not finished after this time never will be.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// Where they can: what is younger may not be locked yet.
const YOUNG: Duration = Duration::from_secs(10);

/// Sets the time by which packs make room for others. Who may not write there has no say.
pub(super) fn mark_as_used(path: &Path) {
    let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

/// Removes packs that the one at `path` of `size` bytes replaces, then the ones used longest ago, until all
/// fit; and what others left behind unfinished. What cannot be removed stays: a full disk is noticed later.
pub(super) fn make_room(folder: &Path, family: &str, path: &Path, size: u64) {
    let Ok(list) = fs::read_dir(folder) else { return };
    let family = format!("{family}-");
    let mut packs: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for entry in list.flatten() {
        let (other, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
        let changed = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let is = |extension: &str| meta.is_file() && other.extension() == Some(OsStr::new(extension));
        let young = || changed.elapsed().is_ok_and(|age| age < YOUNG);
        let abandoned = || is(UNFINISHED) && !young() && writer(&other, changed) == Writer::Gone;
        let replaced = || entry.file_name().to_str().is_some_and(|name| name.starts_with(&family));
        if abandoned() || is(EXTENSION) && other != path && replaced() {
            let _ = fs::remove_file(&other);
        } else if is(EXTENSION) && other != path {
            packs.push((changed, meta.len(), other));
        }
    }
    packs.sort();
    let mut total = packs.iter().map(|(_, len, _)| len).sum::<u64>() + size;
    for (_, len, other) in packs {
        if total <= super::LIMIT {
            break;
        }
        if fs::remove_file(&other).is_ok() {
            total -= len;
        }
    }
}

/// Who writes an unfinished file.
#[derive(PartialEq)]
enum Writer {
    /// A process that still runs.
    Alive,
    /// One that ended before it was done.
    Gone,
}

/// Who writes the file, changed last at `changed`: a writer holds a lock that ends with its process.
fn writer(path: &Path, changed: SystemTime) -> Writer {
    let gone = match File::open(path).map(|file| file.try_lock()) {
        Ok(Ok(())) => true,
        Ok(Err(TryLockError::WouldBlock)) => false,
        Ok(Err(TryLockError::Error(_))) | Err(_) => changed.elapsed().is_ok_and(|age| age > ABANDONED),
    };
    if gone { Writer::Gone } else { Writer::Alive }
}

/// Whether another process, or another engine of this one, is writing the pack at `path`.
pub(super) fn is_being_written(path: &Path) -> bool {
    let (Some(folder), Some(stem)) = (path.parent(), path.file_stem().and_then(OsStr::to_str)) else { return false };
    let Ok(list) = fs::read_dir(folder) else { return false };
    list.flatten().any(|entry| {
        let other = entry.path();
        let ours = other.extension() == Some(OsStr::new(UNFINISHED))
            && entry.file_name().to_str().is_some_and(|name| name.starts_with(&format!("{stem}.")));
        ours && writer(&other, SystemTime::now()) == Writer::Alive
    })
}

/// A file that is removed unless it gets its name.
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    /// Beside `path`, under a name that no other thread or process has.
    pub(super) fn new(path: &Path) -> io::Result<Temporary> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        let unique = format!("{}-{number}-{now:x}.{UNFINISHED}", std::process::id());
        let path = path.with_extension(unique);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        // Weights may be private, and nobody else is to say what they are.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path)?;
        // Says that somebody is at it; not every file system can. Who looks whether somebody is has the lock for a moment.
        let _ = file.lock();
        Ok(Temporary { path, file })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it the name `to`, which may be taken.
    pub(super) fn rename(self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing of this name.
        let _ = fs::remove_file(&self.path);
    }
}
