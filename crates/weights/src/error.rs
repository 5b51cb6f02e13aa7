//! Errors: one line each, naming the file, what is wrong with it and what to do.
use std::path::Path;

/// Result of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a model directory. Every message is a single line; text that comes from
/// files is escaped and shortened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory that cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A value in a JSON configuration file.
    #[error("{file}: {key} is {found}; expected {expected}")]
    Config {
        /// The file.
        file: String,
        /// Dotted path of the key.
        key: String,
        /// The value found, or `missing`.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor of the checkpoint.
    #[error("{file}: tensor {name} {reason}")]
    Tensor {
        /// The file, or the directory where no file has it.
        file: String,
        /// The tensor.
        name: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A model that is well formed, but that this program does not run.
    #[error("{file}: {reason}")]
    Unsupported {
        /// The configuration file.
        file: String,
        /// What is not supported and what is.
        reason: String,
    },
    /// A model that is neither a directory nor to be had from the cache or the hub.
    #[error("model {model}: {reason}")]
    Hub {
        /// The model as it was asked for.
        model: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl Error {
    /// [`Error::File`] for `path`.
    pub fn file(path: &Path, reason: impl AsRef<str>) -> Self {
        Error::File { path: show_path(path), reason: one_line(reason.as_ref()) }
    }

    pub(crate) fn tensor(file: &Path, name: &str, reason: impl AsRef<str>) -> Self {
        Error::Tensor { file: show_path(file), name: quote(name), reason: one_line(reason.as_ref()) }
    }
}

/// Longest piece of a file's own text shown in a message, in characters.
const QUOTE_CHARS: usize = 120;

/// `text` for a message: without control characters and, where it is long, shortened. What comes from
/// a hostile file must not fill a screen or forge a second line.
pub fn quote(text: &str) -> String {
    let mut shown: String = text.chars().take(QUOTE_CHARS).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    one_line(&shown)
}

/// `text` with control characters escaped.
fn one_line(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// A path for messages.
pub(crate) fn show_path(path: &Path) -> String {
    one_line(&path.to_string_lossy())
}
