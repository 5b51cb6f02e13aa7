//! Model directories from outside: sound, wrong and hostile ones, and where they come from.
mod common;
mod hostile;
mod hub;
