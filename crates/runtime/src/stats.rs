//! Counters and gauges.

/// A snapshot of the runtime's counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests with a choice that runs.
    pub requests_running: usize,
    /// Requests that have not started.
    pub requests_waiting: usize,
    /// Sequences (choices) that hold cache pages.
    pub sequences_running: usize,
    /// Sequences that wait for pages or for room in the batch.
    pub sequences_waiting: usize,
    /// Per cache group.
    pub groups: Vec<GroupStats>,
    /// Prompt tokens looked up in the prefix cache since the start.
    pub prefix_queries: u64,
    /// Those found there.
    pub prefix_hits: u64,
    /// Sequences that lost their pages to an older one and were computed again.
    pub preemptions: u64,
    /// Token rows computed in prefill, in steps that have ended (recomputation after preemption included).
    pub prefill_tokens: u64,
    /// Token rows computed in decode, likewise.
    pub decode_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps submitted.
    pub steps: u64,
    /// Steps failed.
    pub failed_steps: u64,
}

/// Pages of one cache group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// All pages.
    pub pages: u32,
    /// Pages that hold nothing.
    pub free: u32,
    /// Pages kept for prefix hits that no sequence uses: given up on demand.
    pub cached: u32,
}
