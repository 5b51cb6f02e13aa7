//! The API over real sockets, on the `tiny-chat` fixture: random weights, a byte-level tokenizer whose
//! tokens often end within a character, a chat template, greedy by default.
mod chat;
mod client;
mod completions;
mod errors;
mod fleet;
mod lifecycle;
mod load;
mod schema;
mod server;
