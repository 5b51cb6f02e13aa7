//! `route`.
use super::check_apart;
use crate::WgpuBackend;
use crate::encoder::{Call, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::ops::{ExpertGroups, GroupScore, Route, Routing, Scoring};
use anyfleet_tensor::{Error, Result, StepSizes};

/// Threads of a workgroup of either kernel: `THREADS`.
const THREADS: usize = 128;

/// Bytes of the chosen experts.
fn chosen_bytes(pairs: usize) -> usize {
    pairs * 4
}

/// The most that [`record`] asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    chosen_bytes(sizes.grouped_rows)
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Route<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "route";
    let Routing { weights, places, rows, offsets, hits } = op.routing;
    let (tokens, experts, per_token) = (op.logits.rows(), op.logits.cols(), weights.cols());
    let sigmoid = match op.scoring {
        Scoring::Softmax => 0,
        Scoring::Sigmoid => 1,
        other => {
            return Err(Error::Shape {
                op: OP,
                what: "no kernel for this scoring",
                details: format!("{other:?}"),
                remedy: "use another device",
            });
        }
    };
    // What `route.wgsl` shares in a workgroup; `route_sort.wgsl` takes less.
    let (room, most) = (
        4 * (experts + per_token + op.groups.map_or(0, |g| g.count) + 2 * THREADS),
        recorder.context.limits.max_compute_workgroup_storage_size,
    );
    if room > most as usize {
        return Err(Error::Shape {
            op: OP,
            what: "more experts than a workgroup of the device holds",
            details: format!("{per_token} of {experts} experts take {room} bytes, of at most {most}"),
            remedy: "use another device for this model",
        });
    }
    for out in [weights, places, rows, offsets, hits] {
        [Some(op.logits), op.bias].into_iter().flatten().try_for_each(|input| check_apart(OP, out, input))?;
    }
    let constants = [("EXPERTS", experts as u32), ("PER_TOKEN", per_token as u32)];
    let chosen = recorder.context.scratch(chosen_bytes(tokens * per_token))?;

    let mut call = Call::new(OP, &[wgsl::COMMON, wgsl::EXACT, wgsl::ACTIVATION, wgsl::ROUTE]);
    call.constants.extend(constants);
    if let Some(ExpertGroups { count, kept, score }) = op.groups {
        call.flags.push("GROUPS");
        call.constants.extend([("GROUP_COUNT", count as u32), ("GROUPS_KEPT", kept as u32)]);
        match score {
            GroupScore::Highest => {}
            // Sums are of scores.
            GroupScore::TwoHighest => call.flags.extend(["TWO_HIGHEST", "BY_SCORE"]),
            other => {
                return Err(Error::Shape {
                    op: OP,
                    what: "no kernel for this score of groups",
                    details: format!("{other:?}"),
                    remedy: "use another device",
                });
            }
        }
    }
    let live = recorder.live(&mut call, op.live)?;
    let logits = recorder.bind(&mut call, 2, false, op.logits)?;
    let weights = recorder.bind(&mut call, 3, true, weights)?;
    call.bind_range(4, true, chosen.clone());
    let mut bias = 0;
    if let Some(tensor) = op.bias {
        call.flags.push("BIAS");
        bias = recorder.bind(&mut call, 5, false, tensor)?;
    }
    call.params = vec![
        tokens as u32,
        live,
        sigmoid,
        u32::from(op.renormalise),
        op.scale.to_bits(),
        logits,
        op.logits.row_stride() as u32,
        bias,
        weights,
    ];
    call.grid(tokens, 1);
    recorder.push(call);

    let mut sort = Call::new("route_sort", &[wgsl::COMMON, wgsl::ROUTE_SORT]);
    sort.constants.extend(constants);
    let live = recorder.live(&mut sort, op.live)?;
    sort.bind_range(2, false, chosen);
    let places = recorder.bind(&mut sort, 3, true, places)?;
    let order = recorder.bind(&mut sort, 4, true, rows)?;
    let offsets = recorder.bind(&mut sort, 5, true, offsets)?;
    let hits = recorder.bind(&mut sort, 6, true, hits)?;
    sort.params = vec![tokens as u32, live, places, order, offsets, hits];
    sort.grid(experts, 1);
    recorder.push(sort);
    Ok(())
}
