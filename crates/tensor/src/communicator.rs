//! Sums over devices that share layers.
use crate::{Backend, Error, Result, Tensor};

/// One rank's end of a group of devices, each of which computes parts of the same sums. Each rank has a thread.
///
/// A rank that fails must not leave the others waiting: they learn of it from [`Communicator::abort`].
pub trait Communicator<B: Backend>: Send {
    /// A step begins: every rank calls this with the same number, another one each time, before its first sum and after
    /// all ranks are through with the step before.
    fn begin(&mut self, step: u64);

    /// Replaces the contiguous `x` by its sum over all ranks, element by element. Every rank gets the same bits, and each
    /// element's sum has one order, whatever the number of rows: a row's result must not depend on its company. Ordered
    /// with everything else that goes through `device`; it need not have happened when this returns.
    ///
    /// # Errors
    /// A transfer's, or the error another rank was stopped by.
    fn all_reduce(&mut self, device: &B, x: &Tensor<B>) -> Result<()>;

    /// This rank goes no further in this step: whoever waits for it gets `error`.
    fn abort(&mut self, error: &Error);
}
