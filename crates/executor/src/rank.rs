//! A thread for each device of a split model.
use crate::split::Step;
use crate::stage::Stage;
use anyfleet_runtime::StepOutput;
use anyfleet_tensor::{Error, Result};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What a rank is asked to do.
pub(crate) enum Job {
    /// Record all plans; ranks meet in it as in a step, whose number it has.
    WarmUp { step: u64 },
    /// A step.
    Run { step: Arc<Step>, residual: Option<Arc<Vec<f32>>> },
}

/// What a rank hands on after a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Product {
    /// The first of a stage: what the next begins with.
    Residual,
    /// The first of the last stage.
    Output,
    /// Every other: it has what the first has.
    Nothing,
}

/// What a rank answers to a job.
pub(crate) enum Reply {
    Residual(Vec<f32>),
    Output(StepOutput),
    Done,
}

/// A thread and the stage it owns. Each job is answered once, also where the stage fails or panics.
pub(crate) struct Rank {
    /// `None` at the end.
    jobs: Option<Sender<Job>>,
    replies: Receiver<std::thread::Result<Result<Reply>>>,
    thread: Option<JoinHandle<()>>,
}

impl Rank {
    pub(crate) fn spawn(mut stage: Box<dyn Stage>, product: Product) -> Result<Rank> {
        let (jobs, receiver) = channel::<Job>();
        let (sender, replies) = channel();
        let work = move || {
            while let Ok(job) = receiver.recv() {
                let reply = std::panic::catch_unwind(AssertUnwindSafe(|| perform(&mut *stage, product, job)));
                match &reply {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => stage.abort(error),
                    Err(_) => stage.abort(&Error::Device {
                        device: "another device of the group".into(),
                        reason: "its thread panicked; this is a bug".into(),
                    }),
                }
                if sender.send(reply).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("anyfleet-rank".into()).spawn(work).map_err(|e| {
            let reason = format!("a thread could not be started: {e}; name fewer devices");
            Error::Device { device: "several devices".into(), reason }
        })?;
        Ok(Rank { jobs: Some(jobs), replies, thread: Some(thread) })
    }

    /// Gives a job; [`Rank::reply`] must follow.
    pub(crate) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // A thread that is gone says so in the reply.
            let _ = jobs.send(job);
        }
    }

    /// Waits for the answer to the oldest job. A panic goes on here: it is a bug, as it would be on one device.
    pub(crate) fn reply(&self) -> Result<Reply> {
        match self.replies.recv() {
            Ok(Ok(reply)) => reply,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => panic!("executor: the thread of a rank is gone"),
        }
    }
}

fn perform(stage: &mut dyn Stage, product: Product, job: Job) -> Result<Reply> {
    let (step, residual) = match job {
        Job::WarmUp { step } => return stage.warm_up(step).map(|()| Reply::Done),
        Job::Run { step, residual } => (step, residual),
    };
    let values = residual.as_ref().map(|values| values.as_slice());
    stage.run(step.number, &step.batch, Some(&step.sampled), values)?;
    match product {
        Product::Residual => {
            let mut out = Vec::new();
            stage.residual(step.batch.tokens.len(), &mut out).map(|()| Reply::Residual(out))
        }
        Product::Output => {
            let mut out = StepOutput::default();
            stage.output(&mut out).map(|()| Reply::Output(out))
        }
        // Nobody else learns that its device failed, and the first would wait for its parts of sums.
        Product::Nothing => stage.wait().map(|()| Reply::Done),
    }
}

impl Drop for Rank {
    /// The device's memory is free once this returns.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
