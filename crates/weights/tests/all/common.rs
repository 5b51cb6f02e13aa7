//! Model directories written byte by byte, so that they can be wrong in every way.
use std::fs;
use std::path::{Path, PathBuf};

pub struct Dir {
    temp: tempfile::TempDir,
}

impl Dir {
    /// An empty directory with a `config.json`.
    pub fn new() -> Self {
        let dir = Self::empty();
        dir.write("config.json", br#"{"architectures": ["LlamaForCausalLM"], "eos_token_id": 2}"#);
        dir
    }

    pub fn empty() -> Self {
        Dir { temp: tempfile::tempdir().expect("temporary directory") }
    }

    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> &Self {
        fs::write(self.join(name), bytes).expect("write");
        self
    }
}

/// A header entry.
pub fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// A safetensors file of this header text and data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A sound file of f32 tensors: name, shape and the value of every element.
pub fn sound(tensors: &[(&str, &[usize], f32)]) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape, value) in tensors {
        let (start, count) = (data.len(), shape.iter().product::<usize>());
        data.extend(std::iter::repeat_n(value.to_le_bytes(), count).flatten());
        entries.push(entry(name, "F32", &format!("{shape:?}"), start as u64, data.len() as u64));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}
