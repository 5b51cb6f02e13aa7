//! Packed weights kept on disk, so that a second start maps them instead of packing them again.
//!
//! A **pack** is one file for one checkpoint, weight format and packed layout. What it was made from is
//! part of its name and of its table: for every file of the checkpoint its path, size, time of change, inode
//! and header. A checkpoint that was touched therefore has another pack, and the old one is removed when
//! the new one is written. The matrices' bytes are mapped and shared by all processes that serve the model.
//!
//! A folder of packs can be deleted at any time. Packs together take at most [`LIMIT`] bytes: those used
//! longest ago make room for a new one.
mod file;
mod folder;

pub use file::{Pack, PackError, PackMatrix};

use crate::ModelDir;
use anyfleet_tensor::WeightFormat;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Most bytes that the packs of a folder take together.
pub const LIMIT: u64 = 64 << 30;

/// Where the pack of a checkpoint is, or will be.
#[derive(Clone, Debug)]
pub struct PackPlace {
    folder: PathBuf,
    /// What all packs of this directory, format and layout begin with.
    family: String,
    /// What the pack is made from.
    key: String,
}

impl PackPlace {
    /// Where `folder` has the pack of `dir` with matrices in the order `layout`, layers' as `store`; nothing
    /// for a model that is part of the program.
    pub fn new(folder: &Path, dir: &ModelDir, layout: &str, store: WeightFormat) -> Option<PackPlace> {
        let mut what = format!("anyfleet pack {} {layout} {store}", file::VERSION);
        if let Some([rows, cols]) = dir.block {
            // It decides what the scales of a checkpoint mean, and is in no file's header.
            what += &format!(" scales of {rows} x {cols}");
        }
        let (mut family, mut key) = (Sha256::new_with_prefix(&what), Sha256::new_with_prefix(&what));
        for (stamp, header) in dir.stamps()? {
            let path = stamp.path.as_os_str().as_encoded_bytes();
            family.update((path.len() as u64).to_le_bytes());
            family.update(path);
            key.update((path.len() as u64).to_le_bytes());
            key.update(path);
            key.update(stamp.len.to_le_bytes());
            key.update(stamp.modified.to_le_bytes());
            stamp.inode.iter().for_each(|n| key.update(n.to_le_bytes()));
            key.update(Sha256::digest(header));
        }
        let name = dir.files().dir()?.canonicalize().ok()?;
        let name = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // For people who look into the folder; a snapshot of the hub's cache is a long number.
        let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(40).collect();
        let name = name.trim_start_matches('.');
        Some(PackPlace {
            folder: folder.to_owned(),
            family: format!("{name}-{store}-{}", &hex(family)[..16]),
            key: hex(key),
        })
    }

    /// The pack's path.
    pub fn path(&self) -> PathBuf {
        self.folder.join(format!("{}-{}.{}", self.family, &self.key[..16], folder::EXTENSION))
    }

    /// Maps the pack, if there is one and it holds exactly the matrices `expected`; `bytes` says how many
    /// bytes one takes.
    ///
    /// # Errors
    /// [`PackError`] when there is a file that cannot be used.
    pub fn open(
        &self,
        expected: &[PackMatrix],
        bytes: impl Fn(&PackMatrix) -> usize,
    ) -> Result<Option<Pack>, PackError> {
        let Some(pack) = Pack::open(&self.path(), &self.key)? else { return Ok(None) };
        pack.check(expected, bytes)?;
        folder::mark_as_used(&self.path());
        Ok(Some(pack))
    }

    /// Writes the pack: to a file of another name, which then takes the pack's, so that no reader ever sees a
    /// part of it. Nothing is written where another process is about to.
    ///
    /// # Errors
    /// [`PackError`] when the folder cannot be written to or has no room.
    pub fn write(&self, matrices: &[(PackMatrix, &[u8])]) -> Result<(), PackError> {
        let path = self.path();
        let size = |m: &PackMatrix| matrices.iter().find(|(other, _)| other == m).map_or(0, |(_, bytes)| bytes.len());
        let all: Vec<PackMatrix> = matrices.iter().map(|(matrix, _)| matrix.clone()).collect();
        let written = Pack::open(&path, &self.key).is_ok_and(|p| p.is_some_and(|p| p.check(&all, size).is_ok()));
        if written || folder::is_being_written(&path) {
            // Another process was faster.
            return Ok(());
        }
        let failed = |e: std::io::Error| PackError::new(&path, format!("cannot be written: {e}"));
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let (table, size) = file::table(&self.key, matrices);
        if size > LIMIT {
            let reason = format!("would have {size} bytes, but packs take at most {LIMIT} in all");
            return Err(PackError::new(&path, reason));
        }
        folder::make_room(&self.folder, &self.family, &path, size);
        let temporary = folder::Temporary::new(&path).map_err(failed)?;
        file::write(temporary.file(), &table, matrices).map_err(failed)?;
        temporary.rename(&path).map_err(failed)
    }
}

/// Lets all other threads run before the calling one, where the system can.
pub fn give_way() {
    // SAFETY: on Linux a priority is a thread's; nothing else depends on it.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, 19);
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The user's folder for packs: `$XDG_CACHE_HOME/anyfleet/packs`, else `~/.cache/anyfleet/packs`; nothing
/// where there is no home.
pub fn default_folder() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?;
    Some(cache.join("anyfleet").join("packs"))
}
