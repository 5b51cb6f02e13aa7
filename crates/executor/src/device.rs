//! Devices of different backends side by side.
use crate::exchange::HostCommunicator;
use crate::plan::{ExecutorOptions, MemoryPlan, Placed};
use crate::split::Part;
use crate::stage::{Stage, StageExecutor};
use anyfleet_models::{Decoder, LoadError, LoadOptions, Shard};
use anyfleet_tensor::{Backend, Caps, Communicator};
use anyfleet_weights::ModelDir;
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
    pub group: Option<HostCommunicator>,
    pub progress: &'a mut dyn FnMut(u64, u64) -> ControlFlow<()>,
}

/// What a split model needs of a device, in types that name no backend.
trait Erased: Send + Sync {
    fn caps(&self) -> &Caps;
    fn placed<'a>(&'a self, shard: &'a Shard, options: &'a ExecutorOptions, available: Option<u64>) -> Placed<'a>;
    fn load(&self, load: Load<'_>) -> Result<Box<dyn Stage>, LoadError>;
}

impl<B: Backend> Erased for Arc<B> {
    fn caps(&self) -> &Caps {
        (**self).caps()
    }

    fn placed<'a>(&'a self, shard: &'a Shard, options: &'a ExecutorOptions, available: Option<u64>) -> Placed<'a> {
        Placed::new(&**self, shard, options, available)
    }

    fn load(&self, load: Load<'_>) -> Result<Box<dyn Stage>, LoadError> {
        let Load { dir, part, plan, options, group, progress } = load;
        let decoder = Decoder::load_shard(&**self, dir, &part.shard, options, progress)?;
        let group = group.map(|end| Box::new(end) as Box<dyn Communicator<B>>);
        Ok(Box::new(StageExecutor::new(self.clone(), decoder, &part.options, plan, group)?))
    }
}
