//! Sums over ranks through the host's memory: for devices that have no other way to each other.
use crate::residual;
use anyfleet_tensor::{Backend, Communicator, Error, Result, Tensor};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

/// Where the ranks of a group meet.
struct Exchange {
    ranks: usize,
    state: Mutex<State>,
    changed: Condvar,
    /// A rank's part of a sum. Two sets in turn: a rank that is at the next sum overwrites nothing that another still
    /// reads, and none is two ahead, because it would have had to wait for all in between.
    slots: [Vec<RwLock<Vec<f32>>>; 2],
}

#[derive(Default)]
struct State {
    step: u64,
    /// Parts brought in this step, over all ranks and sums.
    arrived: usize,
    failure: Option<Error>,
}

impl Exchange {
    /// Nothing is left half done in it where a rank panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank's end of a group that meets in the host's memory.
pub(crate) struct HostCommunicator {
    exchange: Arc<Exchange>,
    rank: usize,
    /// Sums this rank has taken part in, in this step.
    sums: usize,
    total: Vec<f32>,
}

impl HostCommunicator {
    /// A group of `ranks`, one end for each.
    pub(crate) fn group(ranks: usize) -> Vec<HostCommunicator> {
        let slots = || (0..ranks).map(|_| RwLock::default()).collect();
        let exchange =
            Arc::new(Exchange { ranks, state: Mutex::default(), changed: Condvar::new(), slots: [slots(), slots()] });
        let end = |rank| HostCommunicator { exchange: exchange.clone(), rank, sums: 0, total: Vec::new() };
        (0..ranks).map(end).collect()
    }

    /// Waits until all ranks have brought their part of this sum.
    fn meet(&mut self) -> Result<()> {
        self.sums += 1;
        let want = self.sums * self.exchange.ranks;
        let mut state = self.exchange.state();
        state.arrived += 1;
        if state.arrived == want {
            self.exchange.changed.notify_all();
        }
        while state.arrived < want {
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            state = self.exchange.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }
}

impl<B: Backend> Communicator<B> for HostCommunicator {
    fn begin(&mut self, step: u64) {
        self.sums = 0;
        let mut state = self.exchange.state();
        if state.step != step {
            *state = State { step, ..State::default() };
        }
    }

    fn all_reduce(&mut self, device: &B, x: &Tensor<B>) -> Result<()> {
        let exchange = self.exchange.clone();
        let slots = &exchange.slots[self.sums % 2];
        {
            let mut own = slots[self.rank].write().unwrap_or_else(PoisonError::into_inner);
            residual::read(device, x, &mut own)?;
        }
        self.meet()?;
        // Every rank adds all parts itself, in the order of ranks: all have the same bits.
        self.total.clear();
        for slot in slots {
            let part = slot.read().unwrap_or_else(PoisonError::into_inner);
            match self.total.is_empty() {
                true => self.total.extend_from_slice(&part),
                false => self.total.iter_mut().zip(part.iter()).for_each(|(sum, &value)| *sum += value),
            }
        }
        residual::write(device, x, &self.total)
    }

    fn abort(&mut self, error: &Error) {
        self.exchange.state().failure.get_or_insert_with(|| error.clone());
        self.exchange.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_tensor::DType;
    use anyfleet_tensor::null::NullBackend;

    /// Each rank's values after `sums` sums of what it has.
    fn run(parts: &[Vec<f32>], dtype: DType, sums: usize) -> Vec<Result<Vec<f32>>> {
        let group = HostCommunicator::group(parts.len());
        std::thread::scope(|scope| {
            let rank = |(mut end, values): (HostCommunicator, &Vec<f32>)| {
                let values = values.clone();
                scope.spawn(move || {
                    let device = NullBackend::default();
                    let x = Tensor::new(&device, dtype, &[1, values.len()])?;
                    Communicator::<NullBackend>::begin(&mut end, 1);
                    residual::write(&device, &x, &values)?;
                    (0..sums).try_for_each(|_| end.all_reduce(&device, &x))?;
                    let mut out = Vec::new();
                    residual::read(&device, &x, &mut out).map(|()| out)
                })
            };
            let threads: Vec<_> = group.into_iter().zip(parts).map(rank).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    #[test]
    fn all_ranks_have_the_sum_in_the_order_of_ranks() {
        // In another order the small numbers would not be lost.
        let parts = [vec![1e8, 1.0], vec![1.0, 2.0], vec![-1e8, 3.0]];
        for found in run(&parts, DType::F32, 1) {
            assert_eq!(found.unwrap(), [0.0, 6.0]);
        }
        for found in run(&[vec![1.0; 3], vec![2.0; 3]], DType::BF16, 5) {
            // 3, 6, 12, ...
            assert_eq!(found.unwrap(), [48.0; 3]);
        }
    }

    #[test]
    fn a_rank_that_fails_stops_those_that_wait_and_the_next_step_goes_on() {
        let device = NullBackend::default();
        let mut group = HostCommunicator::group(2);
        let (mut second, mut first) = (group.pop().unwrap(), group.pop().unwrap());
        let error = Error::Device { device: "second".into(), reason: "is gone".into() };
        let begin = |end: &mut HostCommunicator, step| Communicator::<NullBackend>::begin(end, step);
        let x = Tensor::new(&device, DType::F32, &[1, 1]).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                begin(&mut first, 7);
                first.all_reduce(&device, &x)
            });
            begin(&mut second, 7);
            Communicator::<NullBackend>::abort(&mut second, &error);
            assert_eq!(waits.join().unwrap().unwrap_err().to_string(), "second: is gone");
        });
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                begin(&mut first, 8);
                first.all_reduce(&NullBackend::default(), &x)
            });
            begin(&mut second, 8);
            second.all_reduce(&device, &Tensor::new(&device, DType::F32, &[1, 1]).unwrap()).unwrap();
            other.join().unwrap().unwrap();
        });
    }
}
