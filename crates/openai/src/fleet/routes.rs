//! The routes under `/fleet/`.
use super::registry::Outcome;
use super::{Api, Drained, Status, StreamSnapshot, VERSION};
use crate::{ApiError, Phase, ServerState, chat_completions, completions};
use anyfleet::{Identity, RequestSnapshot};
use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use serde::Deserialize;

/// Prompts of a snapshot at most: as many as a request may have.
const MAX_PROMPTS: usize = crate::protocol::MAX_PROMPTS;

pub(crate) async fn authorize(
    State(state): State<ServerState>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    match state.in_fleet(request.headers())? {
        true => Ok(next.run(request).await),
        false => {
            let message = format!("This route is for the fleet: send its key as '{}'.", super::KEY_HEADER);
            Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_fleet_key"))
        }
    }
}

pub(crate) async fn resume(State(state): State<ServerState>, request: Request) -> Result<Response, ApiError> {
    let metrics = state.metrics().request();
    state.serving()?;
    let body = state.read_body(request).await?;
    let (worker, length) = (state.clone(), body.len());
    let read = move || read(&body, &worker.serving()?.engine.info().identity);
    let snapshot = state.text_work(length, read).await?;
    state.serving()?.check_model(&snapshot.answer.model)?;
    match snapshot.answer.api {
        Api::Chat => chat_completions::resume(&state, snapshot, metrics).await,
        Api::Completions => completions::resume(&state, snapshot, metrics).await,
    }
}

/// A snapshot that makes sense to this engine, as far as can be told without running it.
fn read(body: &[u8], ours: &Identity) -> Result<StreamSnapshot, ApiError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad = |message: String| ApiError::invalid("snapshot", message).code("invalid_snapshot");
    let no_json = |e: serde_json::Error| bad(format!("Not a snapshot of an answer: {e}"));
    // First, as a later version may have other fields.
    let Version { version } = serde_json::from_slice(body).map_err(no_json)?;
    if version != VERSION {
        return Err(bad(format!("The snapshot has version {version}; this server reads version {VERSION}.")));
    }
    let snapshot: StreamSnapshot = serde_json::from_slice(body).map_err(no_json)?;
    let (prompts, n) = (&snapshot.prompts, snapshot.answer.n as usize);
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        return Err(bad(format!("The snapshot has {} prompts; 1 to {MAX_PROMPTS} are allowed.", prompts.len())));
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let RequestSnapshot { choices, params, .. } = &prompt.request;
        prompt.request.check_identity(ours).map_err(|e| bad(format!("Prompt {i} cannot go on here: {e}.")))?;
        if [prompt.begun.len(), choices.len(), params.n as usize].iter().any(|&count| count != n) {
            return Err(bad(format!("Prompt {i} has not the {n} choices of its answer.")));
        }
    }
    Ok(snapshot)
}

pub(crate) async fn suspend(
    State(state): State<ServerState>,
    Path(id): Path<String>,
) -> Result<Json<StreamSnapshot>, ApiError> {
    let over =
        || ApiError::new(StatusCode::NOT_FOUND, "There is no such answer, or it is complete.").code("unknown_answer");
    let answering = state.answers().find(&id).ok_or_else(over)?;
    // Also while draining, when `serving` refuses.
    let engine = state.engine().ok_or_else(over)?;
    match answering.suspend(engine).await {
        Outcome::Suspended(snapshot) => Ok(Json((*snapshot).clone())),
        Outcome::Over => Err(over()),
        Outcome::Stalled => {
            let message =
                "The answer was suspended, but its caller does not read it: its stream will end with its snapshot.";
            Err(ApiError::new(StatusCode::CONFLICT, message).code("stalled"))
        }
    }
}

pub(crate) async fn drain(State(state): State<ServerState>) -> Json<Drained> {
    state.drain();
    let mut drained = Drained::default();
    let Some(engine) = state.engine() else { return Json(drained) };
    let answers = state.answers().all();
    let outcomes = join_all(answers.iter().map(|(_, answering)| answering.suspend(engine))).await;
    for ((id, _), outcome) in answers.into_iter().zip(outcomes) {
        match outcome {
            Outcome::Suspended(snapshot) => drained.snapshots.push((*snapshot).clone()),
            Outcome::Stalled => drained.stalled.push(id),
            Outcome::Over => {}
        }
    }
    Json(drained)
}

pub(crate) async fn status(State(state): State<ServerState>) -> Result<Response, ApiError> {
    let serving = match state.serving() {
        Ok(serving) => serving,
        Err(error) => state.serving_at_last().ok_or(error)?,
    };
    let (engine, stats) = (&serving.engine, serving.engine.stats());
    let info = engine.info();
    let held = |group: &anyfleet::GroupStats| {
        f64::from(group.pages - group.free - group.cached) / f64::from(group.pages.max(1))
    };
    let rates = engine.rates();
    let status = Status {
        snapshot_version: VERSION,
        model: serving.name().to_owned(),
        identity: info.identity.clone(),
        device: info.device.clone(),
        max_model_len: info.max_model_len,
        ready: state.phase() == Phase::Ready && engine.failure().is_none(),
        running: stats.requests_running,
        waiting: stats.requests_waiting,
        cache_use: stats.groups.iter().map(held).fold(0.0, f64::max),
        prefill_tokens_per_second: rates.prefill,
        decode_tokens_per_second: rates.decode,
        step_seconds: engine.step_time().map_or(0.0, |time| time.as_secs_f64()),
    };
    Ok(Json(status).into_response())
}
