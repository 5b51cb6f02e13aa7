//! The null executor finds what is wrong with a batch: without that, the other tests prove nothing.
use crate::common::{VOCAB, limits};
use anyfleet_runtime::null::{NullExecutor, NullOptions, choose};
use anyfleet_runtime::{
    Batch, CacheKind, Executor, GroupBatch, LogitRow, SampleMode, SeqRows, TableRange, TokenAdjust, TokenSource,
};

fn executor(kind: CacheKind) -> NullExecutor {
    NullExecutor::new(limits(2, &[(kind, 8)]), NullOptions::default())
}

/// Positions `start..start + tokens.len()` of a sequence in these pages, choosing greedily at the end.
fn batch(start: u32, tokens: &[u32], pages: &[u32]) -> Batch {
    let end = start + tokens.len() as u32;
    let slot = |position: u32| pages[position as usize / 2] * 2 + position % 2;
    Batch {
        tokens: tokens.iter().map(|&id| TokenSource::Id(id)).collect(),
        positions: (start..end).collect(),
        adapters: vec![0; tokens.len()],
        sequences: vec![SeqRows { row_start: 0, rows: tokens.len() as u32, context_len: end }],
        groups: vec![GroupBatch::Pages {
            slots: (start..end).map(slot).collect(),
            table: pages.to_vec(),
            ranges: vec![TableRange { start: 0, first_page: 0 }],
        }],
        logit_rows: vec![row(tokens.len() as u32 - 1, end)],
        adjust: Vec::new(),
        masks: Vec::new(),
    }
}

fn row(row: u32, position: u32) -> LogitRow {
    LogitRow {
        row,
        mode: SampleMode::Greedy,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        choice: 0,
        position,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        adjust: 0..0,
        mask: None,
        want_logits: false,
    }
}

/// Two sequences in one batch.
fn both(first: Batch, mut second: Batch) -> Batch {
    let mut both = first;
    let rows = both.tokens.len() as u32;
    both.tokens.append(&mut second.tokens);
    both.positions.append(&mut second.positions);
    both.adapters.append(&mut second.adapters);
    both.sequences.extend(second.sequences.iter().map(|s| SeqRows { row_start: rows, ..*s }));
    both.logit_rows.extend(second.logit_rows.iter().map(|l| LogitRow { row: l.row + rows, ..l.clone() }));
    if let (
        GroupBatch::Pages { slots, table, ranges },
        GroupBatch::Pages { slots: more_slots, table: more_table, .. },
    ) = (&mut both.groups[0], &second.groups[0])
    {
        ranges.push(TableRange { start: table.len() as u32, first_page: 0 });
        slots.extend(more_slots);
        table.extend(more_table);
    }
    both
}

fn bits(executor: &mut NullExecutor, batch: &Batch) -> u32 {
    executor.submit(batch).unwrap();
    executor.wait().unwrap().logprobs.last().unwrap().to_bits()
}

fn complaint(executor: &mut NullExecutor, batch: &Batch) -> String {
    executor.submit(batch).unwrap();
    let error = executor.wait().unwrap_err().to_string();
    assert!(executor.violations().last().unwrap().ends_with(&error));
    error
}

#[test]
fn the_answer_depends_on_the_prefix_and_on_nothing_else() {
    let whole = bits(&mut executor(CacheKind::Paged), &batch(0, &[1, 2, 3, 4, 5], &[0, 1, 2]));
    let mut chunked = executor(CacheKind::Paged);
    bits(&mut chunked, &batch(0, &[1, 2, 3], &[7, 3]));
    bits(&mut chunked, &batch(0, &[9, 9, 9], &[5, 6]));
    assert_eq!(bits(&mut chunked, &batch(3, &[4, 5], &[7, 3, 1])), whole);
    let changed = bits(&mut executor(CacheKind::Paged), &batch(0, &[2, 2, 3, 4, 5], &[0, 1, 2]));
    assert_ne!(changed, whole);
    // Beyond the window only what earlier tokens left in later ones remains, and that is enough.
    let window = |first| bits(&mut executor(CacheKind::Window(2)), &batch(0, &[first, 2, 3, 4, 5], &[0, 1, 2]));
    assert_ne!(window(1), window(2));
    let adapted = Batch { adapters: vec![1; 5], ..batch(0, &[1, 2, 3, 4, 5], &[0, 1, 2]) };
    assert_ne!(bits(&mut executor(CacheKind::Paged), &adapted), whole);
}

#[test]
fn wrong_pages_are_found() {
    let mut paged = executor(CacheKind::Paged);
    bits(&mut paged, &batch(0, &[1, 2, 3, 4], &[0, 1]));
    let swapped = complaint(&mut paged, &batch(4, &[5], &[1, 0, 2]));
    assert_eq!(swapped, "group 0: position 0 is read from page 1, which has 2");
    let outside = complaint(&mut paged, &batch(4, &[5], &[0, 1, 8]));
    assert_eq!(outside, "group 0: page 8 of 8");
    let shared = complaint(&mut paged, &both(batch(4, &[5], &[0, 1, 2]), batch(4, &[6], &[0, 1, 2])));
    assert_eq!(shared, "group 0: page 2 is written by sequences 0 and 1");
    let early = complaint(&mut paged, &both(batch(3, &[4], &[0, 1]), batch(4, &[6], &[0, 1, 2])));
    assert_eq!(early, "group 0: page 1 is written by sequence 0 while sequence 1 has it in its table");
    let mut slot = batch(4, &[5], &[0, 1, 2]);
    if let GroupBatch::Pages { slots, .. } = &mut slot.groups[0] {
        slots[0] = 2;
    }
    assert_eq!(complaint(&mut paged, &slot), "group 0: row 0 has slot 2, its table says 4");
    let mut late = batch(4, &[5], &[0, 1, 2]);
    if let GroupBatch::Pages { table, ranges, .. } = &mut late.groups[0] {
        table.remove(0);
        ranges[0].first_page = 1;
    }
    assert_eq!(complaint(&mut paged, &late), "group 0: position 0 is before the table, but row 4 sees it");
}

#[test]
fn wrong_states_are_found() {
    let mut recurrent = executor(CacheKind::Recurrent);
    let state = |start, tokens: &[u32], read, write| {
        let groups = vec![GroupBatch::States { read: vec![read], write: vec![write] }];
        Batch { groups, ..batch(start, tokens, &[0; 8]) }
    };
    let whole = bits(&mut recurrent, &state(0, &[1, 2, 3], u32::MAX, 0));
    bits(&mut recurrent, &state(0, &[1, 2], u32::MAX, 1));
    assert_eq!(bits(&mut recurrent, &state(2, &[3], 1, 2)), whole);
    let advanced = complaint(&mut recurrent, &state(2, &[3], 2, 2));
    assert_eq!(advanced, "group 0: sequence 0 reads at position 2 state 2, which is of position 3");
    let zero = complaint(&mut recurrent, &state(2, &[3], u32::MAX, 2));
    assert_eq!(zero, "group 0: sequence 0 reads the zero state at position 2");
}

#[test]
fn malformed_batches_are_found() {
    let mut paged = executor(CacheKind::Paged);
    let good = batch(0, &[1, 2], &[0]);
    let tokens = |source| Batch { tokens: vec![TokenSource::Id(1), source], ..good.clone() };
    assert!(complaint(&mut paged, &tokens(TokenSource::Id(VOCAB))).contains("Id(40)"));
    assert!(complaint(&mut paged, &tokens(TokenSource::SampledBy(0))).contains("0 logit rows"));
    let positions = Batch { positions: vec![1, 2], ..good.clone() };
    assert_eq!(complaint(&mut paged, &positions), "sequence 0 has positions [1, 2] before 2");
    let position = Batch { logit_rows: vec![row(1, 7)], ..good.clone() };
    assert_eq!(complaint(&mut paged, &position), "logit row 1: it chooses position 7");
    let order = Batch { logit_rows: vec![row(1, 2), row(0, 1)], ..good.clone() };
    assert_eq!(complaint(&mut paged, &order), "logit row 0");
    let entry = |token| TokenAdjust { token, ..TokenAdjust::default() };
    let rows = vec![LogitRow { adjust: 0..2, ..row(1, 2) }];
    let unsorted = Batch { adjust: vec![entry(2), entry(2)], logit_rows: rows, ..good.clone() };
    assert_eq!(complaint(&mut paged, &unsorted), "logit row 1: its adjust entries are not sorted");
    paged.submit(&good).unwrap();
    assert_eq!(paged.submit(&good).unwrap_err().to_string(), "1 steps are in flight already");
}

#[test]
fn the_sampler_follows_its_definition() {
    let logits = [1.0, 3.0, 2.0, -1.0];
    let entry = |token| TokenAdjust { token, ..TokenAdjust::default() };
    assert_eq!(choose(&logits, &row(0, 0), &[]), 1);
    assert_eq!(choose(&logits, &row(0, 0), &[TokenAdjust { banned: true, ..entry(1) }]), 2);
    assert_eq!(choose(&logits, &row(0, 0), &[TokenAdjust { bias: 5.0, ..entry(3) }]), 3);
    let seen = [TokenAdjust { output_count: 2, ..entry(1) }, TokenAdjust { in_prompt: true, ..entry(2) }];
    let penalised = |repetition_penalty, frequency_penalty, presence_penalty| {
        let row = LogitRow { repetition_penalty, frequency_penalty, presence_penalty, ..row(0, 0) };
        choose(&logits, &row, &seen)
    };
    assert_eq!(penalised(1.2, 0.0, 0.0), 1);
    assert_eq!(penalised(4.0, 0.0, 0.0), 0);
    assert_eq!(penalised(1.0, 0.6, 0.0), 2);
    assert_eq!(penalised(1.0, 0.0, 0.9), 1);
    assert_eq!(penalised(1.0, 0.0, 1.1), 2);

    let drawn = |change: fn(LogitRow) -> LogitRow| {
        let mut tokens: Vec<u32> = (0..500)
            .map(|seed| choose(&logits, &change(LogitRow { mode: SampleMode::Random, seed, ..row(0, 0) }), &[]))
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    assert_eq!(drawn(|row| row), [0, 1, 2, 3]);
    assert_eq!(drawn(|row| LogitRow { top_k: 2, ..row }), [1, 2]);
    // Probabilities 0.66, 0.24, 0.09, 0.01.
    assert_eq!(drawn(|row| LogitRow { top_p: 0.8, ..row }), [1, 2]);
    assert_eq!(drawn(|row| LogitRow { top_p: 0.0, ..row }), [1]);
    assert_eq!(drawn(|row| LogitRow { min_p: 0.1, ..row }), [0, 1, 2]);
    assert_eq!(drawn(|row| LogitRow { temperature: 0.05, ..row }), [1]);
}
