//! Log-probabilities in OpenAI's two shapes.
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// `logprobs` of a completion's choice: four lists with an entry per token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// The token's text; `bytes:\xNN...` for one that is not whole characters.
    pub tokens: Vec<String>,
    /// Its log-probability; null for the first token of an echoed prompt.
    pub token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens and always the one chosen; null as above.
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where the token begins in the choice's text, in characters.
    pub text_offset: Vec<usize>,
}

/// Tokens and log-probabilities, most likely first; an object on the wire.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// `logprobs` of a chat completion's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null: this server's models answer in content.
    pub refusal: Option<()>,
}

/// A token of a chat completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// The token.
    #[serde(flatten)]
    pub token: TokenAndLogprob,
    /// The most likely tokens at its position.
    pub top_logprobs: Vec<TokenAndLogprob>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenAndLogprob {
    /// Its text; `bytes:\xNN...` for one that is not whole characters.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}
