//! One suite of op cases that holds every backend to a naive reference.
//!
//! A case ([`cases`]) draws fresh inputs, puts them on the device among poisoned memory, runs one
//! op and compares every output with a reference written in f64 from the op's documentation: close
//! enough by element and by mean square, nothing written outside the live rows, no input changed,
//! the same bits again and from a replayed plan. Properties ([`property`]) compare bits between
//! batches: what a row computes does not depend on the rows beside it.
//!
//! What this crate does **not** know: how any backend works. [`suite::suite`] takes any
//! [`Backend`](anyfleet_tensor::Backend).
//!
//! ```
//! use anyfleet_conformance::{case::{Case, Verdict}, cases::{linear::Residual, norm::NormCase}, matrix::Spread};
//! use anyfleet_tensor::{DType, Live, null::NullBackend};
//! let case = NormCase {
//!     rows: 3,
//!     padding: 2,
//!     width: 80,
//!     activation: DType::F32,
//!     in_place: false,
//!     residual: Residual::None,
//!     spread: Spread::Outliers,
//!     eps: 1e-6,
//!     live: Live::Tokens,
//! };
//! let outcome = case.run(&NullBackend::default(), 1);
//! assert_eq!(outcome.verdict, Verdict::Fail);
//! assert!(outcome.detail.contains("never written"), "{}", outcome.detail);
//! ```
pub mod case;
pub mod cases;
pub mod expect;
mod large;
pub mod matrix;
pub mod number;
pub mod operand;
pub mod property;
pub mod report;
pub mod require;
pub mod rng;
pub mod stage;
pub mod suite;
pub mod support;
