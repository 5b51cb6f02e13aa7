//! `POST /v1/chat/completions`.
use crate::completions::{encode, fix, room};
use crate::fleet::parts::{Said, finished};
use crate::fleet::{AnswerHead, Api, Part, PromptSnapshot, StreamSnapshot};
use crate::generation::{Generation, Work};
use crate::messages::cut_after_final_message;
use crate::metrics::RequestMetrics;
use crate::protocol::{
    AssistantMessage, ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatRequest, ChatResponse, StopReason,
    UsageReport,
};
use crate::serving::{Head, Serving};
use crate::sse::{self, Chunks, Out};
use crate::tokens::TokenNames;
use crate::{ApiError, ServerState};
use anyfleet::{ChatInput, Engine, SamplingParams, StreamEvent, TokenLogprob};
use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

pub(crate) async fn chat_completions(State(state): State<ServerState>, request: Request) -> Result<Response, ApiError> {
    let metrics = state.metrics().request();
    state.serving()?;
    let in_fleet = state.in_fleet(request.headers())?;
    let body = state.read_body(request).await?;
    let (worker, length) = (state.clone(), body.len());
    let prepare = move || Job::prepare(worker.serving()?, ChatRequest::from_json(&body)?);
    let job = state.text_work(length, prepare).await?;
    let Job { ids, params, streaming, mut answer } = job;
    let engine = &state.serving()?.engine;
    let prompts = [(ids.clone(), params.clone(), None)];
    let ledger = state.ledger(engine, || answer.fleet_head(), prompts.into_iter());
    let mut generation = Generation::start(engine, [Work::new(0, ids, params)].into_iter(), metrics, ledger).await?;
    if streaming {
        answer.said.in_fleet = in_fleet;
        return Ok(sse::response(generation, answer));
    }
    let mut whole = Whole::new(answer);
    while let Some(event) = generation.next().await {
        whole.event(event?.1);
    }
    if let Some(error) = generation.hand_over() {
        return Err(error);
    }
    // Naming thousands of tokens is work on text.
    state.text_work(0, move || Ok(Json(whole.finish()).into_response())).await
}

/// A request, ready for the engine.
struct Job {
    ids: Vec<u32>,
    params: SamplingParams,
    streaming: bool,
    answer: Answer,
}

impl Job {
    fn prepare(serving: &Serving, request: ChatRequest) -> Result<Self, ApiError> {
        serving.check_model(&request.model)?;
        let engine = &serving.engine;
        let text = render(engine, &request)?;
        let ids = encode(engine, &text, request.add_special_tokens, "messages")?;
        room(engine, ids.len(), request.max_tokens, "messages")?;
        let mut params = request.sampling.over(engine.default_params());
        params.max_tokens = request.max_tokens;
        params.logprobs = request.logprobs;
        fix(engine, ids.len(), &mut params);
        let n = request.sampling.choices() as usize;
        let answer = Answer {
            head: serving.head("chatcmpl"),
            names: TokenNames { tokenizer: engine.tokenizer().cloned(), as_ids: request.return_tokens_as_token_ids },
            begun: vec![false; n],
            said: Said::nothing(n),
            logprobs: request.logprobs.is_some(),
            token_ids: request.return_token_ids,
            prompt_ids: request.return_token_ids.then(|| ids.clone()),
            include_usage: request.streaming.include_usage,
            usage: UsageReport::default(),
        };
        let streaming = request.streaming.enabled;
        Ok(Job { ids, params, streaming, answer })
    }
}

/// What is left of an answer that began elsewhere.
pub(crate) async fn resume(
    state: &ServerState,
    snapshot: StreamSnapshot,
    metrics: RequestMetrics,
) -> Result<Response, ApiError> {
    let serving = state.serving()?;
    let [PromptSnapshot { request, begun, .. }] = &snapshot.prompts[..] else {
        return Err(ApiError::invalid("snapshot", "An answer of the chat API has one prompt."));
    };
    let head = &snapshot.answer;
    let prompt_ids = (head.token_ids && !begun.contains(&true)).then(|| request.prompt.clone());
    let mut answer = Answer {
        head: serving.head_again(head),
        names: TokenNames { tokenizer: serving.engine.tokenizer().cloned(), as_ids: head.tokens_as_ids },
        begun: begun.clone(),
        said: Said::before(&snapshot),
        logprobs: head.logprobs,
        token_ids: head.token_ids,
        prompt_ids,
        include_usage: head.include_usage,
        usage: UsageReport::default(),
    };
    finished(request).for_each(|usage| answer.count(usage));
    let work = Work::resumed(0, request.clone());
    let ledger = Some(state.ledger_of(snapshot));
    let generation = Generation::start(&serving.engine, work.into_iter(), metrics, ledger).await?;
    Ok(sse::response(generation, answer))
}

/// The conversation as the model's template writes it.
fn render(engine: &Engine, request: &ChatRequest) -> Result<String, ApiError> {
    let messages = Value::Array(request.messages.clone());
    let mut text = engine.apply_chat_template(&ChatInput {
        tools: request.tools.as_ref(),
        extra: Some(&request.template_variables),
        add_generation_prompt: request.add_generation_prompt,
        ..ChatInput::new(&messages)
    })?;
    if request.continue_final_message {
        cut_after_final_message(&mut text, &request.messages)?;
    }
    Ok(text)
}

/// What the events become, streamed or not.
struct Answer {
    head: Head,
    names: TokenNames,
    /// Of each choice: its role was said.
    begun: Vec<bool>,
    said: Said,
    logprobs: bool,
    token_ids: bool,
    prompt_ids: Option<Vec<u32>>,
    include_usage: bool,
    usage: UsageReport,
}

impl Answer {
    fn fleet_head(&self) -> AnswerHead {
        AnswerHead {
            api: Api::Chat,
            id: self.head.id.clone(),
            created: self.head.created,
            model: self.head.model.clone(),
            n: self.begun.len() as u32,
            logprobs: self.logprobs,
            include_usage: self.include_usage,
            token_ids: self.token_ids,
            tokens_as_ids: self.names.as_ids,
        }
    }

    fn count(&mut self, usage: anyfleet::Usage) {
        let first = self.usage.prompt_tokens == 0;
        self.usage.add(usage, first);
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Option<UsageReport>>) -> ChatChunk {
        let Head { id, created, model, system_fingerprint } = self.head.clone();
        let object = "chat.completion.chunk";
        let (prompt_token_ids, anyfleet) = (None, None);
        ChatChunk { id, object, created, model, system_fingerprint, choices, usage, prompt_token_ids, anyfleet }
    }

    fn choice(&mut self, choice: ChatChunkChoice, anyfleet: Option<Part>, out: &mut Out) {
        let prompt_token_ids = self.prompt_ids.take();
        let chunk = self.chunk(vec![choice], self.include_usage.then_some(None));
        out.data(&ChatChunk { prompt_token_ids, anyfleet, ..chunk });
    }
}

fn chunk_choice(index: usize, delta: ChatDelta) -> ChatChunkChoice {
    ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None }
}

impl Chunks for Answer {
    fn begin(&mut self, out: &mut Out) {
        for index in 0..self.begun.len() {
            if !std::mem::replace(&mut self.begun[index], true) {
                let delta = ChatDelta { role: Some("assistant"), content: Some(String::new()) };
                let part = self.said.begun(index);
                self.choice(chunk_choice(index, delta), part, out);
            }
        }
    }

    fn event(&mut self, _prompt: usize, event: StreamEvent, out: &mut Out) {
        match event {
            // A suspended generation ends with an error.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Suspended(_) => {}
            StreamEvent::Delta { choice, text, tokens } => {
                let part = self.said.more(choice as usize, &text, &tokens);
                let delta = ChatDelta { role: None, content: Some(text) };
                let logprobs = self.logprobs.then(|| self.names.chat(&tokens));
                let token_ids = self.token_ids.then(|| tokens.iter().map(|token| token.id).collect());
                let index = choice as usize;
                self.choice(ChatChunkChoice { logprobs, token_ids, ..chunk_choice(index, delta) }, part, out);
            }
            StreamEvent::Finished { choice, reason, usage } => {
                self.count(usage);
                let (finish_reason, stop_reason) = (Some(reason.as_str()), StopReason::of(&reason));
                let last = chunk_choice(choice as usize, ChatDelta::default());
                let part = self.said.finished(choice as usize, usage);
                self.choice(ChatChunkChoice { finish_reason, stop_reason, ..last }, part, out);
            }
        }
    }

    fn in_fleet(&self) -> bool {
        self.said.in_fleet
    }

    fn usage(&self) -> Option<UsageReport> {
        self.include_usage.then_some(self.usage)
    }

    fn bare(&self, usage: Option<Option<UsageReport>>, anyfleet: Option<Part>, out: &mut Out) {
        out.data(&ChatChunk { anyfleet, ..self.chunk(Vec::new(), usage) });
    }
}

/// An answer that is sent when it is complete.
struct Whole {
    answer: Answer,
    /// By index, with the tokens, which are named at the end.
    choices: Vec<(ChatChoice, Vec<TokenLogprob>)>,
}

impl Whole {
    fn new(answer: Answer) -> Self {
        let choice = |index| {
            let message = AssistantMessage { role: "assistant", content: String::new(), refusal: None };
            let finish_reason = anyfleet::FinishReason::Length.as_str();
            (
                ChatChoice { index, message, logprobs: None, finish_reason, stop_reason: None, token_ids: None },
                Vec::new(),
            )
        };
        Whole { choices: (0..answer.begun.len()).map(choice).collect(), answer }
    }

    fn event(&mut self, event: StreamEvent) {
        match event {
            // A suspended generation ends with an error.
            StreamEvent::PromptLogprobs(_) | StreamEvent::Suspended(_) => {}
            StreamEvent::Delta { choice, text, tokens } => {
                let (growing, all_tokens) = &mut self.choices[choice as usize];
                growing.message.content.push_str(&text);
                all_tokens.extend(tokens);
            }
            StreamEvent::Finished { choice, reason, usage } => {
                let (done, _) = &mut self.choices[choice as usize];
                done.finish_reason = reason.as_str();
                done.stop_reason = StopReason::of(&reason);
                self.answer.count(usage);
            }
        }
    }

    fn finish(self) -> ChatResponse {
        let Whole { answer, choices } = self;
        let finish = |(mut choice, tokens): (ChatChoice, Vec<TokenLogprob>)| {
            choice.logprobs = answer.logprobs.then(|| answer.names.chat(&tokens));
            choice.token_ids = answer.token_ids.then(|| tokens.iter().map(|token| token.id).collect());
            choice
        };
        let choices = choices.into_iter().map(finish).collect();
        let Head { id, created, model, system_fingerprint } = answer.head;
        ChatResponse {
            id,
            object: "chat.completion",
            created,
            model,
            system_fingerprint,
            choices,
            usage: answer.usage,
            prompt_token_ids: answer.prompt_ids,
        }
    }
}
