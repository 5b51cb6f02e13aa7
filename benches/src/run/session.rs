//! A loaded model behind the real runtime, driven step by step with a clock beside it.
use crate::Result;
use crate::checkpoint::splitmix;
use anyfleet_runtime::{Event, Executor, Request, RequestId, Runtime, RuntimeOptions, SamplingParams};
use std::time::Instant;

/// An executor and its runtime, without prefix sharing.
pub struct Session {
    executor: Box<dyn Executor>,
    runtime: Runtime,
    /// State of the generator of prompts.
    random: u64,
}

/// One measured generation; times in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// From the arrival of all requests to the first token of the first of them.
    pub first_token: f64,
    /// Each step in which every sequence decoded, and nothing else ran.
    pub steps: Vec<f64>,
    /// Tokens that attention reads per sequence, the mean over those steps and sequences.
    pub mean_context: f64,
}

impl Session {
    /// A session on a loaded model.
    ///
    /// # Errors
    /// The executor's limits allow no request.
    pub fn new(executor: Box<dyn Executor>) -> Result<Session> {
        let options = RuntimeOptions { prefix_cache: false, max_queue: usize::MAX, ..RuntimeOptions::default() };
        let runtime = Runtime::new(executor.limits().clone(), options).map_err(|e| e.to_string())?;
        Ok(Session { executor, runtime, random: 0 })
    }

    /// Starts `batch` requests of `context` random tokens at once, runs until all of them have decoded
    /// together for `steps` steps, and cancels them.
    ///
    /// # Errors
    /// A request is refused or fails.
    pub fn generate(&mut self, batch: usize, context: usize, steps: usize) -> Result<Generation> {
        let requests = self.start(batch, context)?;
        let index = |id: RequestId| requests.iter().position(|&request| request == id);
        let mut grown = vec![0; batch];
        let (start, mut first_token) = (Instant::now(), None);
        let (mut times, mut keys) = (Vec::with_capacity(steps), 0);
        loop {
            let together = grown.iter().all(|&tokens| tokens > 0);
            if together && times.len() == steps {
                break;
            }
            let step = Instant::now();
            let events = self.runtime.step(&mut *self.executor);
            let seconds = step.elapsed().as_secs_f64();
            let before: usize = grown.iter().sum();
            for event in events {
                match event {
                    Event::Delta { request, tokens, .. } => {
                        first_token.get_or_insert_with(|| start.elapsed().as_secs_f64());
                        if let Some(i) = index(request) {
                            grown[i] += tokens.len();
                        }
                    }
                    Event::Failed { message, .. } => return Err(message),
                    Event::Finished { .. } => return Err("a sequence ended before it was measured".into()),
                    Event::PromptLogprobs { .. } => {}
                }
            }
            if together {
                let tokens = grown.iter().sum::<usize>() - before;
                if tokens != batch {
                    return Err(format!("a step decoded {tokens} of {batch} sequences: the KV cache is too small"));
                }
                times.push(seconds);
                keys += batch * context + before;
            }
        }
        requests.iter().for_each(|&request| self.runtime.cancel(request));
        while self.runtime.has_work() {
            self.runtime.step(&mut *self.executor);
        }
        let mean_context = keys as f64 / (batch * times.len().max(1)) as f64;
        Ok(Generation { first_token: first_token.unwrap_or_default(), steps: times, mean_context })
    }

    fn start(&mut self, batch: usize, context: usize) -> Result<Vec<RequestId>> {
        let limits = self.executor.limits();
        let vocab = limits.vocab_size as u64;
        let max_tokens = Some((limits.max_model_len.saturating_sub(context)) as u32);
        let params = SamplingParams { temperature: 0.0, ignore_eos: true, max_tokens, ..SamplingParams::default() };
        let request = |_| {
            let prompt = (0..context).map(|_| (splitmix(&mut self.random) % vocab) as u32).collect();
            let request = Request { prompt, params: params.clone(), ..Request::default() };
            self.runtime.add(request).map_err(|e| e.to_string())
        };
        (0..batch).map(request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyfleet_runtime::null::NullExecutor;

    #[test]
    fn steps_are_counted_once_all_decode() {
        let mut session = Session::new(Box::new(NullExecutor::small())).unwrap();
        for (batch, context, steps) in [(1, 5, 3), (2, 7, 4), (1, 3, 0)] {
            let generation = session.generate(batch, context, steps).unwrap();
            assert_eq!(generation.steps.len(), steps);
            assert!(generation.first_token > 0.0);
            if batch == 1 && steps > 0 {
                // The first step reads the context and the token it feeds.
                assert_eq!(generation.mean_context, context as f64 + (steps + 1) as f64 / 2.0);
            }
            assert!(!session.runtime.has_work());
        }
        assert_eq!(session.runtime.check_invariants(), Ok(()));
        assert!(session.generate(1, 1 << 20, 1).is_err());
    }
}
