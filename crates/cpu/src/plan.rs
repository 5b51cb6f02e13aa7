//! A recorded list of operations and the loop that executes it.
use crate::ops::act_mul::ActMulOp;
use crate::ops::attention::{self, AttentionOp};
use crate::ops::combine::CombineOp;
use crate::ops::embed::EmbedOp;
use crate::ops::gather::GatherOp;
use crate::ops::grouped_linear::GroupedLinearOp;
use crate::ops::latent_kv::LatentKvOp;
use crate::ops::linear::LinearOp;
use crate::ops::norm::NormOp;
use crate::ops::rope_kv::RopeKvOp;
use crate::ops::route::RouteOp;
use crate::ops::sample::SampleOp;
use crate::ops::softcap::SoftcapOp;
use crate::panels::pack::Rows;
use crate::simd::KernelSet;
use crate::team::{Piece, Team};
use crate::view::View;
use anyfleet_tensor::{Live, StepHeader};
use std::ops::Range;
use std::sync::Arc;

/// Operations with everything they need, in order.
pub struct CpuPlan(pub(crate) Vec<Step>);

pub(crate) enum Step {
    /// Live counts for what follows.
    Header(View),
    Embed(EmbedOp),
    Norm(NormOp),
    Linear(LinearOp),
    ActMul(ActMulOp),
    RopeKv(RopeKvOp),
    Attention(AttentionOp),
    Gather(GatherOp),
    Softcap(SoftcapOp),
    Sample(SampleOp),
    Route(RouteOp),
    GroupedLinear(GroupedLinearOp),
    Combine(CombineOp),
    LatentKv(LatentKvOp),
}

/// Lists that steps fill and reuse.
#[derive(Default)]
pub(crate) struct Workspace {
    pub(crate) attention: Vec<attention::Task>,
    pub(crate) rows: Rows,
}

/// What an operation knows when it runs.
pub(crate) struct Context {
    pub(crate) kernels: KernelSet,
    pub(crate) threads: usize,
    team: Arc<Team>,
    header: StepHeader,
}

impl CpuPlan {
    /// Executes with the backend's threads, under its lock.
    pub(crate) fn execute(&self, kernels: KernelSet, team: &Arc<Team>, workspace: &mut Workspace) {
        let (threads, team) = (team.threads(), team.clone());
        let mut ctx = Context { kernels, threads, team, header: StepHeader::default() };
        for step in &self.0 {
            match step {
                Step::Header(view) => {
                    let [tokens, sequences, logit_rows, reserved] = std::array::from_fn(|i| view.u32_at(i));
                    ctx.header = StepHeader { tokens, sequences, logit_rows, reserved };
                }
                Step::Embed(op) => op.execute(&ctx),
                Step::Norm(op) => op.execute(&ctx),
                Step::Linear(op) => op.execute(&ctx, &mut workspace.rows),
                Step::ActMul(op) => op.execute(&ctx),
                Step::RopeKv(op) => op.execute(&ctx),
                Step::Attention(op) => op.execute(&ctx, &mut workspace.attention),
                Step::Gather(op) => op.execute(&ctx),
                Step::Softcap(op) => op.execute(&ctx),
                Step::Sample(op) => op.execute(&ctx),
                Step::Route(op) => op.execute(&ctx),
                Step::GroupedLinear(op) => op.execute(&ctx, &mut workspace.rows),
                Step::Combine(op) => op.execute(&ctx),
                Step::LatentKv(op) => op.execute(&ctx),
            }
        }
    }
}

/// Elements a task should touch at least: below that, waking a thread costs more than it saves.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Tasks per thread, so that a thread that was held up is helped out.
const TASKS_PER_THREAD: usize = 4;

impl Context {
    pub(crate) fn live(&self, live: Live, rows: usize) -> usize {
        live.count(&self.header, rows)
    }

    /// Calls `task` with ranges that cover `0..items`, in parallel where there is enough work at
    /// `elements` touched per item.
    pub(crate) fn split(&self, items: usize, elements: usize, task: impl Fn(Range<usize>) + Sync) {
        self.split_into(TASKS_PER_THREAD, items, elements, task);
    }

    /// [`Context::split`] with at most `most` pieces a thread.
    pub(crate) fn split_into(&self, most: usize, items: usize, elements: usize, task: impl Fn(Range<usize>) + Sync) {
        let worthwhile = items.saturating_mul(elements) / TASK_ELEMENTS;
        let pieces = if self.threads == 1 { 1 } else { items.min(worthwhile).min(self.threads * most) };
        match (items, pieces) {
            (0, _) => {}
            (_, 0 | 1) => task(0..items),
            _ => self.each(pieces, |i| task(items * i / pieces..items * (i + 1) / pieces)),
        }
    }

    /// Calls `task` with pieces of `0..items`; each thread begins with its own share.
    pub(crate) fn each_share(&self, items: usize, width: impl Fn(usize) -> usize + Sync, task: impl Fn(Piece) + Sync) {
        self.team.each_share(items, width, task);
    }

    /// Calls `task` with every number below `tasks`, in parallel.
    pub(crate) fn each(&self, tasks: usize, task: impl Fn(usize) + Send + Sync) {
        if self.threads == 1 || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        self.team.each(tasks, &task);
    }
}
