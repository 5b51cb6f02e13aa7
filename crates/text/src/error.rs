use std::path::PathBuf;

/// What can go wrong between a user's text or files and token ids.
///
/// Every message is one line that names the file or the part of it, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read, is not a regular file, or is larger than any real one.
    #[error("{}: {reason}; correct the file or download it again", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// A tokenizer file that is broken, or that asks for something no tokenizer needs.
    #[error("{origin}: {reason}; correct the file or download it again")]
    Tokenizer {
        /// The file (or `tokenizer.json` when it came as bytes).
        origin: String,
        /// The field and the reason.
        reason: String,
    },
    /// A text could not be turned into ids, or ids into text.
    #[error("tokenizer: {0}")]
    Encode(String),
    /// A text has more tokens than the caller can take.
    #[error("the text has {} tokens, the limit is {limit}", count_phrase(*tokens, *exact))]
    TooLong {
        /// Tokens in the text: exact, or a lower bound when the text was refused unread.
        tokens: usize,
        /// Whether `tokens` is a count rather than a lower bound.
        exact: bool,
        /// The largest number of tokens the caller allowed.
        limit: usize,
    },
    /// A chat template that does not parse, raised an exception, or failed while it ran.
    #[error("chat template: {0}")]
    Template(String),
    /// A chat template ran past its step or output limit.
    #[error("chat template: {0}")]
    TemplateLimit(String),
}

fn count_phrase(tokens: usize, exact: bool) -> String {
    if exact { tokens.to_string() } else { format!("at least {tokens}") }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A message from a library as one line of bounded length.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    const LIMIT: usize = 400;
    let text = message.to_string();
    let mut line = String::with_capacity(text.len().min(LIMIT));
    for part in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(part);
        if line.len() > LIMIT {
            let mut end = LIMIT;
            while !line.is_char_boundary(end) {
                end -= 1;
            }
            line.truncate(end);
            line.push_str("...");
            break;
        }
    }
    line
}

/// The text of a caught panic.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    one_line(text)
}
