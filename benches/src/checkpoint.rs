//! A checkpoint of random weights for any config that the project supports.
//!
//! Speed does not depend on what the weights are, as long as they are numbers of the usual size: matrices
//! and biases are drawn from a normal distribution of deviation 0.02, norms are 1. The same config gives the
//! same bytes. The directory is a Hugging Face one, and is loaded like any other.
use crate::Result;
use anyfleet_models::{WeightMap, spec_from_config};
use anyfleet_tensor::DType;
use anyfleet_weights::Config;
use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use tempfile::TempDir;

/// Deviation of matrices and biases: what models are initialised with.
const DEVIATION: f64 = 0.02;
/// Bytes drawn and written at a time.
const CHUNK: usize = 32 << 20;
/// Bytes of a chunk that one task draws; whole elements and whole draws of four.
const PART: usize = 256 << 10;
/// Different values a weight can have: one for each 16 random bits.
const VALUES: usize = 1 << 16;

/// Writes a checkpoint for a config file into a temporary directory, which is removed when dropped.
///
/// # Errors
/// The config is not one of a supported model, or the directory cannot be written.
pub fn write(config: &Path) -> Result<TempDir> {
    let parsed = Config::read(config).map_err(|e| e.to_string())?;
    let spec = spec_from_config(&parsed).map_err(|e| e.to_string())?;
    let dtype = parsed.dtype().map_err(|e| e.to_string())?.unwrap_or(DType::BF16);
    let dir = tempfile::Builder::new().prefix("anyfleet-bench-").tempdir();
    let dir = dir.map_err(|e| format!("no temporary directory: {e}; set TMPDIR"))?;
    let written = std::fs::copy(config, dir.path().join("config.json"))
        .and_then(|_| write_weights(&dir.path().join("model.safetensors"), &WeightMap::new(&spec), dtype));
    written.map_err(|e| format!("{}: cannot be written: {e}; TMPDIR chooses another place", dir.path().display()))?;
    Ok(dir)
}

fn write_weights(path: &Path, map: &WeightMap, dtype: DType) -> std::io::Result<()> {
    let tensors: Vec<(String, Vec<usize>)> = map.tensors().collect();
    let mut file = BufWriter::new(File::create(path)?);
    let header = header(&tensors, dtype);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let random = Values::normal(dtype);
    let mut chunk = Vec::new();
    for (seed, (name, shape)) in (1..).zip(&tensors) {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        let is_norm = name.ends_with("norm.weight");
        for start in (0..bytes).step_by(CHUNK) {
            chunk.resize(CHUNK.min(bytes - start), 0);
            match is_norm {
                true => {
                    chunk.chunks_exact_mut(dtype.size()).for_each(|e| e.copy_from_slice(&encode(1.0, dtype)[..e.len()]))
                }
                false => random.fill(&mut chunk, seed << 40 | start as u64),
            }
            file.write_all(&chunk)?;
        }
    }
    file.flush()
}

/// The header of a safetensors file whose tensors follow each other in this order.
fn header(tensors: &[(String, Vec<usize>)], dtype: DType) -> String {
    let mut entries = Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.size();
        let dtype = dtype.name().to_uppercase();
        entries.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
    }
    let mut text = Value::from(entries).to_string();
    // The format pads with spaces so that data is aligned.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(64) + 56 - text.len()));
    text
}

/// Little-endian bytes of an element, in the first `dtype.size()`.
fn encode(value: f32, dtype: DType) -> [u8; 4] {
    let half = |bits: u16| [bits.to_le_bytes()[0], bits.to_le_bytes()[1], 0, 0];
    match dtype {
        DType::BF16 => half(bf16::from_f32(value).to_bits()),
        DType::F16 => half(f16::from_f32(value).to_bits()),
        _ => value.to_le_bytes(),
    }
}

/// The values a weight can have, each as likely as any other.
struct Values {
    table: Vec<[u8; 4]>,
    size: usize,
}

impl Values {
    /// A normal distribution, by Box and Muller's formula on an even grid of 256 x 256.
    fn normal(dtype: DType) -> Values {
        let value = |i: usize| {
            let (u, v) = (((i / 256) as f64 + 0.5) / 256.0, ((i % 256) as f64 + 0.5) / 256.0);
            (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos() * DEVIATION
        };
        Values { table: (0..VALUES).map(|i| encode(value(i) as f32, dtype)).collect(), size: dtype.size() }
    }

    /// Fills whole elements with draws that depend on the seed only.
    fn fill(&self, bytes: &mut [u8], seed: u64) {
        bytes.par_chunks_mut(PART).enumerate().for_each(|(part, bytes)| {
            let mut state = seed.wrapping_add((part * PART) as u64);
            for four in bytes.chunks_mut(4 * self.size) {
                let random = splitmix(&mut state);
                for (i, element) in four.chunks_exact_mut(self.size).enumerate() {
                    let value = self.table[(random >> (16 * i)) as usize % VALUES];
                    element.copy_from_slice(&value[..self.size]);
                }
            }
        });
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): a counter, scrambled.
pub(crate) fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_models::open_model;
    use std::path::PathBuf;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/parity/fixtures").join(name).join("config.json")
    }

    #[test]
    fn every_family_opens_with_every_weight() {
        for name in ["llama-bias", "mistral-window", "qwen2", "qwen3-tied", "llama3"] {
            let dir = write(&fixture(name)).unwrap();
            let model = open_model(dir.path()).unwrap();
            assert_eq!(model.weights.unused(&model.dir), [""; 0], "{name}");
            assert_eq!(model.dir.main_dtype(), model.dir.config().dtype().unwrap().or(Some(DType::BF16)), "{name}");
        }
    }

    #[test]
    fn norms_are_one_and_matrices_normal() {
        let dir = write(&fixture("qwen3")).unwrap();
        let model = open_model(dir.path()).unwrap();
        assert!(model.dir.vector(&model.weights.final_norm).unwrap().iter().all(|v| *v == 1.0));
        assert!(model.dir.vector(model.weights.layers[0].q_norm.as_ref().unwrap()).unwrap().iter().all(|v| *v == 1.0));
        let (name, rows) = &model.weights.embed.parts[0];
        let bytes = model.dir.tensor(name).unwrap();
        assert_eq!(bytes.shape, [*rows, model.spec.hidden_size]);
        let values: Vec<f32> = match bytes.dtype {
            DType::BF16 => bytes.bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            DType::F16 => bytes.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => bytes.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        };
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 0.001 && (0.018..0.022).contains(&deviation), "{mean} {deviation}");
        let again = write(&fixture("qwen3")).unwrap();
        assert_eq!(open_model(again.path()).unwrap().dir.identity(), model.dir.identity(), "the same every time");
    }

    #[test]
    fn what_is_no_config_is_one_line() {
        let error = write(Path::new("no/such/config.json")).unwrap_err();
        assert!(error.contains("no/such/config.json") && error.lines().count() == 1, "{error}");
    }
}
