//! What passes between the runtime and an executor: plain vectors, no tensors and no requests.

/// Where a row's input token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenSource {
    /// A known token id.
    Id(u32),
    /// The token chosen for this entry of the *previous* batch's [`Batch::logit_rows`], which the
    /// runtime may not have seen yet.
    SampledBy(u32),
}

/// The rows of one sequence in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRows {
    /// First token row.
    pub row_start: u32,
    /// Token rows; at least 1. Their positions are `context_len - rows .. context_len`.
    pub rows: u32,
    /// Tokens of the sequence in the cache once this step's are stored.
    pub context_len: u32,
}

/// Where a sequence's pages start in [`GroupBatch::Pages`]'s table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRange {
    /// Index of its first entry.
    pub start: u32,
    /// Page index (position / page size) of that entry; above 0 once a window moved on.
    pub first_page: u32,
}

/// One cache group's part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupBatch {
    /// Groups whose state is one entry per token: `Paged`, `Window`, `Latent`.
    Pages {
        /// Per token row: page * page size + offset, or `u32::MAX` to store nothing.
        slots: Vec<u32>,
        /// Page ids, ragged; see [`TableRange`].
        table: Vec<u32>,
        /// Per sequence.
        ranges: Vec<TableRange>,
    },
    /// Groups whose state is one fixed-size block per sequence: `Recurrent`. A step reads one page
    /// and writes another when the one it reads is a shared checkpoint.
    States {
        /// Per sequence: the page with the state before the first row; `u32::MAX` is the zero state.
        read: Vec<u32>,
        /// Per sequence: the page that receives the state after the last row.
        write: Vec<u32>,
    },
}

/// How a row's token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleMode {
    /// The highest adjusted logit, the lowest id among equals.
    Greedy,
    /// Drawn from the adjusted, truncated distribution.
    Random,
    /// Nothing is chosen; the log-probability of this token is reported.
    Score(u32),
}

/// A row whose logits are wanted, and what is done with them.
#[derive(Clone, Debug, PartialEq)]
pub struct LogitRow {
    /// Token row.
    pub row: u32,
    /// How the token is chosen.
    pub mode: SampleMode,
    /// Divides the logits; above 0.
    pub temperature: f32,
    /// Keep the k highest; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of highest tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the highest token's probability; 0 keeps all.
    pub min_p: f32,
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's `n` choices.
    pub choice: u32,
    /// Position of the token being chosen, counted from the start of the sequence.
    pub position: u32,
    /// Divides positive and multiplies negative logits of tokens seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once per occurrence in the output.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in the output.
    pub presence_penalty: f32,
    /// The row's entries in [`Batch::adjust`].
    pub adjust: std::ops::Range<u32>,
    /// Which of [`Batch::masks`] is the row's.
    pub mask: Option<u32>,
    /// Read the whole row of logits back.
    pub want_logits: bool,
}

/// What is known of one token of the vocabulary in one row: the sparse input of the penalties.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenAdjust {
    /// Token id.
    pub token: u32,
    /// Occurrences in the output so far.
    pub output_count: u32,
    /// Occurs in the prompt.
    pub in_prompt: bool,
    /// Must not be chosen.
    pub banned: bool,
    /// Added to the logit.
    pub bias: f32,
}

/// One step's work: a ragged mixture of prefill chunks and decodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Input token of every row.
    pub tokens: Vec<TokenSource>,
    /// Absolute position of every row.
    pub positions: Vec<u32>,
    /// Adapter of every row; 0 is the base model.
    pub adapters: Vec<u32>,
    /// Sequences; their row ranges follow each other without gaps.
    pub sequences: Vec<SeqRows>,
    /// One entry per cache group of the model, in its order.
    pub groups: Vec<GroupBatch>,
    /// Rows whose logits are wanted, ascending by row.
    pub logit_rows: Vec<LogitRow>,
    /// Penalty inputs, sorted by token within a row's range.
    pub adjust: Vec<TokenAdjust>,
    /// Masks of the tokens that may be chosen, one after another, at most one a sequence: `ceil(V / 32)` words each, bit
    /// `t % 32` of word `t / 32` for token `t`.
    pub masks: Vec<u32>,
}

/// Log-probabilities reported per row besides the chosen token's own.
pub const TOP_LOGPROBS: usize = 20;

/// What a step computed; entry `i` belongs to [`Batch::logit_rows`]`[i]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// The chosen token, or the scored one.
    pub ids: Vec<u32>,
    /// Its log-probability under the model (before penalties and temperature), natural log.
    pub logprobs: Vec<f32>,
    /// [`TOP_LOGPROBS`] ids per row, highest first; `u32::MAX` past the vocabulary's end.
    pub top_ids: Vec<u32>,
    /// Their log-probabilities.
    pub top_logprobs: Vec<f32>,
    /// Whole rows of logits, in order, for the rows that wanted them.
    pub logits: Vec<f32>,
}
