//! Devices of different backends side by side.
use crate::group::End;
use crate::plan::{ExecutorOptions, MemoryPlan, Placed};
use crate::split::Part;
use crate::stage::{Stage, StageExecutor};
use anyfleet_models::{Decoder, LoadError, LoadOptions, Shard};
use anyfleet_tensor::{Backend, Caps, Communicator, Result as DeviceResult};
use anyfleet_weights::ModelDir;
use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;

/// A device of whatever backend.
pub struct AnyDevice(Box<dyn Erased>);

impl AnyDevice {
    /// Forgets which backend it is.
    pub fn new<B: Backend>(device: Arc<B>) -> Self {
        AnyDevice(Box::new(device))
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        self.0.caps()
    }

    pub(crate) fn placed<'a>(&'a self, part: &'a Part) -> Placed<'a> {
        self.0.placed(&part.shard, &part.options, part.available)
    }

    /// Ends of a group of `devices`, of which this is one, for sums of at most `most` elements; nothing where they are of
    /// different backends, or have no way to each other.
    pub(crate) fn group(&self, devices: &[&AnyDevice], most: usize) -> DeviceResult<Option<Vec<End>>> {
        self.0.group(devices, most)
    }

    pub(crate) fn load(&self, load: Load<'_>) -> Result<Box<dyn Stage>, LoadError> {
        self.0.load(load)
    }
}

/// How to bring a part onto its device.
pub(crate) struct Load<'a> {
    pub dir: &'a ModelDir,
    pub part: &'a Part,
    pub plan: &'a MemoryPlan,
    pub options: LoadOptions,
    /// Where the part is one of several ranks.
    pub group: Option<End>,
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// What a split model needs of a device, in types that name no backend.
trait Erased: Send + Sync {
    fn caps(&self) -> &Caps;
    fn placed<'a>(&'a self, shard: &'a Shard, options: &'a ExecutorOptions, available: Option<u64>) -> Placed<'a>;
    fn group(&self, devices: &[&AnyDevice], most: usize) -> DeviceResult<Option<Vec<End>>>;
    fn load(&self, load: Load<'_>) -> Result<Box<dyn Stage>, LoadError>;
    /// An `Arc` of the backend.
    fn as_any(&self) -> &dyn Any;
}

impl<B: Backend> Erased for Arc<B> {
    fn caps(&self) -> &Caps {
        (**self).caps()
    }

    fn placed<'a>(&'a self, shard: &'a Shard, options: &'a ExecutorOptions, available: Option<u64>) -> Placed<'a> {
        Placed::new(&**self, shard, options, available)
    }

    fn group(&self, devices: &[&AnyDevice], most: usize) -> DeviceResult<Option<Vec<End>>> {
        let own = devices.iter().map(|device| device.0.as_any().downcast_ref::<Arc<B>>().map(|device| &**device));
        let Some(devices) = own.collect::<Option<Vec<&B>>>() else { return Ok(None) };
        let ends = B::communicators(&devices, most)?;
        Ok(ends.map(|ends| ends.into_iter().map(|end| End::Device(Box::new(end))).collect()))
    }

    fn load(&self, load: Load<'_>) -> Result<Box<dyn Stage>, LoadError> {
        let Load { dir, part, plan, options, group, progress } = load;
        let decoder = Decoder::load_shard(&**self, dir, &part.shard, options, progress)?;
        let group = group.map(|end| match end {
            End::Host(end) => Box::new(end) as Box<dyn Communicator<B>>,
            End::Device(end) => *end.downcast().expect("a group is of one backend"),
        });
        Ok(Box::new(StageExecutor::new(self.clone(), decoder, &part.options, plan, group)?))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
