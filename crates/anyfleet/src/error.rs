//! What can go wrong, one line each.

/// Result of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure that a user, an operator or a device caused. `Display` is one line that says what is
/// wrong, where, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model directory, name or file that cannot be used.
    #[error("{0}")]
    Model(String),
    /// A device that cannot be used, or that failed.
    #[error("{0}")]
    Device(String),
    /// The model does not fit the device as asked.
    #[error("{0}")]
    Plan(String),
    /// A request that cannot be served as it stands.
    #[error("{message}")]
    Request {
        /// The parameter at fault, where one is.
        param: Option<String>,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// Prompt and output do not fit the model's context.
    #[error(
        "this model's context holds {max} tokens, but {prompt} were given in the prompt and {requested} asked for as output; shorten one of them"
    )]
    ContextLength {
        /// Tokens per sequence the engine takes.
        max: usize,
        /// Tokens of the prompt; a lower bound where the text was too long to tokenize.
        prompt: usize,
        /// Tokens asked for as output.
        requested: usize,
    },
    /// Too many requests are waiting.
    #[error("{waiting} requests are waiting already, which is the limit; try again later or raise --max-queue")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down and takes no new requests")]
    ShuttingDown,
    /// The device failed while the request ran.
    #[error("the request failed: {0}")]
    Failed(String),
}
