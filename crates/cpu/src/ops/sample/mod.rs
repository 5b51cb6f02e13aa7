//! `sample`: log-probabilities of the model, and the next token.
//!
//! The definition of every step is in [`anyfleet_tensor::sampling`]; here is how it is computed
//! fast. A row is taken in blocks of 1024 logits. One pass finds the highest logit of each block, which
//! tells later steps what blocks to pass over: those without one of the highest twenty, or without a
//! token that top-k or top-p keeps. A second pass sums exponentials and weights. The sum of exponentials is
//! taken in f32 over a block (sixteen strided sums and their tree), and over blocks in f64, in order;
//! sums of weights are exact. So blocks may be spread over threads.
mod blocks;
mod draw;
#[cfg(test)]
mod tests;
mod top;

use crate::CpuBackend;
use crate::plan::Context;
use crate::view::{View, check_apart};
use anyfleet_tensor::ops::Sample;
use anyfleet_tensor::sampling::{self, clean};
use anyfleet_tensor::{Adjust, Live, Result, SampleMode, SampleParams, TOP_LOGPROBS};
use blocks::{Scan, Space, Weights, Workers};
use draw::{Candidate, Limits};
use std::cell::RefCell;
use top::Top;

pub(crate) struct SampleOp {
    ids: View,
    logprobs: View,
    top_ids: View,
    top_logprobs: View,
    logits: View,
    params: View,
    adjust: View,
    masks: Option<View>,
    live: Live,
}

impl SampleOp {
    pub(crate) fn new(op: &Sample<'_, CpuBackend>) -> Result<Self> {
        let view = |tensor| View::new("sample", tensor);
        let this = SampleOp {
            ids: view(op.ids)?,
            logprobs: view(op.logprobs)?,
            top_ids: view(op.top_ids)?,
            top_logprobs: view(op.top_logprobs)?,
            logits: view(op.logits)?,
            params: view(op.params)?,
            adjust: view(op.adjust)?,
            masks: op.masks.map(view).transpose()?,
            live: op.live,
        };
        for out in [&this.ids, &this.logprobs, &this.top_ids, &this.top_logprobs] {
            for input in [&this.logits, &this.params, &this.adjust].into_iter().chain(&this.masks) {
                check_apart("sample", out, input)?;
            }
        }
        Ok(this)
    }

    pub(crate) fn execute(&self, ctx: &Context) {
        let rows = ctx.live(self.live, self.logits.rows());
        // Few rows are shared by all threads, many are divided among them.
        let shared = (rows < ctx.threads).then_some(ctx);
        let work = |row| ROW.with_borrow_mut(|state| self.row(Workers { kernels: ctx.kernels, shared }, row, state));
        if shared.is_some() { (0..rows).for_each(work) } else { ctx.each(rows, work) }
    }

    fn row(&self, workers: Workers<'_>, row: usize, state: &mut Row) {
        // SAFETY: inputs are not written meanwhile, and are any bits.
        let (logits, words) = unsafe { (self.logits.slice::<f32>(row), self.params.slice::<u32>(row)) };
        let params: &SampleParams = bytemuck::from_bytes(bytemuck::cast_slice(words));
        let mode =
            [SampleMode::Greedy, SampleMode::Random, SampleMode::Score].into_iter().find(|&m| m as u32 == params.mode);
        let mode = mode.unwrap_or_else(|| panic!("sample: mode {} of row {row}", params.mode));
        let limits = Limits::new(params, logits.len());
        let weights = if mode == SampleMode::Random { limits.sums() } else { None };
        let mask = self.mask(params).filter(|_| mode != SampleMode::Score);
        let adjusts = mode != SampleMode::Score && (params.adjust_len > 0 || mask.is_some());

        let mut scan = Scan::new(workers, logits, &mut state.space);
        let model = Model::new(&mut scan, if adjusts { None } else { weights });
        if adjusts {
            state.adjusted.clear();
            state.adjusted.extend_from_slice(logits);
            for i in 0..params.adjust_len as usize {
                let entry = self.entry(params.adjust_start as usize + i);
                if let Some(logit) = state.adjusted.get_mut(entry.token as usize) {
                    *logit = sampling::adjusted(clean(*logit), &entry, params);
                }
            }
            if let Some(mask) = mask {
                ban(mask, &mut state.adjusted);
            }
            scan = Scan::new(workers, &state.adjusted, &mut state.space);
            scan.exponentials(false, weights);
        }
        let id = match mode {
            SampleMode::Score => {
                assert!(
                    (params.target as usize) < logits.len(),
                    "sample: target {} of {}",
                    params.target,
                    logits.len()
                );
                params.target
            }
            _ if scan.max == f32::NEG_INFINITY => highest_allowed(mask, logits).unwrap_or(model.top[0].1),
            SampleMode::Random => draw::draw(&mut scan, params, &limits, &mut state.candidates),
            _ => scan.first_highest(),
        };
        // SAFETY: each task has its own output rows.
        let (top_ids, top_logprobs) =
            unsafe { (self.top_ids.slice_mut::<u32>(row), self.top_logprobs.slice_mut::<f32>(row)) };
        for (i, (top_id, top_logprob)) in top_ids.iter_mut().zip(top_logprobs).enumerate() {
            let known = i < logits.len();
            let (logit, id) = model.top[i];
            *top_id = if known { id } else { u32::MAX };
            *top_logprob = if known { model.logprob(logit) } else { f32::NEG_INFINITY };
        }
        // SAFETY: as above.
        unsafe {
            *self.ids.row::<u32>(row) = id;
            *self.logprobs.row::<f32>(row) = model.logprob(clean(logits[id as usize]));
        }
    }

    fn mask(&self, params: &SampleParams) -> Option<&[u32]> {
        let index = params.mask.checked_sub(1)? as usize;
        let masks = self.masks.as_ref().filter(|masks| index < masks.rows());
        let masks =
            masks.unwrap_or_else(|| panic!("sample: mask {index} of {}", self.masks.as_ref().map_or(0, View::rows)));
        // SAFETY: inputs are not written meanwhile, and are any bits.
        Some(unsafe { masks.slice::<u32>(index) })
    }

    fn entry(&self, index: usize) -> Adjust {
        assert!(index < self.adjust.rows(), "sample: adjust entry {index} of {}", self.adjust.rows());
        // SAFETY: inputs are not written meanwhile, and are any bits.
        let words = unsafe { self.adjust.slice::<u32>(index) };
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(words))
    }
}

/// Gives minus infinity to tokens that a mask does not allow.
fn ban(mask: &[u32], logits: &mut [f32]) {
    for (&word, logits) in mask.iter().zip(logits.chunks_mut(32)) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// The first of the highest logits that a mask allows, if there is a mask and it allows any.
fn highest_allowed(mask: Option<&[u32]>, logits: &[f32]) -> Option<u32> {
    let mask = mask?;
    let allowed = (0..logits.len()).filter(|&id| sampling::allows(mask, id));
    allowed.max_by_key(|&id| sampling::rank_key(clean(logits[id]), id as u32)).map(|id| id as u32)
}

thread_local! {
    static ROW: RefCell<Row> = const {
        RefCell::new(Row { space: Space::new(), adjusted: Vec::new(), candidates: Vec::new() })
    };
}

/// Lists a thread keeps from row to row.
struct Row {
    space: Space,
    /// Logits after penalties, where there are any.
    adjusted: Vec<f32>,
    /// Tokens that top-k and top-p choose among.
    candidates: Vec<Candidate>,
}

/// Log-probabilities of the unadjusted logits.
struct Model {
    max: f32,
    ln_sum: f64,
    /// Highest logits with their ids, in order.
    top: [(f32, u32); TOP_LOGPROBS],
}

impl Model {
    /// Sums `weights` on the way.
    fn new(scan: &mut Scan<'_>, weights: Option<Weights>) -> Model {
        scan.exponentials(true, weights);
        let sum = match scan.max {
            f32::NEG_INFINITY => scan.logits.len() as f64,
            _ => scan.blocks.iter().map(|block| f64::from(block.sum)).sum(),
        };
        let bar = scan.nth_highest(TOP_LOGPROBS);
        let top = scan.workers.kernels.run(Top { logits: scan.logits, blocks: scan.blocks, bar });
        Model { max: scan.max, ln_sum: sampling::ln(sum), top }
    }

    fn logprob(&self, logit: f32) -> f32 {
        let distance = if logit < self.max { logit - self.max } else { 0.0 };
        (f64::from(distance) - self.ln_sum) as f32
    }
}
