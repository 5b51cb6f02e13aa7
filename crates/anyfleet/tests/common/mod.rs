//! What the whole-model tests share: fixtures, and a driver that feeds one sequence to an executor.
#![allow(dead_code, reason = "each test binary uses a part")]
pub mod company;
pub mod reference;

use anyfleet::{Batch, DeviceSpec, Executor, StepOutput};
use anyfleet_conformance::require::skipped;
use anyfleet_runtime::{CacheKind, GroupBatch, LogitRow, SampleMode, SeqRows, TableRange, TokenSource};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// `models/parity/fixtures`.
pub fn fixtures_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures")
}

/// Every committed fixture, by name.
pub fn fixtures() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(fixtures_dir())
        .expect("models/parity/fixtures")
        .map(|entry| entry.expect("a fixture").path())
        .filter(|path| path.join("expected.json").is_file())
        .collect();
    dirs.sort();
    assert!(dirs.len() >= 12, "only {} fixtures were found", dirs.len());
    dirs
}

/// What whole models are tested on: the CPU and Mesa's software Vulkan. Says loudly where the latter is missing, which
/// `ANYFLEET_REQUIRE=wgpu` makes a failure.
pub fn devices() -> Vec<DeviceSpec> {
    [DeviceSpec::Cpu].into_iter().chain(software_vulkan()).collect()
}

/// Mesa's software Vulkan, where this build and machine have it.
pub fn software_vulkan() -> Option<DeviceSpec> {
    let found = anyfleet::list_devices().into_iter().find(|device| device.name.contains("llvmpipe"));
    if found.is_none() {
        skipped("wgpu", "no llvmpipe (feature wgpu of this crate, Debian's mesa-vulkan-drivers)");
    }
    found.map(|device| device.spec)
}

/// Whether all of a test runs on a device: software Vulkan is slow, and what families add to each other is told apart on the
/// CPU. `ANYFLEET_THOROUGH=1` runs all of it everywhere.
pub fn everything(device: &DeviceSpec) -> bool {
    *device == DeviceSpec::Cpu || std::env::var_os("ANYFLEET_THOROUGH").is_some()
}

/// CUDA's kernels on this machine's processor, where this build has them (feature `emulate`) and there is a C++ compiler.
pub fn emulated_cuda() -> Option<DeviceSpec> {
    let device: DeviceSpec = "cuda:emulated".parse().expect("a device");
    let model = fixtures_dir().join("llama3");
    match anyfleet::Engine::builder(model.to_string_lossy()).device(device.clone()).plan() {
        Ok(_) => Some(device),
        Err(e) if e.to_string().contains("does not compile") => panic!("{e}"),
        Err(e) => {
            skipped("cuda", e);
            None
        }
    }
}

/// Data beside the project, where there is some; says loudly when there is none.
pub fn shared_data(test: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let found = std::env::var_os("ANYFLEET_DATA").map(PathBuf::from).into_iter().chain([beside]).find(|p| p.is_dir());
    if found.is_none() {
        println!("SKIPPED: {test}: neither ANYFLEET_DATA nor ../shared/data is there");
    }
    found
}

/// `expected.json`; see `models/parity/README.md`.
#[derive(Deserialize)]
pub struct Expected {
    pub bf16_error_against_f32: Errors,
    pub prompts: Vec<PromptCase>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Errors {
    pub tokens_max: f64,
    pub tokens_mean: f64,
    pub rows_max: f64,
    pub rows_mean: f64,
}

#[derive(Deserialize)]
pub struct PromptCase {
    pub ids: Vec<u32>,
    pub token_logprobs: Vec<f64>,
    pub rows: Vec<RowCase>,
    pub greedy: Greedy,
}

#[derive(Deserialize)]
pub struct RowCase {
    pub position: usize,
    logits_f32_base64: String,
}

#[derive(Deserialize)]
pub struct Greedy {
    pub ids: Vec<u32>,
    pub margins: Vec<f64>,
}

impl RowCase {
    pub fn logits(&self) -> Vec<f32> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.logits_f32_base64).expect("base64");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect()
    }
}

pub fn expected(dir: &Path) -> Expected {
    let text = std::fs::read_to_string(dir.join("expected.json")).expect("expected.json");
    serde_json::from_str(&text).expect("expected.json")
}

/// One sequence fed in chunks, its pages in a shuffled order.
pub struct Driver<'a> {
    pub executor: &'a mut dyn Executor,
    pub chunk: usize,
}

impl Driver<'_> {
    /// Log-probability of every next token of `ids`, and the whole rows of logits at `rows`.
    pub fn score(&mut self, ids: &[u32], rows: &[usize]) -> (Vec<f32>, Vec<Vec<f32>>) {
        let (mut logprobs, mut logits) = (Vec::new(), Vec::new());
        let vocab = self.executor.limits().vocab_size;
        let mut start = 0;
        while start < ids.len() {
            let end = (start + self.chunk).min(ids.len());
            let batch = self.batch(ids, start, end, rows);
            self.executor.submit(&batch).expect("submit");
            let output: &StepOutput = self.executor.wait().expect("wait");
            logprobs.extend_from_slice(&output.logprobs);
            logits.extend(output.logits.chunks_exact(vocab).map(<[f32]>::to_vec));
            start = end;
        }
        logprobs.truncate(ids.len() - 1);
        (logprobs, logits)
    }

    fn batch(&self, ids: &[u32], start: usize, end: usize, rows: &[usize]) -> Batch {
        let cache = &self.executor.limits().cache;
        let page = cache.page_size as usize;
        let count = (end - start) as u32;
        let group = |spec: &anyfleet_runtime::GroupSpec| {
            assert!(matches!(spec.kind, CacheKind::Paged | CacheKind::Window(_) | CacheKind::Latent));
            let place = |i: usize| (spec.pages as usize - 1 - i) as u32;
            GroupBatch::Pages {
                slots: (start..end).map(|p| place(p / page) * page as u32 + (p % page) as u32).collect(),
                table: (0..end.div_ceil(page)).map(place).collect(),
                ranges: vec![TableRange { start: 0, first_page: 0 }],
            }
        };
        Batch {
            tokens: ids[start..end].iter().map(|&id| TokenSource::Id(id)).collect(),
            positions: (start as u32..end as u32).collect(),
            adapters: vec![0; end - start],
            sequences: vec![SeqRows { row_start: 0, rows: count, context_len: end as u32 }],
            groups: cache.groups.iter().map(group).collect(),
            logit_rows: (start..end).map(|p| score_row(ids, p, start, rows.contains(&p))).collect(),
            adjust: Vec::new(),
            masks: Vec::new(),
        }
    }
}

fn score_row(ids: &[u32], position: usize, start: usize, want_logits: bool) -> LogitRow {
    LogitRow {
        row: (position - start) as u32,
        mode: SampleMode::Score(ids.get(position + 1).copied().unwrap_or(0)),
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        choice: 0,
        position: position as u32 + 1,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        adjust: 0..0,
        mask: None,
        want_logits,
    }
}

/// Log-softmax in f64.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    logits.iter().map(|&l| f64::from(l - max) - sum.ln()).collect()
}
