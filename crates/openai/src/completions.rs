//! `POST /v1/completions`.
use crate::fleet::parts::{Said, finished};
use crate::fleet::{AnswerHead, Api, Part, PromptSnapshot, StreamSnapshot};
use crate::generation::{Generation, Work};
use crate::metrics::RequestMetrics;
use crate::protocol::{
    CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, DEFAULT_COMPLETION_TOKENS,
    PromptInput, StopReason, UsageReport,
};
use crate::serving::{Head, Serving, random};
use crate::sse::{self, Chunks, Out};
use crate::tokens::{TokenNames, prompt_text};
use crate::{ApiError, ServerState};
use anyfleet::{Engine, SamplingParams, StreamEvent, TokenLogprob};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

pub(crate) async fn completions(State(state): State<ServerState>, request: Request) -> Result<Response, ApiError> {
    let metrics = state.metrics().request();
    state.serving()?;
    let in_fleet = state.in_fleet(request.headers())?;
    let body = state.read_body(request).await?;
    let (worker, length) = (state.clone(), body.len());
    let prepare = move || Job::prepare(worker.serving()?, CompletionRequest::from_json(&body)?);
    let job = state.text_work(length, prepare).await?;
    let Job { requests, streaming, mut answer } = job;
    let engine = &state.serving()?.engine;
    let echo = |prompt: &PromptPart| prompt.echo.then(|| prompt.text.clone());
    let prompts = requests.iter().zip(&answer.prompts);
    let prompts = prompts.map(|((ids, params), part)| (ids.clone(), params.clone(), echo(part)));
    let ledger = state.ledger(engine, || answer.fleet_head(), prompts);
    let work = (0..).zip(requests).map(|(prompt, (ids, params))| Work::new(prompt, ids, params));
    let mut generation = Generation::start(engine, work, metrics, ledger).await?;
    if streaming {
        answer.said.in_fleet = in_fleet;
        return Ok(sse::response(generation, answer));
    }
    let mut whole = Whole::new(answer);
    while let Some(event) = generation.next().await {
        let (prompt, event) = event?;
        whole.event(prompt, event);
    }
    if let Some(error) = generation.hand_over() {
        return Err(error);
    }
    // Naming thousands of tokens is work on text.
    state.text_work(0, move || Ok(Json(whole.finish()).into_response())).await
}

/// A request, ready for the engine.
struct Job {
    /// Ids and parameters of each prompt.
    requests: Vec<(Vec<u32>, SamplingParams)>,
    streaming: bool,
    answer: Answer,
}

impl Job {
    fn prepare(serving: &Serving, request: CompletionRequest) -> Result<Self, ApiError> {
        serving.check_model(&request.model)?;
        let engine = &serving.engine;
        let mut requests = Vec::with_capacity(request.prompts.len());
        let mut prompts = Vec::with_capacity(request.prompts.len());
        for input in &request.prompts {
            let ids = match input {
                PromptInput::Text(text) => encode(engine, text, request.add_special_tokens, "prompt")?,
                PromptInput::Tokens(ids) => ids.clone(),
            };
            let max_tokens = room(engine, ids.len(), request.max_tokens, "prompt")?.min(DEFAULT_COMPLETION_TOKENS);
            let mut params = request.sampling.over(engine.default_params());
            params.max_tokens = Some(request.max_tokens.unwrap_or(max_tokens));
            params.logprobs = request.logprobs;
            params.prompt_logprobs = request.logprobs.filter(|_| request.echo);
            fix(engine, ids.len(), &mut params);
            let text = match input {
                PromptInput::Text(text) => Some(text.as_str()),
                PromptInput::Tokens(_) => None,
            };
            let echo = request.echo.then_some(text);
            let n = request.sampling.choices() as usize;
            prompts.push(PromptPart::new(engine, echo, &ids, params.skip_special_tokens, vec![false; n]));
            requests.push((ids, params));
        }
        let choices = prompts.len() * request.sampling.choices() as usize;
        let answer = Answer {
            said: Said::nothing(choices),
            head: serving.head("cmpl"),
            names: TokenNames { tokenizer: engine.tokenizer().cloned(), as_ids: request.return_tokens_as_token_ids },
            n: request.sampling.choices() as usize,
            logprobs: request.logprobs.is_some(),
            token_ids: request.return_token_ids,
            include_usage: request.streaming.include_usage,
            prompts,
            usage: UsageReport::default(),
        };
        Ok(Job { requests, streaming: request.streaming.enabled, answer })
    }
}

/// What is left of an answer that began elsewhere.
pub(crate) async fn resume(
    state: &ServerState,
    snapshot: StreamSnapshot,
    metrics: RequestMetrics,
) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let (engine, head) = (&serving.engine, &snapshot.answer);
    let part = |PromptSnapshot { request, echo, begun }: &PromptSnapshot| {
        let echo = echo.as_deref().map(Some);
        PromptPart::new(engine, echo, &request.prompt, request.params.skip_special_tokens, begun.clone())
    };
    let mut answer = Answer {
        head: serving.head_again(head),
        names: TokenNames { tokenizer: engine.tokenizer().cloned(), as_ids: head.tokens_as_ids },
        n: head.n as usize,
        said: Said::before(&snapshot),
        logprobs: head.logprobs,
        token_ids: head.token_ids,
        include_usage: head.include_usage,
        prompts: snapshot.prompts.iter().map(part).collect(),
        usage: UsageReport::default(),
    };
    for (prompt, PromptSnapshot { request, .. }) in snapshot.prompts.iter().enumerate() {
        finished(request).for_each(|usage| answer.count(prompt, usage));
    }
    let work = snapshot.prompts.iter().enumerate().filter_map(|(i, prompt)| Work::resumed(i, prompt.request.clone()));
    let work: Vec<Work> = work.collect();
    let ledger = Some(state.ledger_of(snapshot));
    let generation = Generation::start(engine, work.into_iter(), metrics, ledger).await?;
    Ok(sse::response(generation, answer))
}

/// Decides what the engine would decide, so that it is known before the answer begins: the seed, and where an answer
/// without a limit ends.
pub(crate) fn fix(engine: &Engine, prompt_tokens: usize, params: &mut SamplingParams) {
    params.seed.get_or_insert_with(random);
    let room = engine.info().max_sequence_len.saturating_sub(prompt_tokens);
    if params.max_tokens.is_none() && room > 0 {
        params.max_tokens = Some(u32::try_from(room).unwrap_or(u32::MAX));
    }
}

/// The ids of a prompt's text.
pub(crate) fn encode(engine: &Engine, text: &str, special: bool, param: &'static str) -> Result<Vec<u32>, ApiError> {
    engine.encode(text, special).map_err(|error| ApiError { param: Some(param.into()), ..error.into() })
}

/// Tokens the context has left after a prompt, which must be enough for what was asked.
pub(crate) fn room(engine: &Engine, prompt: usize, asked: Option<u32>, param: &'static str) -> Result<u32, ApiError> {
    if prompt == 0 {
        return Err(ApiError::invalid(param, "The prompt has no tokens; give at least one.").code("empty_prompt"));
    }
    let max = engine.info().max_model_len;
    let requested = asked.map_or(1, |tokens| tokens as usize);
    if prompt.saturating_add(requested) > max {
        let error = ApiError::from(anyfleet::Error::ContextLength { max, prompt, requested });
        return Err(ApiError { param: Some(param.into()), ..error });
    }
    Ok(u32::try_from(max - prompt).unwrap_or(u32::MAX))
}

/// What the answer says of a prompt.
struct PromptPart {
    /// Where they are echoed with log-probabilities, or asked for.
    ids: Vec<u32>,
    /// The text that goes before every choice; empty unless echoed.
    text: String,
    /// Its length in characters.
    characters: usize,
    /// Where its tokens begin in it.
    offsets: Vec<usize>,
    echo: bool,
    /// Choices that have said what comes before their first token.
    begun: Vec<bool>,
    /// Its tokens are in the usage.
    counted: bool,
}

impl PromptPart {
    /// `echo`: the text as it was given where tokens may not say it exactly, if it is to be echoed.
    fn new(engine: &Engine, echo: Option<Option<&str>>, ids: &[u32], skip_special: bool, begun: Vec<bool>) -> Self {
        let mut part = PromptPart {
            ids: ids.to_vec(),
            text: String::new(),
            characters: 0,
            offsets: vec![0; ids.len()],
            echo: echo.is_some(),
            begun,
            counted: false,
        };
        if let Some(text) = echo
            && let Some(tokenizer) = engine.tokenizer()
        {
            (part.text, part.offsets) = prompt_text(tokenizer, ids, skip_special);
            if let Some(text) = text {
                text.clone_into(&mut part.text);
            }
            part.characters = part.text.chars().count();
            part.offsets.iter_mut().for_each(|offset| *offset = (*offset).min(part.characters));
        }
        part
    }
}

/// What the events become, streamed or not.
struct Answer {
    head: Head,
    names: TokenNames,
    n: usize,
    said: Said,
    logprobs: bool,
    token_ids: bool,
    include_usage: bool,
    prompts: Vec<PromptPart>,
    usage: UsageReport,
}

impl Answer {
    fn fleet_head(&self) -> AnswerHead {
        AnswerHead {
            api: Api::Completions,
            id: self.head.id.clone(),
            created: self.head.created,
            model: self.head.model.clone(),
            n: self.n as u32,
            logprobs: self.logprobs,
            include_usage: self.include_usage,
            token_ids: self.token_ids,
            tokens_as_ids: self.names.as_ids,
        }
    }

    fn response(&self, choices: Vec<CompletionChoice>, usage: Option<Option<UsageReport>>) -> CompletionResponse {
        let Head { id, created, model, system_fingerprint } = self.head.clone();
        let (object, anyfleet) = ("text_completion", None);
        CompletionResponse { id, object, created, model, system_fingerprint, choices, usage, anyfleet }
    }

    fn choice(&self, prompt: usize, choice: u32) -> CompletionChoice {
        CompletionChoice {
            index: prompt * self.n + choice as usize,
            text: String::new(),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
            prompt_token_ids: None,
        }
    }

    fn echo_logprobs(&self, prompt: usize, scored: &[TokenLogprob]) -> Option<CompletionLogprobs> {
        let part = &self.prompts[prompt];
        (self.logprobs && part.echo).then(|| self.names.echo(&part.ids, &part.offsets, scored))
    }

    fn count(&mut self, prompt: usize, usage: anyfleet::Usage) {
        let counted = std::mem::replace(&mut self.prompts[prompt].counted, true);
        self.usage.add(usage, !counted);
    }

    fn chunk(&self, choice: CompletionChoice, anyfleet: Option<Part>, out: &mut Out) {
        let chunk = self.response(vec![choice], self.include_usage.then_some(None));
        out.data(&CompletionResponse { anyfleet, ..chunk });
    }

    /// What every choice of a prompt says before its first token.
    fn begin_choices(&mut self, prompt: usize, scored: &[TokenLogprob], out: &mut Out) {
        let begun = std::mem::take(&mut self.prompts[prompt].begun);
        let part = &self.prompts[prompt];
        if part.echo || self.token_ids {
            for (choice, _) in (0..).zip(&begun).filter(|&(_, &begun)| !begun) {
                let chunk = CompletionChoice {
                    text: part.text.clone(),
                    logprobs: self.echo_logprobs(prompt, scored),
                    prompt_token_ids: self.token_ids.then(|| part.ids.clone()),
                    ..self.choice(prompt, choice)
                };
                let meaning = self.said.begun(chunk.index);
                self.chunk(chunk, meaning, out);
            }
        }
    }
}

impl Chunks for Answer {
    fn begin(&mut self, _out: &mut Out) {}

    fn event(&mut self, prompt: usize, event: StreamEvent, out: &mut Out) {
        match event {
            StreamEvent::PromptLogprobs(scored) => self.begin_choices(prompt, &scored, out),
            StreamEvent::Delta { choice, text, tokens } => {
                self.begin_choices(prompt, &[], out);
                let mut logprobs = self.logprobs.then(CompletionLogprobs::default);
                if let Some(logprobs) = &mut logprobs {
                    self.names.extend_completion(logprobs, &tokens, self.prompts[prompt].characters);
                }
                let token_ids = self.token_ids.then(|| tokens.iter().map(|token| token.id).collect());
                let empty = self.choice(prompt, choice);
                let part = self.said.more(empty.index, &text, &tokens);
                self.chunk(CompletionChoice { text, logprobs, token_ids, ..empty }, part, out);
            }
            StreamEvent::Finished { choice, reason, usage } => {
                self.begin_choices(prompt, &[], out);
                self.count(prompt, usage);
                let stop_reason = StopReason::of(&reason);
                let finish_reason = Some(reason.as_str());
                let empty = self.choice(prompt, choice);
                let part = self.said.finished(empty.index, usage);
                self.chunk(CompletionChoice { finish_reason, stop_reason, ..empty }, part, out);
            }
            // A suspended generation ends with an error.
            StreamEvent::Suspended(_) => {}
        }
    }

    fn in_fleet(&self) -> bool {
        self.said.in_fleet
    }

    fn usage(&self) -> Option<UsageReport> {
        self.include_usage.then_some(self.usage)
    }

    fn bare(&self, usage: Option<Option<UsageReport>>, anyfleet: Option<Part>, out: &mut Out) {
        out.data(&CompletionResponse { anyfleet, ..self.response(Vec::new(), usage) });
    }
}

/// An answer that is sent when it is complete.
struct Whole {
    answer: Answer,
    /// By prompt.
    scored: Vec<Vec<TokenLogprob>>,
    /// By index, with the tokens, which are named at the end.
    choices: Vec<(CompletionChoice, Vec<TokenLogprob>)>,
}

impl Whole {
    fn new(answer: Answer) -> Self {
        let prompts = answer.prompts.len();
        let choice = |index: usize| {
            let (prompt, choice) = (index / answer.n, (index % answer.n) as u32);
            let text = answer.prompts[prompt].text.clone();
            (CompletionChoice { text, ..answer.choice(prompt, choice) }, Vec::new())
        };
        let choices = (0..prompts * answer.n).map(choice).collect();
        Whole { answer, scored: vec![Vec::new(); prompts], choices }
    }

    fn event(&mut self, prompt: usize, event: StreamEvent) {
        let n = self.answer.n;
        match event {
            StreamEvent::PromptLogprobs(scored) => self.scored[prompt] = scored,
            StreamEvent::Delta { choice, text, tokens } => {
                let (growing, all_tokens) = &mut self.choices[prompt * n + choice as usize];
                growing.text.push_str(&text);
                all_tokens.extend(tokens);
            }
            StreamEvent::Finished { choice, reason, usage } => {
                let (done, _) = &mut self.choices[prompt * n + choice as usize];
                done.stop_reason = StopReason::of(&reason);
                done.finish_reason = Some(reason.as_str());
                self.answer.count(prompt, usage);
            }
            StreamEvent::Suspended(_) => {}
        }
    }

    fn finish(self) -> CompletionResponse {
        let Whole { answer, scored, choices } = self;
        let finish = |(mut choice, tokens): (CompletionChoice, Vec<TokenLogprob>)| {
            let prompt = choice.index / answer.n;
            let part = &answer.prompts[prompt];
            if answer.logprobs {
                let mut logprobs = answer.echo_logprobs(prompt, &scored[prompt]).unwrap_or_default();
                answer.names.extend_completion(&mut logprobs, &tokens, part.characters);
                choice.logprobs = Some(logprobs);
            }
            if answer.token_ids {
                choice.token_ids = Some(tokens.iter().map(|token| token.id).collect());
                choice.prompt_token_ids = Some(part.ids.clone());
            }
            choice
        };
        let choices = choices.into_iter().map(finish).collect();
        answer.response(choices, Some(Some(answer.usage)))
    }
}
