//! Sums over devices of this process that share layers, without the host.
//!
//! NCCL's own sums have no stated order. So its all-gather brings every rank's part to every rank, and `sum_ranks` adds them
//! there in the order of ranks: the bits are those of a sum through the host. A rank receives the other ranks' parts whole,
//! `(ranks - 1) * elements * 4` bytes: of two ranks as much as a sum by NCCL would move, of four twice as much.
//!
//! Ranks meet on the host before each gather. None is asked of a device whose peers might never come, so that an error of
//! one rank leaves no other's device waiting; where a device fails with a gather under way, the group is stopped, and made anew
//! for the next step.
use crate::driver::{Driver, Group, Prepared};
use crate::{CudaBackend, CudaBuffer, CudaRecorder};
use anyfleet_tensor::{Backend, Communicator, DType, Error, Result, Tensor};
use bytemuck::{Pod, Zeroable};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Threads of a block, four elements each.
const THREADS: usize = 256;

/// `SumRanksParams` of `sum_ranks.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    out: u64,
    parts: u64,
    count: u32,
    ranks: u32,
}

/// The longest that first gathers may take. Where devices are said to reach each other and do not, they never end.
const LONGEST: Duration = Duration::from_secs(30);

/// Waits for all of `waits`. Where one fails, or `limit` is over, `stop` ends the others.
fn all_within<W>(limit: Duration, waits: Vec<W>, stop: impl FnOnce()) -> Result<()>
where
    W: FnOnce() -> Result<()> + Send,
{
    std::thread::scope(|scope| {
        let (sender, ended) = channel();
        let (count, end) = (waits.len(), Instant::now() + limit);
        for wait in waits {
            let sender = sender.clone();
            // One that cannot be started has not ended, either.
            let _ = Builder::new().spawn_scoped(scope, move || sender.send(wait()));
        }
        drop(sender);
        let mut outcomes = (0..count).map(|_| {
            let left = end.saturating_duration_since(Instant::now());
            ended.recv_timeout(left).unwrap_or_else(|_| {
                let reason = format!("what they send each other does not arrive within {} s", limit.as_secs());
                Err(Error::Device { device: "several devices".into(), reason })
            })
        });
        outcomes.try_for_each(|outcome| outcome).inspect_err(|_| stop())
    })
}

#[derive(Default)]
struct State {
    step: u64,
    /// Ranks that came to a gather of this step, over all of them.
    arrived: usize,
    failure: Option<Error>,
    /// Nothing where it was stopped.
    group: Option<Arc<dyn Group>>,
}

/// Where the ranks of a group meet.
struct Meeting {
    /// Before the devices, whose streams it knows.
    state: Mutex<State>,
    changed: Condvar,
    drivers: Vec<Arc<dyn Driver>>,
    /// On each device the parts of all ranks, one after the other.
    parts: Vec<CudaBuffer>,
    /// Elements of a part.
    most: usize,
}

impl Meeting {
    /// Nothing is left half done in it where a rank panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group whose devices have found their ways to each other. No gather may be under way.
    fn open(&self) -> std::result::Result<Arc<dyn Group>, String> {
        let numbers: Vec<usize> = self.drivers.iter().map(|driver| driver.description().index).collect();
        let group = self.drivers[0].group(&numbers)?;
        match self.connect(&*group) {
            Ok(()) => Ok(group),
            Err(error) => {
                group.abort();
                Err(error.to_string())
            }
        }
    }

    /// Gathers what there is, in many sizes: which way is taken depends on them.
    fn connect(&self, group: &dyn Group) -> Result<()> {
        let smaller = std::iter::successors(Some(1), |count| Some(4 * count)).take_while(|&count| count < self.most);
        for count in smaller.chain([self.most]) {
            group.connect(&mut || {
                let mut ranks = self.drivers.iter().zip(&self.parts).enumerate();
                ranks.try_for_each(|(rank, (driver, parts))| {
                    let (to, own) = (parts.address(), 4 * (rank * count) as u64);
                    // SAFETY: there is room for so many elements of each rank, and a rank's may lie where they go; the
                    // device is waited for below.
                    unsafe { driver.all_gather(group, rank, to + own, to, count) }
                })
            })?;
        }
        let waits = self.drivers.iter().map(|driver| move || driver.synchronize()).collect();
        all_within(LONGEST, waits, || group.abort())
    }
}

/// A rank's end of a group.
pub(crate) struct CudaCommunicator {
    meeting: Arc<Meeting>,
    rank: usize,
    /// Sums this rank has taken part in, in this step.
    sums: usize,
}

/// Device bytes of each end.
pub(crate) fn bytes(ranks: usize, most: usize) -> usize {
    4 * ranks * most
}

/// A group of devices, or nothing where there is no library for it, which the log says.
pub(crate) fn group(devices: &[&CudaBackend], most: usize) -> Result<Option<Vec<CudaCommunicator>>> {
    let drivers: Vec<_> = devices.iter().map(|device| device.driver().clone()).collect();
    let names = || devices.iter().map(|device| device.caps().device.as_str()).collect::<Vec<_>>().join(" + ");
    let by_the_host = |reason: String| {
        tracing::warn!("sums of {} go through the host's memory: {reason}", names());
        Ok(None)
    };
    // Without a library no memory was planned.
    if let Err(reason) = drivers[0].gathers() {
        return by_the_host(reason);
    }
    let ranks = devices.len();
    let parts = drivers.iter().map(|driver| CudaBuffer::new(driver, bytes(ranks, most), "the parts of a sum"));
    let parts = parts.collect::<Result<_>>()?;
    let meeting = Meeting { state: Mutex::default(), changed: Condvar::new(), drivers, parts, most };
    let group = match meeting.open() {
        Ok(group) => group,
        Err(reason) => return by_the_host(reason),
    };
    meeting.state().group = Some(group);
    let meeting = Arc::new(meeting);
    let end = |rank: usize| {
        let end = CudaCommunicator { meeting: meeting.clone(), rank, sums: 0 };
        // So that the kernel is compiled and loaded now.
        end.addition(devices[rank], end.parts(), 1)?;
        Ok(end)
    };
    (0..ranks).map(end).collect::<Result<_>>().map(Some)
}

impl CudaCommunicator {
    /// Where the parts of all ranks go.
    fn parts(&self) -> u64 {
        self.meeting.parts[self.rank].address()
    }

    /// Waits until all ranks have come to this sum.
    fn meet(&mut self) -> Result<Arc<dyn Group>> {
        self.sums += 1;
        let want = self.sums * self.meeting.drivers.len();
        let mut state = self.meeting.state();
        state.arrived += 1;
        if state.arrived == want {
            self.meeting.changed.notify_all();
        }
        loop {
            match (&state.failure, &state.group) {
                (Some(error), _) => return Err(error.clone()),
                (None, Some(group)) if state.arrived >= want => return Ok(group.clone()),
                _ => state = self.meeting.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Of the parts of all ranks, `count` elements each.
    fn addition(&self, device: &CudaBackend, out: u64, count: usize) -> Result<Box<dyn Prepared>> {
        let (parts, ranks) = (self.parts(), self.meeting.drivers.len() as u32);
        let params = Params { out, parts, count: count as u32, ranks };
        let mut recorder = CudaRecorder::new(device.clone());
        recorder.launch(("sum_ranks", "sum_ranks"), [count.div_ceil(4 * THREADS), 1, 1], THREADS, 0, &params)?;
        device.driver().prepare(recorder.work, false)
    }

    fn sum(&mut self, device: &CudaBackend, x: &Tensor<CudaBackend>) -> Result<()> {
        let (at, count) = (x.buffer().address() + x.offset() as u64, x.len());
        let addition = self.addition(device, at, count)?;
        let group = self.meet()?;
        // SAFETY: the tensor has so many elements, the parts have room for as many of each rank, and both outlive this: what
        // is freed waits for the device.
        unsafe { device.driver().all_gather(&*group, self.rank, at, self.parts(), count)? };
        addition.run()
    }
}

impl Communicator<CudaBackend> for CudaCommunicator {
    fn begin(&mut self, step: u64) {
        self.sums = 0;
        let mut state = self.meeting.state();
        if state.step == step {
            return;
        }
        let group = state.group.take();
        *state = State { step, group, ..State::default() };
        if state.group.is_none() {
            match self.meeting.open() {
                Ok(group) => state.group = Some(group),
                Err(reason) => {
                    let device = "several devices".into();
                    state.failure = Some(Error::Device { device, reason: format!("they cannot join again: {reason}") });
                }
            }
        }
    }

    fn all_reduce(&mut self, device: &CudaBackend, x: &Tensor<CudaBackend>) -> Result<()> {
        if x.dtype() != DType::F32 || x.len() > self.meeting.most {
            let details = format!("{x:?}, {} elements at most", self.meeting.most);
            let (what, remedy) = ("ranks add f32 up to what was planned", "use fewer tokens a step");
            return Err(Error::Shape { op: "all_reduce", what, details, remedy });
        }
        if x.is_empty() {
            return Ok(());
        }
        // What stopped another rank says more than that its group is gone.
        self.sum(device, x).map_err(|error| self.meeting.state().failure.clone().unwrap_or(error))
    }

    fn abort(&mut self, error: &Error) {
        let mut state = self.meeting.state();
        state.failure.get_or_insert_with(|| error.clone());
        let group = state.group.take();
        drop(state);
        self.meeting.changed.notify_all();
        if let Some(group) = group {
            group.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn broken() -> Result<()> {
        Err(Error::Device { device: "one".into(), reason: "is gone".into() })
    }

    #[test]
    fn who_waits_for_one_that_never_comes_is_stopped() {
        type Wait<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;
        let stopped = Barrier::new(2);
        let stop = || {
            stopped.wait();
        };
        let fine = || Ok(());
        let waits = || -> Wait<'_> {
            Box::new(|| {
                stop();
                fine()
            })
        };
        let error = all_within(Duration::from_millis(1), vec![waits(), Box::new(fine)], stop).unwrap_err();
        assert!(error.to_string().contains("does not arrive"), "{error}");
        let error = all_within(LONGEST, vec![waits(), Box::new(broken)], stop).unwrap_err();
        assert_eq!(error.to_string(), "one: is gone");
        all_within(LONGEST, vec![fine; 2], || panic!("nothing to stop")).unwrap();
    }
}
