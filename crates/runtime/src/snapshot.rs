//! A request between two engines.
//!
//! A snapshot has what cannot be computed again: the tokens of prompt and answer, how to go on, what the caller has
//! already. Everything else follows from the tokens and is replayed when the request is resumed: the KV cache,
//! penalties, the state of the detokenizer, text that may begin a stop string.
use crate::{AddError, SamplingParams, TokenLogprob};
use serde::{Deserialize, Serialize};

/// What decides a request's answer beside the request. Each is an opaque text; empty where there is no such thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Everything that decides the bits of a logit: engine, backend and kernel set, types.
    pub numerics_id: String,
    /// The checkpoint's tensors.
    pub weights: String,
    /// The tokenizer.
    pub tokenizer: String,
    /// The chat template.
    pub template: String,
    /// The adapter.
    pub adapter: String,
}

/// A request that can be continued on another engine of the same model.
///
/// Within one [`Identity::numerics_id`] the continuation has the tokens, text and log-probabilities that the request
/// would have had where it was; elsewhere it can leave them at the first near-tie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestSnapshot {
    /// Version of this format.
    pub version: u32,
    /// Where it ran.
    pub identity: Identity,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How tokens are chosen and when generation ends; `seed` and `max_tokens` have values.
    pub params: SamplingParams,
    /// Adapter of every row; 0 is the base model.
    pub adapter: u32,
    /// The caller has the prompt's log-probabilities, if it asked for them.
    pub prompt_scored: bool,
    /// Prompt tokens that were found in the prefix cache; `None` for a request that never started.
    pub cached_prompt_tokens: Option<usize>,
    /// All `n` choices, by index.
    pub choices: Vec<ChoiceSnapshot>,
}

/// A choice of a [`RequestSnapshot`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChoiceSnapshot {
    /// Token ids generated so far; of a complete choice they need not be here.
    pub tokens: Vec<u32>,
    /// Log-probabilities of the last of them, whose entries the caller does not have yet.
    pub held: Vec<TokenLogprob>,
    /// Bytes of text the caller has.
    pub sent_bytes: usize,
    /// Tokens it used, where the choice is complete.
    pub finished: Option<usize>,
}

/// Bytes that are no snapshot, or a request that has none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SnapshotError(pub(crate) String);

impl RequestSnapshot {
    /// The version this crate writes, and the only one it reads.
    pub const VERSION: u32 = 1;

    /// Bytes of the longest snapshot that is read: a context of a million tokens.
    pub const MAX_BYTES: usize = 16 << 20;

    /// A request at its start.
    pub fn new(identity: Identity, prompt: Vec<u32>, params: SamplingParams, adapter: u32) -> Self {
        RequestSnapshot {
            version: Self::VERSION,
            identity,
            prompt,
            adapter,
            prompt_scored: false,
            cached_prompt_tokens: None,
            choices: vec![ChoiceSnapshot::default(); params.n as usize],
            params,
        }
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a snapshot has nothing that JSON lacks")
    }

    /// From JSON. Whether it fits an engine is for the engine to say.
    ///
    /// # Errors
    /// Longer than [`RequestSnapshot::MAX_BYTES`], not JSON, not a snapshot, or of another version.
    pub fn from_json(json: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if json.len() > Self::MAX_BYTES {
            let most = Self::MAX_BYTES;
            return Err(SnapshotError(format!("the snapshot has {} bytes; at most {most} are read", json.len())));
        }
        let bad = |e: serde_json::Error| SnapshotError(format!("not a request snapshot: {e}"));
        // First, as a later version may have other fields.
        let Version { version } = serde_json::from_slice(json).map_err(bad)?;
        check_version(version)?;
        serde_json::from_slice(json).map_err(bad)
    }

    /// Whether every choice is complete, so that nothing is left to resume.
    pub fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished.is_some())
    }

    /// Whether an engine with this identity can go on with it: it is of this version, model, tokenizer and adapter.
    ///
    /// # Errors
    /// What differs.
    pub fn check_identity(&self, ours: &Identity) -> Result<(), SnapshotError> {
        check_version(self.version)?;
        let theirs = &self.identity;
        for (name, theirs, ours) in [
            ("model", &theirs.weights, &ours.weights),
            ("tokenizer", &theirs.tokenizer, &ours.tokenizer),
            ("adapter", &theirs.adapter, &ours.adapter),
        ] {
            if theirs != ours {
                let message = format!("it is of another {name} ({theirs:.16}) than this engine's ({ours:.16})");
                return Err(SnapshotError(message));
            }
        }
        Ok(())
    }

    /// Checks what can be wrong with a snapshot whatever engine it comes to, but for what a request is checked for.
    pub(crate) fn check(&self, identity: &Identity, vocab_size: usize) -> Result<(), AddError> {
        self.check_identity(identity).map_err(|SnapshotError(message)| bad(message))?;
        let (Some(_), Some(max_tokens)) = (self.params.seed, self.params.max_tokens) else {
            return Err(bad("its parameters lack a seed or max_tokens".into()));
        };
        if self.choices.len() != self.params.n as usize {
            return Err(bad(format!("it has {} choices of n = {}", self.choices.len(), self.params.n)));
        }
        let unscored = self.params.prompt_logprobs.is_some() && !self.prompt_scored;
        for (i, choice) in self.choices.iter().enumerate() {
            let ChoiceSnapshot { tokens, held, .. } = choice;
            if tokens.len() > max_tokens as usize {
                return Err(bad(format!("choice {i} has {} tokens of at most {max_tokens}", tokens.len())));
            }
            if unscored && !tokens.is_empty() {
                return Err(bad(format!("choice {i} has tokens, but the prompt was not scored before them")));
            }
            let ids = held.iter().flat_map(|token| token.top.iter().map(|&(id, _)| id));
            if let Some(id) = tokens.iter().copied().chain(ids).find(|&id| id as usize >= vocab_size) {
                return Err(bad(format!("choice {i} has token {id} of a vocabulary of {vocab_size}")));
            }
            let tail = tokens.len().checked_sub(held.len()).map(|sent| &tokens[sent..]);
            if !tail.is_some_and(|tail| held.iter().map(|token| token.id).eq(tail.iter().copied())) {
                return Err(bad(format!("the tokens held back of choice {i} are not its last tokens")));
            }
            if held.iter().any(|token| token.top.len() > crate::TOP_LOGPROBS) {
                return Err(bad(format!(
                    "choice {i} has more than {} log-probabilities of a token",
                    crate::TOP_LOGPROBS
                )));
            }
        }
        Ok(())
    }
}

fn check_version(version: u32) -> Result<(), SnapshotError> {
    let ours = RequestSnapshot::VERSION;
    match version == ours {
        true => Ok(()),
        false => Err(SnapshotError(format!("the snapshot has version {version}; this build reads version {ours}"))),
    }
}

/// A snapshot that contradicts itself or this engine.
pub(crate) fn bad(message: String) -> AddError {
    AddError::Snapshot { message }
}

/// An f32 as a JSON number that reads back as the same bits; negative infinity is null.
pub(crate) mod exact {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
        // As f64: its digits are further apart from those of the next f32 than any parser's error.
        value.is_finite().then_some(f64::from(*value)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.map_or(f32::NEG_INFINITY, |value| value as f32))
    }

    /// Pairs of a token id and a number.
    pub(crate) mod pairs {
        use serde::{Deserialize, Deserializer, Serialize, Serializer};

        #[derive(Serialize, Deserialize)]
        struct Pair(u32, #[serde(with = "super")] f32);

        pub(crate) fn serialize<S: Serializer>(pairs: &[(u32, f32)], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq(pairs.iter().map(|&(id, value)| Pair(id, value)))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(u32, f32)>, D::Error> {
            let pairs = Vec::<Pair>::deserialize(deserializer)?;
            Ok(pairs.into_iter().map(|Pair(id, value)| (id, value)).collect())
        }
    }
}
