//! Hostile checkpoints, flags and requests against the `serve` binary: whatever strangers write ends
//! in one clear line and exit code 1, or in a 4xx answer while other requests go on being served.
//!
//! Every start runs under a limit of address space and of time, so runaway memory and hangs fail too.
#![cfg(unix)]
mod checkpoint;
mod config;
mod files;
mod flags;
mod http;
mod process;
mod requests;
mod storm;
mod templates;
mod tokenizer;
mod weights;
