//! `route`: one launch for a few rows, else two.
use crate::{CudaBackend, CudaRecorder};
use anyfleet_tensor::ops::{ExpertGroups, GroupScore, Route, Scoring};
use anyfleet_tensor::{Error, Result, StepSizes};
use bytemuck::{Pod, Zeroable};

/// `RouteParams` of `route.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    weights: u64,
    places: u64,
    list: u64,
    offsets: u64,
    hits: u64,
    logits: u64,
    bias: u64,
    live: u64,
    chosen: u64,
    rows: u32,
    experts: u32,
    per_token: u32,
    logits_stride: u32,
    sigmoid: u32,
    renormalise: u32,
    scale: f32,
    groups: u32,
    kept: u32,
    two_highest: u32,
}

/// Threads of a block: a warp a row where experts are chosen.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
const SORT_THREADS: usize = 512;
/// The most rows that one block chooses for and sorts: four for each of its warps.
const FEW: usize = 4 * WARPS;
/// Experts whose keys a warp has in registers: `MOST_EXPERTS` of `route.cu`.
const MOST_EXPERTS: usize = 2048;

/// Groups of experts: `MOST_GROUPS` of `route.cu`.
const MOST_GROUPS: usize = 64;

/// The most that [`record`] asks of scratch memory: the expert of each pair.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    4 * sizes.grouped_rows
}

pub(crate) fn record(recorder: &mut CudaRecorder, op: &Route<'_, CudaBackend>) -> Result<()> {
    const OP: &str = "route";
    let refused = |what, details| Err(Error::Shape { op: OP, what, details, remedy: "use another device" });
    let (rows, experts, per_token) = (op.logits.rows(), op.logits.cols(), op.routing.weights.cols());
    if experts > MOST_EXPERTS {
        return refused("more experts than a warp has in reach", format!("{experts}, at most {MOST_EXPERTS}"));
    }
    let sigmoid = match op.scoring {
        Scoring::Softmax => 0,
        Scoring::Sigmoid => 1,
        other => return refused("no kernel for this scoring", format!("{other:?}")),
    };
    let groups = op.groups.unwrap_or(ExpertGroups { count: 0, kept: 0, score: GroupScore::Highest });
    if groups.count > MOST_GROUPS {
        return refused("more groups than a warp keeps", format!("{}, at most {MOST_GROUPS}", groups.count));
    }
    let two_highest = match groups.score {
        GroupScore::Highest => 0,
        GroupScore::TwoHighest => 1,
        other => return refused("no kernel for this score of groups", format!("{other:?}")),
    };
    let routing = op.routing;
    let params = Params {
        weights: recorder.address(&routing.weights),
        places: recorder.address(&routing.places),
        list: recorder.address(&routing.rows),
        offsets: recorder.address(&routing.offsets),
        hits: recorder.address(&routing.hits),
        logits: recorder.address(op.logits),
        bias: recorder.address_of(op.bias),
        live: recorder.live(OP, op.live)?,
        chosen: recorder.scratch(4 * rows * per_token)?,
        rows: rows as u32,
        experts: experts as u32,
        per_token: per_token as u32,
        logits_stride: op.logits.row_stride() as u32,
        sigmoid,
        renormalise: u32::from(op.renormalise),
        scale: op.scale,
        groups: groups.count as u32,
        kept: groups.kept as u32,
        two_highest,
    };
    if rows <= FEW {
        return recorder.launch((OP, "route_few"), [1, 1, 1], THREADS, 0, &params);
    }
    // Keys of more experts take more registers.
    let choose = match experts {
        0..=128 => "route_choose_128",
        129..=512 => "route_choose_512",
        _ => "route_choose_2048",
    };
    recorder.launch((OP, choose), [rows.div_ceil(WARPS), 1, 1], THREADS, 0, &params)?;
    // One more block lists the experts that have pairs.
    recorder.launch((OP, "route_sort"), [experts + 1, 1, 1], SORT_THREADS, 0, &params)
}
