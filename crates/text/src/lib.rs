//! Text in, token ids out, and back again one token at a time.
//!
//! A server reads three files it did not write: `tokenizer.json`, a chat template and the request.
//! Any of them can be broken or hostile, and the libraries that interpret them panic, hang or ask for
//! gigabytes when they are. This crate stands in between: it validates a tokenizer before the
//! `tokenizers` library parses it, runs chat templates under limits in an environment that prints what
//! transformers prints, and turns ids back into text incrementally, exactly, without ever emitting half
//! a character.
//!
//! ```
//! use anyfleet_text::{Detokenizer, StopStrings, Tokenizer};
//!
//! # fn main() -> anyfleet_text::Result<()> {
//! let json = r#"{"version": "1.0",
//!     "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
//!     "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
//!     "model": {"type": "BPE", "merges": [["h", "i"]],
//!               "vocab": {"h": 0, "i": 1, "hi": 2, "Ã": 3, "©": 4, "!": 5}}}"#;
//! let tokenizer = Tokenizer::from_bytes(json.as_bytes())?;
//! assert_eq!(tokenizer.encode("hié!", true)?, [2, 3, 4, 5]);
//!
//! let mut text = Detokenizer::new(&tokenizer, true);
//! let mut stops = StopStrings::new(["!"], false);
//! assert_eq!(text.push(2), "hi");
//! assert_eq!(text.push(3), ""); // the first of the two bytes of "é"
//! assert_eq!(stops.push(&text.push(4)), ("é".to_string(), None));
//! assert_eq!(stops.push(&text.push(5)), (String::new(), Some(0)));
//! # Ok(())
//! # }
//! ```

mod decode;
mod detokenizer;
mod error;
mod file;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use error::{Error, Result};
pub use file::Files;
pub use stop::StopStrings;
pub use template::{ChatInput, ChatTemplate};
pub use tokenizer::{SpecialTokens, Tokenizer};
