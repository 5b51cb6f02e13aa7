//! What a fleet's front door needs beyond OpenAI's API, for callers who hold the fleet's key.
//!
//! A request to `/v1/chat/completions` or `/v1/completions` with `stream` and the header [`KEY_HEADER`] gets the same
//! chunks as any other, each with one field more, `anyfleet`: a [`Part`]. The first chunk has no choices and carries
//! [`Part::Begin`], a [`StreamSnapshot`] of the answer before its first word. Whoever [applies](StreamSnapshot::apply)
//! the parts that follow to it has at every moment what `POST /fleet/resume` needs to go on with the answer on another
//! server, whether or not the first one still exists.
//!
//! | Route | Body | Answer |
//! |---|---|---|
//! | `POST /fleet/resume` | a [`StreamSnapshot`] | the rest of the answer, as chunks with parts; never what was said already |
//! | `POST /fleet/suspend/{id}` | | the [`StreamSnapshot`] of the answer `id`, whose stream ends with [`Part::Suspended`] |
//! | `POST /fleet/drain` | | [`Drained`]: as `suspend`, for every answer; the server takes no more requests |
//! | `GET /fleet/status` | | [`Status`] |
//!
//! `fleet.schema.json` beside this crate's manifest describes these values in JSON Schema.
//!
//! A key that is wrong, or sent to a server that has none, is a 401; a snapshot that is no snapshot, of another model,
//! or contradicts itself is a 400, one that is too large a 413.
pub(crate) mod parts;
pub(crate) mod registry;
pub(crate) mod routes;

use anyfleet::{Identity, RequestSnapshot};
use serde::{Deserialize, Serialize};

/// Carries the fleet's key.
pub const KEY_HEADER: &str = "anyfleet-fleet-key";

/// The version of [`StreamSnapshot`] this crate writes, and the only one it reads.
pub const VERSION: u32 = 1;

/// Which of OpenAI's APIs an answer is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What every chunk of an answer repeats, and what its request wanted to see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerHead {
    /// Which API.
    pub api: Api,
    /// `chatcmpl-...` or `cmpl-...`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// `n`: choices of each prompt.
    pub n: u32,
    /// Log-probabilities were asked for.
    pub logprobs: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `return_token_ids`.
    pub token_ids: bool,
    /// `return_tokens_as_token_ids`.
    pub tokens_as_ids: bool,
}

/// A streamed answer that can be continued on another server of the same model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamSnapshot {
    /// Version of this format.
    pub version: u32,
    /// What its chunks repeat.
    pub answer: AnswerHead,
    /// Its prompts, by index.
    pub prompts: Vec<PromptSnapshot>,
}

/// A prompt of a [`StreamSnapshot`] and its choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptSnapshot {
    /// The request as the engine knows it.
    pub request: RequestSnapshot,
    /// The text that goes before every choice, where `echo` asked for it.
    pub echo: Option<String>,
    /// Of each choice: what comes before its first token (the role, the echo) was said.
    pub begun: Vec<bool>,
}

/// What a chunk means for the ledger of its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The answer begins, or goes on here, from this.
    Begin(Box<StreamSnapshot>),
    /// The choice with this index said what comes before its first token.
    Begun {
        /// Prompt times `n` plus choice, as in the chunk.
        index: usize,
    },
    /// A choice grew.
    Tokens {
        /// As above.
        index: usize,
        /// New token ids.
        ids: Vec<u32>,
        /// Their log-probabilities.
        logprobs: Vec<f32>,
        /// Bytes of text the choice has said, this chunk's and without the echo.
        bytes: usize,
    },
    /// A choice is complete.
    Finished {
        /// As above.
        index: usize,
        /// Tokens it used.
        tokens: usize,
        /// Tokens of its prompt that were found in the prefix cache.
        cached_prompt_tokens: usize,
    },
    /// The answer was suspended and goes on elsewhere from this; the stream ends here.
    Suspended(Box<StreamSnapshot>),
}

/// Why a part does not fit the answer it was said of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream contradicts itself: {0}")]
pub struct LedgerError(String);

impl StreamSnapshot {
    /// Takes a part of the answer into account.
    ///
    /// # Errors
    /// The part is of a choice that there is not, or that is complete.
    pub fn apply(&mut self, part: Part) -> Result<(), LedgerError> {
        let (index, change): (usize, Change) = match part {
            Part::Begin(snapshot) | Part::Suspended(snapshot) => {
                *self = *snapshot;
                return Ok(());
            }
            Part::Begun { index } => (index, Change::Begun),
            Part::Tokens { index, ids, bytes, .. } => (index, Change::Tokens(ids, bytes)),
            Part::Finished { index, tokens, cached_prompt_tokens } => {
                (index, Change::Finished(tokens, cached_prompt_tokens))
            }
        };
        let n = (self.answer.n as usize).max(1);
        let (prompt, choice) = (index / n, index % n);
        let missing = || LedgerError(format!("there is no choice {index}"));
        let prompt = self.prompts.get_mut(prompt).ok_or_else(missing)?;
        let state = prompt.request.choices.get_mut(choice).ok_or_else(missing)?;
        if state.finished.is_some() {
            return Err(LedgerError(format!("choice {index} goes on after its end")));
        }
        match change {
            Change::Begun => {
                *prompt.begun.get_mut(choice).ok_or_else(missing)? = true;
                // Echoed log-probabilities are said by every choice; until the last has, they are needed again.
                prompt.request.prompt_scored = prompt.begun.iter().all(|&begun| begun);
            }
            Change::Tokens(ids, bytes) => {
                // Held tokens were known from a snapshot; what is said now is what the caller has.
                state.tokens.truncate(state.tokens.len() - state.held.len().min(state.tokens.len()));
                state.held.clear();
                state.tokens.extend(ids);
                state.sent_bytes = bytes;
            }
            Change::Finished(tokens, cached) => {
                state.finished = Some(tokens);
                state.tokens = Vec::new();
                state.held = Vec::new();
                prompt.request.cached_prompt_tokens.get_or_insert(cached);
            }
        }
        Ok(())
    }

    /// Whether every choice is complete: only the usage and the end of the stream may be missing.
    pub fn is_finished(&self) -> bool {
        self.prompts.iter().all(|prompt| prompt.request.is_finished())
    }

    /// Tokens, of prompts and answers, that a server has to compute before the answer goes on.
    pub fn replayed_tokens(&self) -> usize {
        let of = |prompt: &PromptSnapshot| {
            let open = prompt.request.choices.iter().filter(|choice| choice.finished.is_none());
            open.map(|choice| prompt.request.prompt.len() + choice.tokens.len()).sum::<usize>()
        };
        self.prompts.iter().map(of).sum()
    }
}

enum Change {
    Begun,
    Tokens(Vec<u32>, usize),
    Finished(usize, usize),
}

/// The answer of `POST /fleet/drain`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// Of every answer whose stream was read to its end.
    pub snapshots: Vec<StreamSnapshot>,
    /// Answers that were suspended too, but whose callers do not read: their streams end with their snapshots.
    pub stalled: Vec<String>,
}

/// The answer of `GET /fleet/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of [`StreamSnapshot`] that is read and written.
    pub snapshot_version: u32,
    /// The model's name.
    pub model: String,
    /// What decides an answer beside the request.
    pub identity: Identity,
    /// Device, for people.
    pub device: String,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
    /// Takes new requests.
    pub ready: bool,
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Share of the KV cache's pages that running requests hold, 0 to 1, in the fullest group.
    pub cache_use: f64,
    /// Prompt tokens computed a second of computing, measured over this server's steps; `None` before the first.
    pub prefill_tokens_per_second: Option<f64>,
    /// Tokens decoded a second of computing, over all sequences.
    pub decode_tokens_per_second: Option<f64>,
    /// Seconds that the step that runs now has been running; 0 between steps. A device that hangs shows here.
    pub step_seconds: f64,
}
