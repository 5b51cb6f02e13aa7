//! Resolved dispatches.
use crate::context::{Context, Pipeline};
use crate::encoder::Range;
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
    /// What they are given.
    pub(crate) ranges: Arc<[Range]>,
}

impl WgpuPlan {
    /// Adds the plan to what is submitted next, as one compute pass.
    pub(crate) fn encode(&self, context: &Context) {
        context.note(&self.ranges, self.dispatches.len());
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
