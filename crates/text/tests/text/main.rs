//! The tests of `anyfleet-text`. Those that need the shared data say so where it is missing.

mod chat_templates;
mod common;
mod detokenizer;
mod files;
mod hostile_templates;
mod hostile_tokenizers;
mod library;
mod published_templates;
mod stop_strings;
mod tokenizer;
