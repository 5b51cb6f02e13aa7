//! Conformance cases as benchmarks: the same shapes, staged contiguously, replayed from a plan.
use anyfleet_conformance::case::{OpCase, Selection};
use anyfleet_conformance::rng::Rng;
use anyfleet_conformance::stage::{Placement, Staged};
use anyfleet_tensor::{Backend, Result};

/// A case on a device with its recorded plan.
pub struct Prepared<B: Backend> {
    plan: B::Plan,
    /// Keeps the operands alive on devices whose plans do not.
    _staged: Staged<B>,
}

impl<B: Backend> Prepared<B> {
    /// Draws the case's inputs, the same in every run, and records its op.
    ///
    /// # Errors
    /// The backend's.
    pub fn new<C: OpCase>(backend: &B, case: &C) -> Result<Self> {
        let host = case.draw(&mut Rng::new(1));
        let selection = Selection::all(case.rows(), case.padding());
        let staged = case.stage(backend, &host, &selection, Placement::Plain)?;
        staged.reset(backend, staged.live())?;
        Ok(Prepared { plan: staged.record(backend)?, _staged: staged })
    }

    /// Runs the op once.
    ///
    /// # Errors
    /// The backend's.
    pub fn run(&self, backend: &B) -> Result<()> {
        backend.replay(&self.plan)
    }
}
