//! Model directories: copies of committed fixtures, to be spoiled.
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

pub struct Checkpoint {
    temp: tempfile::TempDir,
}

impl Checkpoint {
    /// A sound model with a tokenizer and a chat template.
    pub fn chat() -> Self {
        Self::copy("tiny-chat")
    }

    /// A sound model in four shards, without a tokenizer.
    pub fn sharded() -> Self {
        Self::copy("llama3")
    }

    pub fn copy(fixture: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures").join(fixture);
        let temp = tempfile::tempdir().expect("temporary directory");
        for entry in fs::read_dir(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
            let entry = entry.expect("directory entry");
            // The reference's answers are no part of a checkpoint.
            if entry.file_name() != "expected.json" {
                fs::copy(entry.path(), temp.path().join(entry.file_name())).expect("copy");
            }
        }
        Checkpoint { temp }
    }

    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// How the server calls the model.
    pub fn name(&self) -> String {
        self.path().file_name().expect("a name").to_string_lossy().into_owned()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.join(name)).expect("read")
    }

    pub fn write(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        fs::write(self.join(name), bytes).expect("write");
        self
    }

    pub fn remove(self, name: &str) -> Self {
        fs::remove_file(self.join(name)).expect("remove");
        self
    }

    /// Changes a JSON file.
    pub fn edit(self, name: &str, change: impl FnOnce(&mut Value)) -> Self {
        let mut value: Value = serde_json::from_slice(&self.read(name)).expect("a fixture is JSON");
        change(&mut value);
        self.write(name, value.to_string())
    }

    /// A top-level key of `config.json`.
    pub fn config(self, key: &str, value: Value) -> Self {
        self.edit("config.json", |config| config[key] = value)
    }

    /// A file of this many bytes that takes no room.
    pub fn sparse(self, name: &str, bytes: u64) -> Self {
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(self.join(name));
        file.and_then(|file| file.set_len(bytes)).expect("sparse file");
        self
    }

    /// The weights' header and data.
    pub fn tensors(&self) -> (Value, Vec<u8>) {
        let bytes = self.read("model.safetensors");
        let (length, rest) = bytes.split_first_chunk::<8>().expect("a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        (serde_json::from_slice(header).expect("a header"), data.to_vec())
    }

    /// Changes the header of the weights.
    pub fn edit_tensors(self, change: impl FnOnce(&mut Value)) -> Self {
        let (mut header, data) = self.tensors();
        change(&mut header);
        self.write("model.safetensors", safetensors(&header.to_string(), &data))
    }
}

/// A safetensors file of this header and data.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
