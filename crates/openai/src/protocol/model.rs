//! `/v1/models`.
use serde::Serialize;

/// A model being served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelObject {
    /// The name requests use.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When it was loaded, Unix seconds.
    pub created: u64,
    /// `anyfleet`.
    pub owned_by: &'static str,
    /// Tokens per sequence, prompt and output together.
    pub max_model_len: usize,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// The models.
    pub data: Vec<ModelObject>,
}
