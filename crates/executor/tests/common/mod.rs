//! Models and batches.
use anyfleet_models::{Model, open_model};
use anyfleet_runtime::{Batch, GroupBatch, LogitRow, SampleMode, SeqRows, TableRange, TokenSource};
use std::path::Path;

/// A fixture by its name, or the bundled model `pocket`.
pub fn model(name: &str) -> Model {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = if name == "pocket" { models.join(name) } else { models.join("parity/fixtures").join(name) };
    open_model(folder).expect("a model")
}

/// `sequences` sequences of `rows` tokens each, the last row of each sampled.
pub fn batch(sequences: u32, rows: u32, groups: usize) -> Batch {
    let tokens = (sequences * rows) as usize;
    let group = GroupBatch::Pages {
        slots: (0..tokens as u32).collect(),
        table: (0..sequences).collect(),
        ranges: (0..sequences).map(|start| TableRange { start, first_page: 0 }).collect(),
    };
    let logit_row = |s: u32| LogitRow {
        row: (s + 1) * rows - 1,
        mode: SampleMode::Greedy,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        choice: 0,
        position: rows,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        adjust: 0..0,
        mask: None,
        want_logits: false,
    };
    Batch {
        tokens: vec![TokenSource::Id(1); tokens],
        positions: (0..sequences).flat_map(|_| 0..rows).collect(),
        adapters: vec![0; tokens],
        sequences: (0..sequences).map(|s| SeqRows { row_start: s * rows, rows, context_len: rows }).collect(),
        groups: vec![group; groups],
        logit_rows: (0..sequences).map(logit_row).collect(),
        adjust: Vec::new(),
        masks: Vec::new(),
    }
}
