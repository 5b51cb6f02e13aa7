//! The engine as the API knows it: by its names, with what every response repeats.
use crate::ApiError;
use crate::fleet::AnswerHead;
use crate::protocol::ModelObject;
use anyfleet::Engine;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(crate) struct Serving {
    pub engine: Engine,
    /// Not empty; the first is the model's id.
    pub names: Vec<String>,
    created: u64,
}

impl Serving {
    pub fn new(engine: Engine, names: &[String]) -> Self {
        let names = if names.is_empty() { default_names(&engine) } else { names.to_vec() };
        Serving { engine, names, created: unix_seconds() }
    }

    pub fn name(&self) -> &str {
        &self.names[0]
    }

    pub fn check_model(&self, model: &str) -> Result<(), ApiError> {
        match self.names.iter().any(|name| name == model) {
            true => Ok(()),
            false => Err(ApiError::model_not_found(model)),
        }
    }

    pub fn model(&self) -> ModelObject {
        ModelObject {
            id: self.name().to_owned(),
            object: "model",
            created: self.created,
            owned_by: "anyfleet",
            max_model_len: self.engine.info().max_model_len,
        }
    }

    /// The same for an answer that began elsewhere.
    pub fn head_again(&self, head: &AnswerHead) -> Head {
        Head {
            id: head.id.clone(),
            created: head.created,
            model: head.model.clone(),
            system_fingerprint: self.engine.info().identity.numerics_id.clone(),
        }
    }

    /// What every chunk of a response repeats.
    pub fn head(&self, prefix: &str) -> Head {
        Head {
            id: format!("{prefix}-{:016x}{:016x}", random(), random()),
            created: unix_seconds(),
            model: self.name().to_owned(),
            system_fingerprint: self.engine.info().identity.numerics_id.clone(),
        }
    }
}

/// What every chunk of a response repeats.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub id: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
}

/// A hub name as it is, a directory by its last part; then the model as it was given.
fn default_names(engine: &Engine) -> Vec<String> {
    let info = engine.info();
    let path = std::path::Path::new(&info.model);
    let mut names = Vec::new();
    if path.is_dir() {
        // The last part of `.` or `..` is only known to the file system.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    if !names.contains(&info.model) {
        names.push(info.model.clone());
    }
    names
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Bits from the operating system, by way of the standard library's hash keys.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
