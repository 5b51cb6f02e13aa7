//! One choice of one request, while it lasts.
use crate::adjust::Adjustments;
use crate::cache::Lease;
use crate::constraint::Guide;
use crate::output::{Output, Piece, Sent};
use crate::postprocess::append;
use crate::prefix::Scope;
use crate::{ChoiceSnapshot, FinishReason, RequestId, SamplingParams, TokenLogprob};
use std::sync::Arc;

/// Names a sequence. Ordered by arrival: earlier requests first, then earlier choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SeqKey {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
}

/// What the choices of a request have in common.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) params: SamplingParams,
    pub(crate) scope: Scope,
    pub(crate) seed: u64,
    pub(crate) prompt: Vec<u32>,
    /// Tokens that end a choice.
    pub(crate) stop_tokens: Vec<u32>,
    /// Tokens, prompt and output, at which a choice is full.
    pub(crate) max_len: usize,
}

/// A sequence's tokens and where they stand.
///
/// It is either waiting (an empty lease, nothing computed) or running. Whether running means prefill
/// or decode is only a matter of how many tokens are left to compute, so a preempted sequence starts
/// over as if its output so far were part of its prompt.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) job: Arc<Job>,
    /// Prompt and output; empty until the sequence first starts, as a queue may be long.
    pub(crate) tokens: Vec<u32>,
    pub(crate) lease: Lease,
    /// Tokens whose rows have been scheduled since the lease was opened.
    pub(crate) computed: usize,
    /// Those of them whose steps are over.
    pub(crate) stored: usize,
    /// Counts preemptions, so that a step's result is not taken for a later lease's.
    pub(crate) epoch: u32,
    /// Submitted steps with rows of this sequence that have not been waited for.
    pub(crate) steps_in_flight: u32,
    /// Tokens chosen in those steps.
    pub(crate) tokens_in_flight: usize,
    /// The last batch's logit row that chooses the newest of them.
    pub(crate) source_row: u32,
    /// A position to end a prefill chunk at, for a checkpoint that other requests can use.
    pub(crate) checkpoint_at: usize,
    pub(crate) adjustments: Adjustments,
    /// Where the request has a constraint.
    pub(crate) guide: Option<Guide>,
    pub(crate) output: Output,
    /// Log-probabilities of the prompt so far; `None` when not wanted, or handed over.
    pub(crate) prompt_scores: Option<Vec<TokenLogprob>>,
}

impl Job {
    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt.len()
    }
}

impl Sequence {
    /// A sequence that waits. The first choice is the one whose prompt is scored, if that is wanted.
    pub(crate) fn new(job: Arc<Job>, choice: u32, output: Output, guide: Option<Guide>) -> Self {
        Sequence {
            prompt_scores: (choice == 0 && job.params.prompt_logprobs.is_some()).then(Vec::new),
            job,
            output,
            tokens: Vec::new(),
            lease: Lease::default(),
            computed: 0,
            stored: 0,
            epoch: 0,
            steps_in_flight: 0,
            tokens_in_flight: 0,
            source_row: 0,
            checkpoint_at: 0,
            adjustments: Adjustments::default(),
            guide,
        }
    }

    /// Builds what grows with the prompt, once.
    pub(crate) fn start(&mut self) {
        if self.tokens.is_empty() {
            self.tokens.extend(&self.job.prompt);
            self.adjustments = Adjustments::new(&self.job.params, &self.job.prompt, &self.job.stop_tokens);
        }
    }

    /// What a snapshot keeps of it.
    pub(crate) fn snapshot(&self) -> ChoiceSnapshot {
        ChoiceSnapshot {
            tokens: self.tokens.get(self.job.prompt_len()..).unwrap_or_default().to_vec(),
            held: self.output.held().cloned().collect(),
            sent_bytes: self.output.sent().bytes,
            finished: None,
        }
    }

    /// Takes the tokens of a snapshot as if they had just been chosen: what its caller does not have yet, and whether
    /// the last of them ends the choice. The message of an error follows the choice's name.
    pub(crate) fn replay(
        &mut self,
        state: ChoiceSnapshot,
        eos_token_ids: &[u32],
    ) -> Result<(Piece, Option<FinishReason>), String> {
        let ChoiceSnapshot { tokens, held, sent_bytes, .. } = state;
        let sent = tokens.len() - held.len();
        self.output.resume(Sent { bytes: sent_bytes, tokens: sent });
        let (mut all, mut finish) = (Piece::default(), None);
        // Not before there are tokens: a queue may be long.
        if !tokens.is_empty() {
            self.start();
        }
        let known = tokens[..sent].iter().map(|&id| TokenLogprob { id, ..TokenLogprob::default() });
        for (i, token) in known.chain(held).enumerate() {
            if let Some(reason) = finish {
                return Err(format!(
                    "goes on after token {} of it, which ended it ({})",
                    i - 1,
                    FinishReason::as_str(&reason)
                ));
            }
            let (piece, reason) = append(self, token, eos_token_ids);
            all.text += &piece.text;
            all.tokens.extend(piece.tokens);
            finish = reason;
        }
        Ok((all, finish))
    }

    /// Rows that may be scheduled now: 1 is a decode, 0 means waiting for a step to end.
    pub(crate) fn remaining(&self) -> usize {
        let ahead = match self.may_run_ahead() {
            true => self.tokens_in_flight,
            false => 0,
        };
        self.tokens.len() + ahead - self.computed
    }

    /// Whether a token can be fed before it is known: it must not be the last, and nothing but the
    /// device may depend on it.
    fn may_run_ahead(&self) -> bool {
        self.tokens.len() + self.tokens_in_flight < self.job.max_len && !self.follows_output()
    }

    /// Whether the host must have seen a token before it can say how the next is chosen.
    fn follows_output(&self) -> bool {
        self.adjustments.follow_output() || self.guide.is_some()
    }

    /// Whether it cannot go on before the host has seen the token in flight, though it will then.
    pub(crate) fn waits_for_its_token(&self) -> bool {
        let more = self.tokens.len() + self.tokens_in_flight < self.job.max_len;
        self.tokens_in_flight > 0 && more && self.follows_output()
    }

    /// Position of the token that a row at the end of `computed` would choose, if one is to be chosen.
    pub(crate) fn chooses(&self, end: usize) -> bool {
        end == self.tokens.len() + self.tokens_in_flight && end < self.job.max_len
    }

    /// Tokens generated; none before the sequence first starts.
    pub(crate) fn generated(&self) -> usize {
        self.tokens.len().saturating_sub(self.job.prompt_len())
    }

    /// The longest prefix that may come from the cache: the last token is always computed, and so
    /// is every prompt row that still has to be scored.
    pub(crate) fn reusable(&self) -> usize {
        match &self.prompt_scores {
            Some(scores) => scores.len(),
            None => self.tokens.len() - 1,
        }
    }
}
