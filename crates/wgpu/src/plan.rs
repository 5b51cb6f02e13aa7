//! Resolved dispatches.
use crate::context::{Context, Pipeline};
use std::sync::Arc;

/// One kernel with everything it is given.
pub(crate) struct Dispatch {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) groups: [u32; 3],
}

/// Operations with pipelines and bind groups resolved.
pub struct WgpuPlan {
    pub(crate) dispatches: Vec<Dispatch>,
    pub(crate) bound: u64,
}

impl WgpuPlan {
    /// How many kernels it runs.
    pub fn dispatches(&self) -> usize {
        self.dispatches.len()
    }

    /// Bytes of all ranges that its kernels are given, the same range counted as often as it is.
    pub fn bound_bytes(&self) -> u64 {
        self.bound
    }

    /// Adds the plan to what is submitted next, as one compute pass.
    pub(crate) fn encode(&self, context: &Context) {
        context.encode(|encoder| {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for dispatch in &self.dispatches {
                let [x, y, z] = dispatch.groups;
                pass.set_pipeline(&dispatch.pipeline.raw);
                pass.set_bind_group(0, &dispatch.bind_group, &[]);
                pass.dispatch_workgroups(x, y, z);
            }
        });
    }
}
