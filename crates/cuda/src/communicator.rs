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
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
}

impl Meeting {
    /// Nothing is left half done in it where a rank panics.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> std::result::Result<Arc<dyn Group>, String> {
        let numbers: Vec<usize> = self.drivers.iter().map(|driver| driver.description().index).collect();
        self.drivers[0].group(&numbers)
    }
}

/// A rank's end of a group.
pub(crate) struct CudaCommunicator {
    meeting: Arc<Meeting>,
    rank: usize,
    /// Sums this rank has taken part in, in this step.
    sums: usize,
    /// The parts of all ranks, one after the other.
    parts: CudaBuffer,
    /// Elements of a part.
    most: usize,
}

/// Device bytes of each end.
pub(crate) fn bytes(ranks: usize, most: usize) -> usize {
    4 * ranks * most
}

/// A group of devices, or nothing where there is no library for it, which the log says.
pub(crate) fn group(devices: &[&CudaBackend], most: usize) -> Result<Option<Vec<CudaCommunicator>>> {
    let drivers: Vec<_> = devices.iter().map(|device| device.driver().clone()).collect();
    let meeting = Meeting { state: Mutex::default(), changed: Condvar::new(), drivers };
    let names = || devices.iter().map(|device| device.caps().device.as_str()).collect::<Vec<_>>().join(" + ");
    match meeting.open() {
        Ok(group) => meeting.state().group = Some(group),
        Err(reason) => {
            tracing::warn!("sums of {} go through the host's memory: {reason}", names());
            return Ok(None);
        }
    }
    let (meeting, ranks) = (Arc::new(meeting), devices.len());
    let end = |rank: usize| {
        let parts = CudaBuffer::new(devices[rank].driver(), bytes(ranks, most), "the parts of a sum")?;
        let end = CudaCommunicator { meeting: meeting.clone(), rank, sums: 0, parts, most };
        // So that the kernel is compiled and loaded now.
        end.addition(devices[rank], end.parts.address(), 1)?;
        Ok(end)
    };
    (0..ranks).map(end).collect::<Result<_>>().map(Some)
}

impl CudaCommunicator {
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
        let (parts, ranks) = (self.parts.address(), self.meeting.drivers.len() as u32);
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
        unsafe { device.driver().all_gather(&*group, self.rank, at, self.parts.address(), count)? };
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
        if x.dtype() != DType::F32 || x.len() > self.most {
            let details = format!("{x:?}, {} elements at most", self.most);
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
