//! `sample`.
use super::check_apart;
use crate::WgpuBackend;
use crate::encoder::{Call, Range, WgpuRecorder};
use anyfleet_kernels::wgsl;
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::{Result, StepSizes, Tensor};
use std::sync::Arc;

/// Adjusted logits.
fn adjusted_bytes(rows: usize, vocab: usize) -> usize {
    rows * vocab * 4
}

/// The most that [`record`] asks of scratch memory.
pub(crate) fn scratch_bytes(sizes: &StepSizes) -> usize {
    adjusted_bytes(sizes.logit_rows, sizes.vocab_size)
}

pub(crate) fn record(recorder: &mut WgpuRecorder, op: &Sample<'_, WgpuBackend>) -> Result<()> {
    const OP: &str = "sample";
    let (rows, vocab) = (op.logits.rows(), op.logits.cols());
    if rows == 0 {
        return Ok(());
    }
    let results = [op.ids, op.logprobs, op.top_ids, op.top_logprobs];
    for result in results {
        [op.logits, op.params, op.adjust]
            .into_iter()
            .chain(op.masks)
            .try_for_each(|input| check_apart(OP, result, input))?;
    }
    let mut call = Call::new(OP, &[wgsl::COMMON, wgsl::EXACT, wgsl::WIDE, wgsl::SAMPLE]);
    let live = recorder.live(&mut call, op.live)?;
    let logits = recorder.bind(&mut call, 2, false, op.logits)?;
    let params = recorder.bind(&mut call, 3, false, op.params)?;
    let adjust = recorder.bind(&mut call, 4, false, op.adjust)?;
    call.bind_range(5, true, recorder.context.scratch(adjusted_bytes(rows, vocab))?);
    // Results in one buffer are bound once, from its start.
    let together = results.iter().all(|result| Arc::ptr_eq(&result.buffer().raw, &op.ids.buffer().raw));
    let [ids, logprobs, top_ids, top_logprobs] = if together {
        let buffer = op.ids.buffer().raw.clone();
        call.bind_range(6, true, Range { size: buffer.size(), offset: 0, buffer });
        results.map(|result| (result.offset() / 4) as u32)
    } else {
        call.flags.push("RESULTS_APART");
        let mut places = [0; 4];
        for (i, result) in results.iter().enumerate() {
            places[i] = recorder.bind(&mut call, 6 + i as u32, true, result)?;
        }
        places
    };
    let masks = match op.masks {
        Some(masks) => {
            call.flags.push("MASKS");
            recorder.bind(&mut call, 10, false, masks)?
        }
        None => 0,
    };
    call.params = vec![
        rows as u32,
        live,
        vocab as u32,
        logits,
        op.logits.row_stride() as u32,
        params,
        op.params.row_stride() as u32,
        adjust,
        op.adjust.rows() as u32,
        op.adjust.row_stride() as u32,
        ids,
        logprobs,
        top_ids,
        op.top_ids.row_stride() as u32,
        top_logprobs,
        op.top_logprobs.row_stride() as u32,
        masks,
        op.masks.map_or(0, Tensor::rows) as u32,
        op.masks.map_or(0, Tensor::row_stride) as u32,
    ];
    call.grid(rows, 1);
    recorder.push(call);
    Ok(())
}
