//! The null executor's cache.
use crate::{Batch, CacheKind, CacheSpec, GroupBatch, SeqRows, TableRange};

/// Mixes a value into a hash (the finaliser of splitmix64, Steele et al. 2014).
pub(super) fn mix(hash: u64, value: u64) -> u64 {
    let mut z = hash.rotate_left(23) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x2545_f491_4f6c_dd1d);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What a slot or a state remembers: a hash that covers all tokens up to its position, inclusive.
#[derive(Clone, Copy, Debug)]
struct Cell {
    value: u64,
    /// For a slot the position of its token, for a state the number of tokens it has seen.
    position: u32,
}

const EMPTY: Cell = Cell { value: 0xdead, position: u32::MAX };

#[derive(Debug)]
pub(super) struct Memory {
    page_size: usize,
    kinds: Vec<CacheKind>,
    /// Per group: `pages * page_size` slots, or `pages` states.
    cells: Vec<Vec<Cell>>,
}

impl Memory {
    pub(super) fn new(spec: &CacheSpec) -> Self {
        let page_size = spec.page_size as usize;
        let cells = spec.groups.iter().map(|group| match group.kind {
            CacheKind::Recurrent => vec![EMPTY; group.pages as usize],
            _ => vec![EMPTY; group.pages as usize * page_size],
        });
        Memory { page_size, kinds: spec.groups.iter().map(|group| group.kind).collect(), cells: cells.collect() }
    }

    /// Stores a checked batch's rows and returns what each row sees.
    pub(super) fn run(&mut self, batch: &Batch, tokens: &[u32]) -> Result<Vec<u64>, String> {
        let mut hidden = Vec::with_capacity(tokens.len());
        for (s, rows) in batch.sequences.iter().enumerate() {
            let mut states = self.read_states(batch, s, rows)?;
            for row in rows.row_start as usize..(rows.row_start + rows.rows) as usize {
                let position = batch.positions[row];
                let mut seen = mix(mix(u64::from(tokens[row]), u64::from(position)), u64::from(batch.adapters[row]));
                for (g, group) in batch.groups.iter().enumerate() {
                    seen = match group {
                        GroupBatch::Pages { table, ranges, .. } => {
                            self.read_slots(g, &Reader { table, range: ranges[s], position }, seen)?
                        }
                        GroupBatch::States { .. } => mix(seen, states[g]),
                    };
                }
                hidden.push(seen);
                for (g, group) in batch.groups.iter().enumerate() {
                    let value = mix(seen, g as u64);
                    match group {
                        GroupBatch::Pages { slots, .. } if slots[row] == u32::MAX => {}
                        GroupBatch::Pages { slots, .. } => {
                            self.cells[g][slots[row] as usize] = Cell { value, position }
                        }
                        GroupBatch::States { .. } => states[g] = mix(states[g], value),
                    }
                }
            }
            for (g, group) in batch.groups.iter().enumerate() {
                if let GroupBatch::States { write, .. } = group {
                    self.cells[g][write[s] as usize] = Cell { value: states[g], position: rows.context_len };
                }
            }
        }
        Ok(hidden)
    }

    /// Per group the state before the sequence's first row; 0 for groups without.
    fn read_states(&self, batch: &Batch, s: usize, rows: &SeqRows) -> Result<Vec<u64>, String> {
        let start = rows.context_len - rows.rows;
        let state = |(g, group): (usize, &GroupBatch)| match group {
            GroupBatch::Pages { .. } => Ok(0),
            GroupBatch::States { read, .. } if read[s] == u32::MAX => match start {
                0 => Ok(1),
                _ => Err(format!("group {g}: sequence {s} reads the zero state at position {start}")),
            },
            GroupBatch::States { read, .. } => {
                let cell = self.cells[g][read[s] as usize];
                match cell.position == start {
                    true => Ok(cell.value),
                    false => Err(format!(
                        "group {g}: sequence {s} reads at position {start} state {}, which is of position {}",
                        read[s], cell.position
                    )),
                }
            }
        };
        batch.groups.iter().enumerate().map(state).collect()
    }

    /// Mixes in every earlier token that a row can see.
    fn read_slots(&self, g: usize, reader: &Reader<'_>, mut seen: u64) -> Result<u64, String> {
        let first = match self.kinds[g] {
            CacheKind::Window(window) => (reader.position + 1).saturating_sub(window),
            _ => 0,
        };
        for position in first..reader.position {
            let page_index = position as usize / self.page_size;
            let Some(entry) = page_index.checked_sub(reader.range.first_page as usize) else {
                let message =
                    format!("group {g}: position {position} is before the table, but row {} sees it", reader.position);
                return Err(message);
            };
            let page = reader.table[reader.range.start as usize + entry] as usize;
            let cell = self.cells[g][page * self.page_size + position as usize % self.page_size];
            if cell.position != position {
                return Err(format!(
                    "group {g}: position {position} is read from page {page}, which has {}",
                    cell.position
                ));
            }
            seen = mix(seen, cell.value);
        }
        Ok(seen)
    }

    /// Ruins everything that a batch's sequences hold, as a failed device might.
    pub(super) fn poison(&mut self, batch: &Batch) {
        for (cells, group) in self.cells.iter_mut().zip(&batch.groups) {
            let (pages, size) = match group {
                GroupBatch::Pages { table, .. } => (table.iter().chain(&[]), self.page_size),
                GroupBatch::States { read, write } => (read.iter().chain(write), 1),
            };
            for &page in pages.filter(|&&page| page != u32::MAX) {
                cells[page as usize * size..][..size].fill(EMPTY);
            }
        }
    }
}

/// A row about to read a paged group.
struct Reader<'a> {
    table: &'a [u32],
    range: TableRange,
    position: u32,
}
