//! What a finished step means for its sequences.
use crate::assemble::Rows;
use crate::constraint::{End, Guide};
use crate::output::Piece;
use crate::scheduler::{Planned, Scheduler};
use crate::sequence::{SeqKey, Sequence};
use crate::{
    Batch, Event, ExecutorError, FinishReason, RequestId, SampleMode, StepOutput, StopCause, TOP_LOGPROBS,
    TokenLogprob, Usage,
};

/// A submitted step: whose rows it has.
#[derive(Debug)]
pub(crate) struct Step {
    entries: Vec<Entry>,
    /// Logit rows.
    rows: usize,
    computed: Rows,
}

#[derive(Debug)]
struct Entry {
    planned: Planned,
    /// Its logit rows in the batch: the prompt's scored tokens, then the chosen one, if any.
    scores: std::ops::Range<usize>,
    choice: Option<usize>,
}

impl Step {
    pub(crate) fn new(plan: &[Planned], batch: &Batch, computed: Rows) -> Self {
        let mut next = 0;
        let entry = |(planned, rows): (&Planned, &crate::SeqRows)| {
            let start = next;
            let end = rows.row_start + rows.rows;
            next += batch.logit_rows[start..].iter().take_while(|logits| logits.row < end).count();
            let chooses = next > start && !matches!(batch.logit_rows[next - 1].mode, SampleMode::Score(_));
            let scores = start..next - usize::from(chooses);
            Entry { planned: planned.clone(), choice: chooses.then(|| next - 1), scores }
        };
        Step { entries: plan.iter().zip(&batch.sequences).map(entry).collect(), rows: batch.logit_rows.len(), computed }
    }

    /// The requests in it, each once.
    pub(crate) fn requests(&self) -> Vec<RequestId> {
        let mut requests: Vec<RequestId> = self.entries.iter().map(|entry| entry.planned.key.request).collect();
        requests.sort_unstable();
        requests.dedup();
        requests
    }

    /// Whether an output has this step's shape and ids below the vocabulary's size.
    pub(crate) fn check(&self, output: &StepOutput, vocab_size: usize) -> Result<(), ExecutorError> {
        let top = self.rows * TOP_LOGPROBS;
        let lengths = [output.ids.len(), output.logprobs.len(), output.top_ids.len(), output.top_logprobs.len()];
        if lengths != [self.rows, self.rows, top, top] {
            let message = format!(
                "its output has {lengths:?} ids, log-probabilities, top ids and top log-probabilities for {} logit rows",
                self.rows
            );
            return Err(ExecutorError(message));
        }
        match output.ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => Err(ExecutorError(format!("it chose token {id} of a vocabulary of {vocab_size}"))),
            None => Ok(()),
        }
    }

    /// Gives the sequences their tokens, registers what is now in the cache and says what happened.
    pub(crate) fn postprocess(
        self,
        output: &StepOutput,
        scheduler: &mut Scheduler,
        eos_token_ids: &[u32],
        events: &mut Vec<Event>,
    ) {
        scheduler.counters.prefill_tokens += self.computed.prefill;
        scheduler.counters.decode_tokens += self.computed.decode;
        for Entry { planned, scores, choice } in self.entries {
            let key = planned.key;
            // Cancelled, or finished by the step before: the surplus token is dropped.
            let Some(sequence) = scheduler.sequences.get_mut(&key) else { continue };
            sequence.steps_in_flight -= 1;
            let stored = (sequence.epoch == planned.epoch).then_some(planned.start + planned.rows);
            if let Some(stored) = stored {
                sequence.stored = stored;
            }
            record_scores(key, sequence, scores, output, events);
            let mut end = None;
            if let Some(row) = choice {
                sequence.tokens_in_flight -= 1;
                let before = sequence.tokens.len();
                end = accept(key, sequence, row, output, eos_token_ids, events);
                scheduler.counters.generated_tokens += (sequence.tokens.len() - before) as u64;
            } else if stored == Some(sequence.job.max_len) {
                end = Some(End::Finished(FinishReason::Length));
            }
            if let Some(stored) = stored {
                scheduler.cache.commit(&mut sequence.lease, &sequence.tokens, stored, sequence.computed);
                if key.choice == 0 && stored >= sequence.job.prompt_len() {
                    scheduler.requests.entry(key.request).and_modify(|progress| progress.prefilled = true);
                }
            }
            match end {
                Some(End::Finished(reason)) => finish_choice(key, reason, scheduler, events),
                Some(End::Failed(message)) => {
                    scheduler.remove_request(key.request);
                    events.push(Event::Failed { request: key.request, message });
                }
                None => {}
            }
        }
    }
}

/// The entry of a logit row with the `top` highest that the request asked for.
fn logprob(output: &StepOutput, row: usize, top: Option<u8>) -> TokenLogprob {
    let tops = row * TOP_LOGPROBS..row * TOP_LOGPROBS + top.map_or(0, usize::from);
    let top = output.top_ids[tops.clone()].iter().copied().zip(output.top_logprobs[tops].iter().copied());
    TokenLogprob {
        id: output.ids[row],
        logprob: output.logprobs[row],
        top: top.filter(|&(id, _)| id != u32::MAX).collect(),
        text_offset: 0,
    }
}

fn record_scores(
    key: SeqKey,
    sequence: &mut Sequence,
    rows: std::ops::Range<usize>,
    output: &StepOutput,
    events: &mut Vec<Event>,
) {
    let Some(scores) = &mut sequence.prompt_scores else { return };
    scores.extend(rows.map(|row| logprob(output, row, sequence.job.params.prompt_logprobs)));
    if scores.len() + 1 == sequence.job.prompt_len() {
        let logprobs = sequence.prompt_scores.take().unwrap_or_default();
        events.push(Event::PromptLogprobs { request: key.request, logprobs });
    }
}

/// Appends a chosen token, unless the choice's constraint has ended it before; whether it ends.
fn accept(
    key: SeqKey,
    sequence: &mut Sequence,
    row: usize,
    output: &StepOutput,
    eos_token_ids: &[u32],
    events: &mut Vec<Event>,
) -> Option<End> {
    if let Some(end) = sequence.guide.as_ref().and_then(Guide::end).cloned() {
        events.extend(delta(key, sequence.output.finish()));
        return Some(end);
    }
    let token = logprob(output, row, sequence.job.params.logprobs);
    let id = token.id;
    let (piece, finish) = append(sequence, token, eos_token_ids);
    events.extend(delta(key, piece));
    match (finish, &mut sequence.guide) {
        (Some(reason), _) => Some(End::Finished(reason)),
        (None, Some(guide)) => guide.accept(id),
        (None, None) => None,
    }
}

/// What goes out with a piece, if anything does.
pub(crate) fn delta(key: SeqKey, piece: Piece) -> Option<Event> {
    let Piece { text, tokens, .. } = piece;
    let SeqKey { request, choice } = key;
    (!text.is_empty() || !tokens.is_empty()).then_some(Event::Delta { request, choice, text, tokens })
}

/// Appends a token; what becomes ready with it, and whether it is the last.
pub(crate) fn append(
    sequence: &mut Sequence,
    token: TokenLogprob,
    eos_token_ids: &[u32],
) -> (Piece, Option<FinishReason>) {
    let params = &sequence.job.params;
    let id = token.id;
    sequence.tokens.push(id);
    sequence.adjustments.record(id);

    let stop_token = if !params.ignore_eos && eos_token_ids.contains(&id) {
        Some(StopCause::Eos(id))
    } else {
        params.stop_token_ids.contains(&id).then_some(StopCause::TokenId(id))
    };
    let mut piece = Piece::default();
    if stop_token.is_none() || params.include_stop_str_in_output {
        let look_for_stops = sequence.generated() > params.min_tokens as usize;
        piece = sequence.output.push(token, look_for_stops);
    }
    let finish = match (piece.stop, stop_token) {
        (Some(index), _) => Some(FinishReason::Stop(StopCause::String(params.stop[index].clone()))),
        (None, Some(cause)) => Some(FinishReason::Stop(cause)),
        (None, None) => (sequence.tokens.len() >= sequence.job.max_len).then_some(FinishReason::Length),
    };
    if finish.is_some() && piece.stop.is_none() {
        let tail = sequence.output.finish();
        piece.text += &tail.text;
        piece.tokens.extend(tail.tokens);
    }
    (piece, finish)
}

pub(crate) fn finish_choice(key: SeqKey, reason: FinishReason, scheduler: &mut Scheduler, events: &mut Vec<Event>) {
    let progress = scheduler.requests.get_mut(&key.request);
    let cached_prompt_tokens = progress.as_ref().and_then(|progress| progress.cached_tokens).unwrap_or(0);
    let generated = scheduler.sequences.get(&key).map_or(0, Sequence::generated);
    if let Some(progress) = progress {
        progress.finished.insert(key.choice, generated);
    }
    let Some(sequence) = scheduler.remove(key) else { return };
    let usage = Usage {
        prompt_tokens: sequence.job.prompt_len(),
        cached_prompt_tokens,
        completion_tokens: sequence.generated(),
    };
    let last = !scheduler.requests.contains_key(&key.request);
    events.push(Event::Finished { request: key.request, choice: key.choice, reason, usage, last });
}
