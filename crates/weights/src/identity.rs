//! A cheap identity of a checkpoint's contents.
use crate::ModelDir;
use sha2::{Digest, Sha256};

/// Bytes read at each sampled place.
const SAMPLE: usize = 128;

impl ModelDir {
    /// 64 hexadecimal digits that tell checkpoints apart without reading them whole.
    ///
    /// SHA-256 over, for every tensor by name: name, dtype, shape, and 128 bytes each from its start,
    /// middle and end. The same tensors in other shards, or with other metadata, have the same
    /// identity. A fine-tune has another one, because training changes nearly every element of the
    /// tensors it touches; an edit of single elements elsewhere goes unnoticed, so this is an
    /// identity and no integrity check.
    pub fn identity(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(b"anyfleet weights 1");
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (name, dtype, shape, bytes) in self.raw() {
            field(name.as_bytes());
            field(dtype.as_bytes());
            field(&shape.iter().flat_map(|&d| (d as u64).to_le_bytes()).collect::<Vec<u8>>());
            let last = bytes.len().saturating_sub(SAMPLE);
            for start in [0, last / 2, last] {
                field(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}
