//! The file: a fixed head, a table in JSON, and the matrices, each at a page's start.
//!
//! ```text
//! 0   8 bytes   MAGIC
//! 8   u32       VERSION, little endian as all numbers
//! 12  u64       bytes of the table
//! 20  32 bytes  SHA-256 of the table
//! 52            the table, then zeros up to the next page, where offsets count from
//! ```
use anyfleet_tensor::{SharedBytes, WeightFormat};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"AFPACK\r\n";
/// Changes with the file's structure.
pub(super) const VERSION: u32 = 1;
const HEAD: usize = 52;
/// Matrices start at multiples of it: of a page, and so of a cache line.
const PAGE: u64 = 4096;
/// Longest table read, in bytes.
const MAX_TABLE: usize = 64 << 20;
/// Bytes compared at each of three places of a matrix.
const SAMPLE: usize = 128;
/// Bytes whose pages are asked for at once.
#[cfg(target_os = "linux")]
const POPULATE: usize = 64 << 20;

/// Why a pack cannot be used or written. The model is then loaded from its checkpoint.
#[derive(Debug, thiserror::Error)]
#[error("pack {path}: {reason}")]
pub struct PackError {
    path: String,
    reason: String,
}

impl PackError {
    pub(super) fn new(path: &Path, reason: impl Into<String>) -> PackError {
        PackError { path: path.display().to_string(), reason: reason.into() }
    }
}

/// A matrix of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackMatrix {
    /// Name, see [`MatrixSpec::name`](crate::MatrixSpec::name); no other matrix has it.
    pub name: String,
    /// How many matrices lie one after the other.
    pub stack: usize,
    /// Output features of each.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// The format it is kept in.
    pub store: WeightFormat,
    /// Half of the rows are gates.
    pub gated: bool,
}

#[derive(Serialize, Deserialize)]
struct Table {
    key: String,
    matrices: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    stack: usize,
    rows: usize,
    cols: usize,
    store: String,
    gated: bool,
    /// From the first matrix; of a mapped pack, from the file's start.
    offset: u64,
    len: u64,
    /// Hash of some of the bytes.
    sample: String,
}

fn one() -> usize {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(stack: &usize) -> bool {
    *stack == 1
}

impl Entry {
    fn is(&self, matrix: &PackMatrix) -> bool {
        (self.stack, self.rows, self.cols, self.gated) == (matrix.stack, matrix.rows, matrix.cols, matrix.gated)
            && self.name == matrix.name
            && self.store == matrix.store.to_string()
    }
}

/// SHA-256 over 128 bytes each from start, middle and end: finds files that hold something else, or nothing
/// after a crash, without reading all.
fn sample(bytes: &[u8]) -> String {
    let last = bytes.len().saturating_sub(SAMPLE);
    let mut hash = Sha256::new();
    for start in [0, last / 2, last] {
        hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
    }
    super::hex(hash)
}

/// A pack, mapped.
#[derive(Debug)]
pub struct Pack {
    path: PathBuf,
    map: Arc<Mmap>,
    entries: HashMap<String, Entry>,
}

impl Pack {
    /// Maps a pack with this key; nothing when there is no file.
    pub(super) fn open(path: &Path, key: &str) -> Result<Option<Pack>, PackError> {
        if !crate::file::present(path) {
            return Ok(None);
        }
        let bad = |reason: &str| PackError::new(path, format!("{reason}; it is ignored and written anew"));
        let (file, len) = crate::file::open_regular(path).map_err(|e| bad(&e.to_string()))?;
        if len < HEAD as u64 {
            return Err(bad("is truncated"));
        }
        // SAFETY: packs are replaced and removed by name, never written to in place; beyond that, the risk
        // is that of a checkpoint's map.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| bad(&format!("cannot be mapped: {e}")))?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| map[at + i]));
        if map[..8] != *MAGIC {
            return Err(bad("is not a pack"));
        }
        if number(8) as u32 != VERSION {
            return Err(bad("is of another version"));
        }
        let end = usize::try_from(number(12)).ok().filter(|&n| n <= MAX_TABLE).map(|n| HEAD + n);
        let (end, table) = end.and_then(|end| Some((end, map.get(HEAD..end)?))).ok_or_else(|| bad("is truncated"))?;
        if Sha256::digest(table)[..] != map[20..HEAD] {
            return Err(bad("has a damaged table"));
        }
        let mut table: Table = serde_json::from_slice(table).map_err(|_| bad("has a damaged table"))?;
        if table.key != key {
            return Err(bad("was made from something else"));
        }
        let data = (end as u64).next_multiple_of(PAGE);
        for entry in &mut table.matrices {
            entry.offset = entry.offset.saturating_add(data);
        }
        let ends = |e: &Entry| e.offset.checked_add(e.len).filter(|_| e.offset.is_multiple_of(PAGE));
        let inside = table.matrices.iter().all(|e| ends(e).is_some_and(|end| end <= len));
        if !inside || table.matrices.iter().filter_map(ends).max() != Some(len) {
            return Err(bad("does not have the size its table says"));
        }
        let entries = table.matrices.into_iter().map(|e| (e.name.clone(), e)).collect();
        Ok(Some(Pack { path: path.to_owned(), map: Arc::new(map), entries }))
    }

    /// Checks that it holds these matrices and no others.
    pub(super) fn check(&self, expected: &[PackMatrix], bytes: impl Fn(&PackMatrix) -> usize) -> Result<(), PackError> {
        let found = |matrix: &PackMatrix| {
            let entry = self.entries.get(&matrix.name).filter(|e| e.is(matrix) && e.len == bytes(matrix) as u64);
            entry.is_some_and(|e| sample(&self.map[e.offset as usize..][..e.len as usize]) == e.sample)
        };
        if self.entries.len() == expected.len() && expected.iter().all(found) {
            return Ok(());
        }
        Err(PackError::new(&self.path, "does not hold this model's weights; it is ignored and written anew"))
    }

    /// The bytes of a matrix.
    pub fn bytes(&self, name: &str) -> Option<SharedBytes> {
        let entry = self.entries.get(name)?;
        let start = entry.offset as usize;
        SharedBytes::new(self.map.clone(), start..start + entry.len as usize)
    }

    /// Has the system bring all pages into memory, without waiting for it.
    pub fn prefetch(&self) {
        #[cfg(target_os = "linux")]
        {
            let map = self.map.clone();
            let all = move || {
                for start in (0..map.len()).step_by(POPULATE) {
                    let len = POPULATE.min(map.len() - start);
                    // Older systems cannot; pages then come one by one as they are read.
                    if map.advise_range(memmap2::Advice::PopulateRead, start, len).is_err() {
                        break;
                    }
                }
            };
            // Nor is a thread that cannot be started a reason not to go on.
            let _ = std::thread::Builder::new().name("anyfleet-pages".into()).spawn(all);
        }
    }
}

/// The file's head and table, up to the first matrix, and its size.
pub(super) fn table(key: &str, matrices: &[(PackMatrix, &[u8])]) -> (Vec<u8>, u64) {
    let (mut offset, mut end) = (0u64, 0u64);
    let entry = |(matrix, bytes): &(PackMatrix, &[u8])| {
        let at = offset;
        end = at + bytes.len() as u64;
        offset = end.next_multiple_of(PAGE);
        let &PackMatrix { stack, rows, cols, gated, .. } = matrix;
        let (name, store) = (matrix.name.clone(), matrix.store.to_string());
        Entry { name, stack, rows, cols, store, gated, offset: at, len: bytes.len() as u64, sample: sample(bytes) }
    };
    let table = Table { key: key.to_owned(), matrices: matrices.iter().map(entry).collect() };
    let json = serde_json::to_vec(&table).expect("a table of strings and numbers");
    let head = [&MAGIC[..], &VERSION.to_le_bytes(), &(json.len() as u64).to_le_bytes(), &Sha256::digest(&json)];
    let mut bytes = [&head.concat()[..], &json].concat();
    bytes.resize(bytes.len().next_multiple_of(PAGE as usize), 0);
    let size = bytes.len() as u64 + end;
    (bytes, size)
}

/// Writes all of it and waits until the disk has it.
pub(super) fn write(mut file: &File, table: &[u8], matrices: &[(PackMatrix, &[u8])]) -> io::Result<()> {
    /// Large writes make large runs of pages, which are mapped faster.
    const CHUNK: usize = 16 << 20;
    file.write_all(table)?;
    let mut at = table.len() as u64;
    for (_, bytes) in matrices {
        let pad = (at.next_multiple_of(PAGE) - at) as usize;
        file.write_all(&[0; PAGE as usize][..pad])?;
        for chunk in bytes.chunks(CHUNK) {
            file.write_all(chunk)?;
        }
        at += (pad + bytes.len()) as u64;
    }
    file.sync_all().or_else(|e| if e.kind() == ErrorKind::Unsupported { Ok(()) } else { Err(e) })
}
