//! Requests of many kinds, alone and in company, and everything observable of what they get.
use anyfleet::{Completion, Engine, GenerateRequest, SamplingParams, TokenStream};

/// Requests of many kinds; later ones share prefixes with earlier ones.
pub fn requests(count: usize) -> Vec<GenerateRequest> {
    let token = |i: usize, j: usize| ((i / 3 * 7919 + j * 104_729) % 250) as u32;
    (0..count)
        .map(|i| {
            let len = [1, 5, 18, 33, 70, 95][i % 6];
            let params = SamplingParams {
                temperature: if i % 2 == 0 { 0.0 } else { 0.9 },
                top_k: if i % 3 == 0 { 40 } else { 0 },
                top_p: if i % 5 == 0 { 0.9 } else { 1.0 },
                repetition_penalty: if i % 4 == 1 { 1.2 } else { 1.0 },
                presence_penalty: if i % 4 == 2 { 0.5 } else { 0.0 },
                seed: Some(i as u64),
                max_tokens: Some([20, 3, 31][i % 3]),
                ignore_eos: true,
                logprobs: Some(3),
                prompt_logprobs: (i % 7 == 3).then_some(1),
                ..SamplingParams::default()
            };
            GenerateRequest::tokens((0..len).map(|j| token(i, j)).collect::<Vec<_>>()).params(params)
        })
        .collect()
}

/// Everything observable of a completion, log-probabilities as bits.
pub fn bits(completion: &Completion) -> Vec<u32> {
    let prompt = completion.prompt_logprobs.iter().flatten();
    let tokens = completion.choices.iter().flat_map(|c| &c.tokens);
    prompt
        .chain(tokens)
        .flat_map(|t| {
            let top = t.top.iter().flat_map(|&(id, logprob)| [id, logprob.to_bits()]);
            [t.id, t.logprob.to_bits()].into_iter().chain(top).collect::<Vec<_>>()
        })
        .collect()
}

pub fn alone(engine: &Engine, requests: &[GenerateRequest]) -> Vec<Vec<u32>> {
    requests.iter().map(|r| bits(&engine.generate(r.clone()).expect("alone"))).collect()
}

pub fn together(engine: &Engine, requests: &[GenerateRequest]) -> Vec<Vec<u32>> {
    let streams: Vec<TokenStream> = requests.iter().map(|r| engine.stream(r.clone()).expect("accepted")).collect();
    streams.into_iter().map(|s| bits(&s.collect_completion().expect("together"))).collect()
}

pub fn assert_same(what: &str, found: &[Vec<u32>], want: &[Vec<u32>]) {
    for (i, (found, want)) in found.iter().zip(want).enumerate() {
        assert!(found == want, "{what}: request {i} differs from the same request alone");
    }
}
