//! Whether a batch is well formed.
use crate::{Batch, CacheKind, GroupBatch, GroupSpec, Limits, LogitRow, SampleMode, SeqRows, TokenSource};
use std::collections::HashMap;

/// Fails with a sentence unless the batch keeps every rule of [`Batch`] under these limits.
pub(super) fn check(batch: &Batch, limits: &Limits, previous_rows: usize) -> Result<(), String> {
    ensure(!batch.tokens.is_empty(), || "the batch is empty".into())?;
    ensure(batch.tokens.len() <= limits.max_tokens, || format!("{} rows", batch.tokens.len()))?;
    ensure(batch.sequences.len() <= limits.max_sequences, || format!("{} sequences", batch.sequences.len()))?;
    for source in &batch.tokens {
        let known = match *source {
            TokenSource::Id(id) => (id as usize) < limits.vocab_size,
            TokenSource::SampledBy(row) => (row as usize) < previous_rows,
        };
        ensure(known, || format!("{source:?} with {previous_rows} logit rows in the previous batch"))?;
    }
    check_rows(batch, limits)?;
    ensure(batch.groups.len() == limits.cache.groups.len(), || format!("{} groups", batch.groups.len()))?;
    for (g, (group, spec)) in batch.groups.iter().zip(&limits.cache.groups).enumerate() {
        let page_size = limits.cache.page_size as usize;
        match (group, spec.kind) {
            (GroupBatch::States { read, write }, CacheKind::Recurrent) => check_states(batch, spec, read, write),
            (GroupBatch::Pages { .. }, CacheKind::Recurrent) | (GroupBatch::States { .. }, _) => {
                Err("the entry is of another kind".into())
            }
            (GroupBatch::Pages { .. }, _) => check_pages(batch, group, spec, page_size),
        }
        .map_err(|message| format!("group {g}: {message}"))?;
    }
    let mut last = None;
    for row in &batch.logit_rows {
        ensure(last < Some(row.row) && (row.row as usize) < batch.tokens.len(), || format!("logit row {}", row.row))?;
        last = Some(row.row);
        check_logit_row(row, batch, limits.vocab_size).map_err(|m| format!("logit row {}: {m}", row.row))?;
    }
    Ok(())
}

fn ensure(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

fn check_rows(batch: &Batch, limits: &Limits) -> Result<(), String> {
    let rows = batch.tokens.len();
    ensure(batch.positions.len() == rows && batch.adapters.len() == rows, || {
        format!("{rows} rows, {} positions, {} adapters", batch.positions.len(), batch.adapters.len())
    })?;
    let mut next = 0;
    for (s, &SeqRows { row_start, rows, context_len }) in batch.sequences.iter().enumerate() {
        ensure(row_start == next && rows > 0 && rows <= context_len, || {
            format!("sequence {s} begins at row {row_start}")
        })?;
        next += rows;
        ensure(context_len as usize <= limits.max_model_len, || format!("sequence {s} has {context_len} tokens"))?;
        ensure(next as usize <= batch.tokens.len(), || format!("sequence {s} ends at row {next}"))?;
        let positions = &batch.positions[row_start as usize..next as usize];
        ensure(positions.iter().copied().eq(context_len - rows..context_len), || {
            format!("sequence {s} has positions {positions:?} before {context_len}")
        })?;
    }
    ensure(next as usize == rows, || format!("{next} of {rows} rows belong to sequences"))
}

fn check_pages(batch: &Batch, group: &GroupBatch, spec: &GroupSpec, page_size: usize) -> Result<(), String> {
    let GroupBatch::Pages { slots, table, ranges } = group else { return Ok(()) };
    ensure(slots.len() == batch.tokens.len(), || format!("{} slots", slots.len()))?;
    ensure(ranges.len() == batch.sequences.len(), || format!("{} table ranges", ranges.len()))?;
    if let Some(page) = table.iter().find(|&&page| page >= spec.pages) {
        return Err(format!("page {page} of {}", spec.pages));
    }
    // Page -> the sequence that writes it.
    let mut writers: HashMap<u32, usize> = HashMap::new();
    let tables = (0..ranges.len()).map(|s| {
        let end = ranges.get(s + 1).map_or(table.len(), |next| next.start as usize);
        (ranges[s], ranges[s].start as usize..end)
    });
    for (s, ((range, entries), rows)) in tables.clone().zip(&batch.sequences).enumerate() {
        let pages = table.get(entries.clone()).ok_or_else(|| format!("sequence {s} has table entries {entries:?}"))?;
        let covered = range.first_page as usize + pages.len();
        let needed = (rows.context_len as usize).div_ceil(page_size);
        ensure(covered >= needed, || format!("sequence {s} has pages up to {covered}, but needs {needed}"))?;
        let own = rows.row_start as usize..(rows.row_start + rows.rows) as usize;
        for (row, &stored) in own.clone().zip(&slots[own]).filter(|&(_, &slot)| slot != u32::MAX) {
            let position = batch.positions[row] as usize;
            let page = position.checked_div(page_size).and_then(|page| page.checked_sub(range.first_page as usize));
            let page = page.ok_or_else(|| format!("row {row} at position {position} is before its table"))?;
            let slot = pages[page] as usize * page_size + position % page_size;
            ensure(stored as usize == slot, || format!("row {row} has slot {stored}, its table says {slot}"))?;
            let writer = *writers.entry(pages[page]).or_insert(s);
            ensure(writer == s, || format!("page {} is written by sequences {writer} and {s}", pages[page]))?;
        }
    }
    for (s, (_, entries)) in tables.enumerate() {
        let shared = table[entries].iter().find_map(|page| writers.get(page).filter(|&&w| w != s).map(|w| (page, w)));
        if let Some((page, writer)) = shared {
            return Err(format!("page {page} is written by sequence {writer} while sequence {s} has it in its table"));
        }
    }
    Ok(())
}

fn check_states(batch: &Batch, spec: &GroupSpec, read: &[u32], write: &[u32]) -> Result<(), String> {
    let sequences = batch.sequences.len();
    ensure(read.len() == sequences && write.len() == sequences, || {
        format!("{} states read, {} written", read.len(), write.len())
    })?;
    let mut writers: HashMap<u32, usize> = HashMap::new();
    for (s, (&read, &write)) in read.iter().zip(write).enumerate() {
        ensure(write < spec.pages && (read < spec.pages || read == u32::MAX), || {
            format!("sequence {s} reads state {read} and writes state {write} of {}", spec.pages)
        })?;
        let writer = *writers.entry(write).or_insert(s);
        ensure(writer == s, || format!("state {write} is written by sequences {writer} and {s}"))?;
    }
    for (s, read) in read.iter().enumerate() {
        if let Some(&writer) = writers.get(read).filter(|&&writer| writer != s) {
            return Err(format!("state {read} is written by sequence {writer} while sequence {s} reads it"));
        }
    }
    Ok(())
}

fn check_logit_row(row: &LogitRow, batch: &Batch, vocab_size: usize) -> Result<(), String> {
    if let SampleMode::Score(token) = row.mode {
        ensure((token as usize) < vocab_size, || format!("token {token} is to be scored"))?;
    }
    ensure(row.temperature > 0.0 && row.temperature.is_finite(), || format!("temperature {}", row.temperature))?;
    ensure((0.0..=1.0).contains(&row.top_p) && (0.0..=1.0).contains(&row.min_p), || "top_p or min_p".into())?;
    ensure(row.repetition_penalty > 0.0, || format!("repetition penalty {}", row.repetition_penalty))?;
    ensure(row.position == batch.positions[row.row as usize] + 1, || format!("it chooses position {}", row.position))?;
    let words = vocab_size.div_ceil(32);
    let last = row.mask.map_or(0, |mask| (mask as usize + 1) * words);
    ensure(last <= batch.masks.len() && batch.masks.len() <= batch.sequences.len() * words, || {
        format!("mask {:?} of {} words of masks", row.mask, batch.masks.len())
    })?;
    let adjust = batch.adjust.get(row.adjust.start as usize..row.adjust.end as usize);
    let adjust = adjust.ok_or_else(|| format!("adjust entries {:?} of {}", row.adjust, batch.adjust.len()))?;
    ensure(adjust.iter().all(|entry| (entry.token as usize) < vocab_size), || "an adjusted token".into())?;
    ensure(adjust.is_sorted_by(|a, b| a.token < b.token), || "its adjust entries are not sorted".into())
}
