//! Plain data of one step, laid out as devices read it.
use bytemuck::{Pod, Zeroable};

/// Log-probabilities reported per row: the sampled token's own and this many top ones.
pub const TOP_LOGPROBS: usize = 20;

/// Live counts of a step. Plans are recorded for a bucket and replayed for any count up to it, so
/// kernels read these instead of the tensors' capacities.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq, Eq)]
pub struct StepHeader {
    /// Token rows in the batch.
    pub tokens: u32,
    /// Sequences in the batch.
    pub sequences: u32,
    /// Rows whose logits are wanted, in the chunk at hand.
    pub logit_rows: u32,
    /// Zero.
    pub reserved: u32,
}

/// Which count of the [`StepHeader`] bounds the rows an operation computes. Rows past it are
/// left as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Live {
    /// Every row of the output.
    All,
    /// [`StepHeader::tokens`].
    Tokens,
    /// [`StepHeader::sequences`].
    Sequences,
    /// [`StepHeader::logit_rows`].
    LogitRows,
}

impl Live {
    /// Live rows of an output with `rows` rows.
    pub fn count(self, header: &StepHeader, rows: usize) -> usize {
        let live = match self {
            Live::All => return rows,
            Live::Tokens => header.tokens,
            Live::Sequences => header.sequences,
            Live::LogitRows => header.logit_rows,
        };
        rows.min(live as usize)
    }
}

/// One sequence of a ragged batch, as attention sees it in one cache group.
///
/// Query row `row_start + i` sits at absolute position `context_len - rows + i` and may look at
/// keys `0..=position`, or the last `window` of them. The key at position `p` lies in page
/// `table[table_start + p / page_size - first_page]` at offset `p % page_size`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq, Eq)]
pub struct SeqMeta {
    /// First token row of the sequence in the batch.
    pub row_start: u32,
    /// Token rows of the sequence in the batch.
    pub rows: u32,
    /// Tokens of the sequence in the cache once this step's keys are stored.
    pub context_len: u32,
    /// Index of the sequence's first entry in the block table.
    pub table_start: u32,
    /// Page index (position / page size) of that first entry; above 0 once a window moved on.
    pub first_page: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum SampleMode {
    /// The highest adjusted logit; the lowest id among equals.
    Greedy = 0,
    /// Drawn from the adjusted, truncated distribution.
    Random = 1,
    /// Nothing is chosen: the log-probability of [`SampleParams::target`] is reported.
    Score = 2,
}

/// Sampling parameters of one logit row.
///
/// The order is fixed: repetition, frequency and presence penalties, bias and bans (from the row's
/// [`Adjust`] entries); the mask; temperature; top-k; top-p; min-p. Reported log-probabilities are those of
/// the model: the log-softmax of the logits before any of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq)]
pub struct SampleParams {
    /// A [`SampleMode`] as u32.
    pub mode: u32,
    /// The token scored in [`SampleMode::Score`].
    pub target: u32,
    /// Divides the logits; above 0 in [`SampleMode::Random`].
    pub temperature: f32,
    /// Keep the k highest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of highest tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the highest token's probability; 0 keeps all.
    pub min_p: f32,
    /// Low half of the seed.
    pub seed_lo: u32,
    /// High half of the seed.
    pub seed_hi: u32,
    /// Which of a request's `n` choices.
    pub choice: u32,
    /// Position of the token being chosen, counted from the start of the sequence.
    pub position: u32,
    /// First [`Adjust`] entry of the row.
    pub adjust_start: u32,
    /// Number of [`Adjust`] entries, sorted by token, one per token.
    pub adjust_len: u32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the output.
    pub presence_penalty: f32,
    /// One more than the row's mask in [`Sample::masks`](crate::ops::Sample::masks); 0 for rows without one.
    pub mask: u32,
}

impl Default for SampleParams {
    fn default() -> Self {
        SampleParams { top_p: 1.0, temperature: 1.0, repetition_penalty: 1.0, ..SampleParams::zeroed() }
    }
}

/// What is known of one token of the vocabulary in one row: the sparse input of the penalties.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable, PartialEq)]
pub struct Adjust {
    /// Token id.
    pub token: u32,
    /// Occurrences in the output so far.
    pub output_count: u32,
    /// Bit 0: occurs in the prompt. Bit 1: banned (its logit becomes minus infinity).
    pub flags: u32,
    /// Added to the logit.
    pub bias: f32,
}

impl Adjust {
    /// Flag: the token occurs in the prompt.
    pub const IN_PROMPT: u32 = 1;
    /// Flag: the token must not be chosen.
    pub const BANNED: u32 = 2;
}
