//! The runtime decides, in plain data, which tokens of which sequences run in the next step.
//!
//! ```text
//! schedule -> submit(batch) -> wait(ids) -> postprocess -> stream out
//! ```
//! It never sees a tensor, and a device never sees a request: between them go a [`Batch`] and a
//! [`StepOutput`].
//!
//! # The life of a request
//! 1. [`Runtime::add`] checks it and refuses what is malformed, what could never fit and what the
//!    queue has no room for. Each of its `n` choices becomes a sequence that waits.
//! 2. The scheduler starts sequences in order of arrival. A lease on the cache takes over the pages
//!    of the longest cached prefix that every cache group can restore; later choices wait for the
//!    first one's prompt so as to share it.
//! 3. Each step goes to decodes first; what room is left goes to prompts, in chunks, oldest first.
//!    When pages run out, the latest arrival gives its own up and will start over; the oldest
//!    always progresses.
//! 4. The plan is written out as a [`Batch`]: rows, slots, block tables, states to read and write,
//!    and for each row that chooses a token all that its choice depends on, the tokens that a
//!    [`Constraint`] allows among it.
//! 5. [`Executor::submit`] starts it. With two steps in flight the next one is planned at once, and
//!    decodes whose input is not known yet name the row that chooses it.
//! 6. [`Executor::wait`] returns the chosen tokens. Each is appended to its sequence and counted for
//!    penalties; full pages are registered under the exact tokens they hold.
//! 7. The token becomes text, is held back while it could be half a character or begin a stop
//!    string, and goes out as [`Event::Delta`].
//! 8. An end-of-sequence token, a stop token or string, or a length ends the choice:
//!    [`Event::Finished`]. Its pages are free, or cached for whoever begins alike. A failed step
//!    ends its requests with [`Event::Failed`] instead, and [`Runtime::cancel`] ends one silently.
//! 9. [`Runtime::suspend`] ends one with a [`RequestSnapshot`], with which [`Runtime::resume`] goes on,
//!    here or on another machine: its tokens are replayed as if they had just been chosen.
//!
//! # Invariants
//! - A token depends on the request, its choice and its position, never on the schedule: the same
//!   request yields the same tokens alone, in any company, after prefix hits and preemption.
//! - Pages are shared only between equal prefixes of equal tenants and adapters, and a page that
//!   more than one sequence can see is never written.
//! - Every page is free, cached or owned by the sequences it counts ([`Runtime::check_invariants`]).
//! - Nothing in a step is linear in the vocabulary or quadratic in tokens, but for a bit a token in the masks of requests
//!   with a [`Constraint`].
mod adjust;
mod assemble;
mod batch;
mod cache;
mod constraint;
mod executor;
pub mod null;
mod output;
mod pages;
mod params;
mod postprocess;
mod prefix;
mod request;
mod runtime;
mod scheduler;
mod sequence;
mod snapshot;
mod stats;

pub use batch::*;
pub use constraint::Constraint;
pub use executor::*;
pub use params::*;
pub use request::*;
pub use runtime::*;
pub use snapshot::{ChoiceSnapshot, Identity, RequestSnapshot, SnapshotError};
pub use stats::*;
