//! Model directories from outside: sound, wrong and hostile ones, and where they come from.
mod bundle;
mod common;
mod f8;
mod hostile;
mod hub;
mod pack;
