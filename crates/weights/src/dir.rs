//! A model directory: configuration and tensors.
use crate::error::{quote, show_path};
use crate::header::Entry;
use crate::shard::{Shard, Stamp};
use crate::{Config, Error, GenerationConfig, MatrixSpec, ModelFiles, Result, scales};
use anyfleet_tensor::DType;
use safetensors::Dtype;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

pub(crate) const SINGLE: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const GENERATION: &str = "generation_config.json";
/// Largest index read, in bytes.
const MAX_INDEX: u64 = 64 << 20;
/// Most shards; the largest published checkpoints have a few hundred.
const MAX_SHARDS: usize = 8192;

/// A Hugging Face model directory, its safetensors files memory-mapped and their headers checked, or
/// such a directory that is part of the program.
///
/// Nothing is read from the data until a tensor is asked for.
#[derive(Debug)]
pub struct ModelDir {
    files: ModelFiles,
    config: Config,
    generation: GenerationConfig,
    /// The single file or the index: what a missing tensor is missing from.
    listing: PathBuf,
    shards: Vec<Shard>,
    /// By name: shard and entry.
    tensors: BTreeMap<String, (usize, Entry)>,
    /// Rows and columns that share a scale where tensors have eight bits, if the config says so.
    pub(crate) block: Option<[usize; 2]>,
}

/// A tensor of the checkpoint, borrowed from the memory map or the program.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// f32, bf16 or f16; of a matrix also f8, whose elements mean something with their scales only.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Row-major little-endian elements, at any alignment.
    pub bytes: &'a [u8],
}

impl ModelDir {
    /// Opens a model directory as published: `config.json`, optionally `generation_config.json`, and
    /// `model.safetensors` or `model.safetensors.index.json` with its shards.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Config`] for the first file that is missing or damaged.
    pub fn open(model: impl Into<ModelFiles>) -> Result<Self> {
        let files = model.into();
        let config = Config::open(files.clone())?;
        Self::with_config(files, config)
    }

    /// As [`ModelDir::open`], with the `config.json` that [`Config::open`] read before, so that a
    /// model that is not supported can be refused before its weights are looked at.
    ///
    /// # Errors
    /// As [`ModelDir::open`].
    pub fn with_config(model: impl Into<ModelFiles>, config: Config) -> Result<Self> {
        let files = model.into();
        let generation = match files.has(GENERATION) {
            true => Config::read_from(&files, GENERATION)?,
            false => Config::empty(&files.path(GENERATION)),
        };
        let generation = GenerationConfig::new(&generation, &config)?;
        let (listing, shards, tensors) = open_weights(&files)?;
        let block = scales::block(&config)?;
        Ok(ModelDir { files, config, generation, listing, shards, tensors, block })
    }

    /// Where its files are.
    pub fn files(&self) -> &ModelFiles {
        &self.files
    }

    /// `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// `generation_config.json`, all defaults where there is none.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Names and shapes of all tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, (_, entry))| (name.as_str(), entry.shape.as_slice()))
    }

    /// True when the checkpoint has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by name.
    ///
    /// # Errors
    /// [`Error::Tensor`] when there is none, or its dtype is not f32, bf16, f16 or, of a matrix, F8_E4M3.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((shard, entry)) = self.tensors.get(name) else {
            return Err(self.missing(name));
        };
        let shard = &self.shards[*shard];
        let matrix = entry.shape.len() == 2;
        let Some(dtype) = float(entry.dtype).filter(|dtype| dtype.is_float() || matrix) else {
            let reason = format!(
                "has dtype {:?}; f32, bf16 and f16 are supported, and for matrices F8_E4M3, so use a checkpoint saved in \
                 these",
                entry.dtype
            );
            return Err(Error::tensor(&shard.path, name, reason));
        };
        Ok(TensorView { dtype, shape: &entry.shape, bytes: shard.bytes(entry) })
    }

    /// A tensor by name, of exactly this shape.
    ///
    /// # Errors
    /// As [`ModelDir::tensor`], and [`Error::Tensor`] for another shape.
    pub fn tensor_of_shape(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.tensor(name)?;
        if view.shape == shape {
            return Ok(view);
        }
        let file = self.file_of(name);
        let reason =
            format!("has shape {:?}, but config.json asks for {shape:?}; the two are not of one model", view.shape);
        Err(Error::tensor(file, name, reason))
    }

    /// The file a tensor is in; the listing that lacks it where there is none.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        self.tensors.get(name).map_or(&self.listing, |(shard, _)| &self.shards[*shard].path)
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::tensor(&self.listing, name, "is missing; download the checkpoint again or check config.json")
    }

    /// Checks that every tensor of `expected` is there, with that shape, a supported dtype, and scales where it needs some.
    ///
    /// # Errors
    /// [`Error::File`] that counts the missing tensors and names the first few, or
    /// [`Error::Tensor`] for the first with a wrong shape or dtype.
    pub fn check(&self, expected: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<()> {
        const SHOWN: usize = 3;
        let (mut first, mut missing, mut total) = (Vec::new(), 0usize, 0usize);
        for (name, shape) in expected {
            total += 1;
            if self.contains(&name) {
                let view = self.tensor_of_shape(&name, &shape)?;
                if let (DType::F8, [rows, cols]) = (view.dtype, &shape[..]) {
                    self.scales(&name, [*rows, *cols])?;
                }
            } else {
                missing += 1;
                if first.len() < SHOWN {
                    first.push(name);
                }
            }
        }
        if missing == 0 {
            return Ok(());
        }
        let more = if missing > first.len() { ", ..." } else { "" };
        let reason = format!(
            "lacks {missing} of the {total} tensors this model needs ({}{more}); download the checkpoint again or check config.json",
            first.join(", ")
        );
        Err(Error::file(&self.listing, reason))
    }

    /// Names of tensors that are not in `used`, in order: worth a warning, since a checkpoint with
    /// weights nobody reads may not be the model it says it is. Scales of tensors that are used are, too, and those of
    /// activations are known to say nothing of the weights.
    pub fn unused(&self, used: impl IntoIterator<Item = String>) -> Vec<&str> {
        let used: BTreeSet<String> = used.into_iter().collect();
        let read = |name: &str| {
            used.contains(name)
                || scales::scaled(name).is_some_and(|of| used.contains(of) && self.is_f8(of))
                || scales::of_activations(name)
        };
        self.tensors.keys().map(String::as_str).filter(|name| !read(name)).collect()
    }

    /// True when the checkpoint has this tensor in eight bits.
    pub fn is_f8(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|(_, entry)| float(entry.dtype) == Some(DType::F8))
    }

    /// True when any tensor has eight bits.
    pub fn has_f8(&self) -> bool {
        self.tensors.keys().any(|name| self.is_f8(name))
    }

    /// Bytes of all tensors by the format's dtype name, e.g. `BF16`.
    pub fn bytes_by_dtype(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for (_, entry) in self.tensors.values() {
            *sums.entry(format!("{:?}", entry.dtype)).or_default() += entry.range.len() as u64;
        }
        sums
    }

    /// The element type most of the weights have, beside those of eight bits and their scales: f32, bf16 or f16; `None`
    /// where no tensor has one of these.
    pub fn main_dtype(&self) -> Option<DType> {
        let mut sums: BTreeMap<DType, u64> = BTreeMap::new();
        let scales = |name: &str| scales::scaled(name).is_some_and(|of| self.is_f8(of));
        for (_, entry) in self.tensors.iter().filter(|(name, _)| !scales(name)).map(|(_, tensor)| tensor) {
            if let Some(dtype) = float(entry.dtype).filter(|dtype| dtype.is_float()) {
                *sums.entry(dtype).or_default() += entry.range.len() as u64;
            }
        }
        sums.into_iter().max_by_key(|&(_, bytes)| bytes).map(|(dtype, _)| dtype)
    }

    /// Lets the system take back the memory that the tensors of a matrix were read into: a matrix that was
    /// copied to a device should not be in memory twice. It can be read again.
    pub fn release(&self, spec: &MatrixSpec) {
        for (shard, entry) in spec.parts.iter().filter_map(|(name, _)| self.tensors.get(name)) {
            self.shards[*shard].release(entry);
        }
    }

    /// What the files of tensors were when they were opened, and their headers; nothing where one cannot be
    /// asked, or where they are part of the program.
    pub(crate) fn stamps(&self) -> Option<Vec<(&Stamp, &[u8])>> {
        self.shards.iter().map(Shard::stamp).collect()
    }

    /// By name: dtype name, shape and bytes, for the identity.
    pub(crate) fn raw(&self) -> impl Iterator<Item = (&str, String, &[usize], &[u8])> {
        self.tensors.iter().map(|(name, (shard, entry))| {
            (name.as_str(), format!("{:?}", entry.dtype), entry.shape.as_slice(), self.shards[*shard].bytes(entry))
        })
    }
}

/// The contract's type for a file's dtype.
fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 => Some(DType::F32),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F8_E4M3 => Some(DType::F8),
        _ => None,
    }
}

type Weights = (PathBuf, Vec<Shard>, BTreeMap<String, (usize, Entry)>);

fn open_weights(files: &ModelFiles) -> Result<Weights> {
    if files.has(SINGLE) {
        let (shard, entries) = Shard::open(files, SINGLE)?;
        let tensors = entries.into_iter().map(|e| (e.name.clone(), (0, e))).collect();
        return Ok((files.path(SINGLE), vec![shard], tensors));
    }
    if files.has(INDEX) {
        let weight_map = read_index(files)?;
        let (shards, tensors) = open_shards(files, &weight_map)?;
        return Ok((files.path(INDEX), shards, tensors));
    }
    Err(no_weights(files))
}

/// Why there is nothing to load, and what to do about it.
fn no_weights(files: &ModelFiles) -> Error {
    let (root, names) = (files.root(), files.names());
    let find = |test: &dyn Fn(&str) -> bool| names.iter().find(|n| test(n)).map(|n| quote(n));
    if let Some(found) = find(&|n| n.ends_with(".safetensors")) {
        return Error::file(
            &root,
            format!(
                "has {found}, but neither {SINGLE} nor {INDEX}, which says what is in which file; download {INDEX}"
            ),
        );
    }
    if let Some(found) = find(&|n| n.starts_with("pytorch_model") || n.ends_with(".pth") || n.ends_with(".pt")) {
        return Error::file(
            &root,
            format!(
                "has {found}, but no safetensors; convert it in Python with \
                 AutoModelForCausalLM.from_pretrained(dir).save_pretrained(out, safe_serialization=True)"
            ),
        );
    }
    Error::file(&root, format!("has no weights: neither {SINGLE} nor {INDEX}; download the model again"))
}

/// Tensor name to shard file name.
fn read_index(files: &ModelFiles) -> Result<HashMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let path = files.path(INDEX);
    let index: Index = serde_json::from_slice(&files.read(INDEX, MAX_INDEX)?).map_err(|e| {
        Error::file(&path, format!("is not a safetensors index: {}; download it again", quote(&e.to_string())))
    })?;
    if index.weight_map.is_empty() {
        return Err(Error::file(&path, "lists no tensors; download it again"));
    }
    Ok(index.weight_map)
}

/// The shards an index names, checked to stay inside the directory.
pub(crate) fn shard_names(files: &ModelFiles) -> Result<BTreeSet<String>> {
    let names: BTreeSet<String> = read_index(files)?.into_values().collect();
    check_shard_names(&files.path(INDEX), &names)?;
    Ok(names)
}

fn check_shard_names(index: &Path, names: &BTreeSet<String>) -> Result<()> {
    if names.len() > MAX_SHARDS {
        return Err(Error::file(index, format!("lists {} shards, but at most {MAX_SHARDS} are accepted", names.len())));
    }
    for name in names {
        let inside = !name.is_empty() && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)));
        if !inside {
            let reason = format!(
                "names the shard {}, which is not inside the model directory; do not use this checkpoint",
                quote(&format!("{name:?}"))
            );
            return Err(Error::file(index, reason));
        }
    }
    Ok(())
}

type Shards = (Vec<Shard>, BTreeMap<String, (usize, Entry)>);

fn open_shards(files: &ModelFiles, weight_map: &HashMap<String, String>) -> Result<Shards> {
    let index = files.path(INDEX);
    let names: BTreeSet<String> = weight_map.values().cloned().collect();
    check_shard_names(&index, &names)?;
    let missing: Vec<&str> = names.iter().map(String::as_str).filter(|n| !files.has(n)).collect();
    if !missing.is_empty() {
        let list: Vec<String> = missing.iter().take(3).map(|n| quote(n)).collect();
        let more = if missing.len() > 3 { ", ..." } else { "" };
        let reason = format!(
            "names {} shards, of which {} are missing ({}{more}); download them",
            names.len(),
            missing.len(),
            list.join(", ")
        );
        return Err(Error::file(&index, reason));
    }

    let mut shards = Vec::with_capacity(names.len());
    let mut tensors: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
    for (number, shard_name) in names.iter().enumerate() {
        let (shard, entries) = Shard::open(files, shard_name)?;
        shards.push(shard);
        for entry in entries {
            // A tensor that the index places elsewhere is not this one; one that the index does not
            // know is kept, as the reference implementation does.
            if weight_map.get(&entry.name).is_none_or(|home| home == shard_name) {
                tensors.entry(entry.name.clone()).or_insert((number, entry));
            }
        }
    }
    if let Some((name, home)) = weight_map.iter().filter(|(name, _)| !tensors.contains_key(*name)).min() {
        let reason = format!("is not there, though {} says so; download both again", show_path(&index));
        return Err(Error::tensor(&files.path(home), name, reason));
    }
    Ok((shards, tensors))
}
