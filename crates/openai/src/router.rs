//! Routes, and what holds for all of them.
use crate::chat_completions::chat_completions;
use crate::completions::completions;
use crate::fleet::routes as fleet;
use crate::metrics::CONTENT_TYPE;
use crate::protocol::{ModelList, ModelObject};
use crate::{ApiError, ServerState};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::FutureExt;
use serde_json::json;
use std::panic::AssertUnwindSafe;

/// The API of a server:
///
/// | Route | |
/// |---|---|
/// | `GET /v1/models`, `GET /v1/models/{id}` | the model, with `max_model_len` |
/// | `POST /v1/completions` | see [`CompletionRequest`](crate::protocol::CompletionRequest) |
/// | `POST /v1/chat/completions` | see [`ChatRequest`](crate::protocol::ChatRequest) |
/// | `/fleet/...` | with [`fleet_key`](crate::ServerStateBuilder::fleet_key): see [`fleet`](crate::fleet) |
/// | `GET /health` | 200 when requests are answered, 503 before, while draining and after a failure |
/// | `GET /metrics` | Prometheus metrics in OpenMetrics text |
///
/// The key of [`api_key`](crate::ServerStateBuilder::api_key) guards what is under `/v1/`. All errors
/// have OpenAI's shape.
pub fn router(state: ServerState) -> Router {
    let v1 = Router::new()
        .route("/v1/models", get(models))
        // Hub names have a slash in them.
        .route("/v1/models/{*id}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route_layer(from_fn_with_state(state.clone(), authorize));
    let fleet = Router::new()
        .route("/fleet/resume", post(fleet::resume))
        .route("/fleet/suspend/{id}", post(fleet::suspend))
        .route("/fleet/drain", post(fleet::drain))
        .route("/fleet/status", get(fleet::status))
        .route_layer(from_fn_with_state(state.clone(), fleet::authorize));
    Router::new()
        .merge(v1)
        .merge(fleet)
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async |request: Request| ApiError::unknown_url(&request))
        .method_not_allowed_fallback(async |request: Request| ApiError::wrong_method(&request))
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// Counts answers, and makes one of a panic: that is a bug of ours, but the client should hear of it.
async fn observe(State(state): State<ServerState>, request: Request, next: Next) -> Response {
    let endpoint = match request.uri().path() {
        "/v1/models" => "/v1/models",
        path if path.starts_with("/v1/models/") => "/v1/models/{id}",
        "/v1/completions" => "/v1/completions",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/fleet/resume" => "/fleet/resume",
        path if path.starts_with("/fleet/suspend/") => "/fleet/suspend/{id}",
        "/fleet/drain" => "/fleet/drain",
        "/fleet/status" => "/fleet/status",
        "/health" => "/health",
        "/metrics" => "/metrics",
        _ => "other",
    };
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a request to {endpoint} failed: its handler panicked");
        let message = "Internal error: the request could not be handled.";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
    });
    state.metrics().answered(endpoint, response.status().as_u16());
    response
}

async fn authorize(State(state): State<ServerState>, request: Request, next: Next) -> Result<Response, ApiError> {
    state.authorize(request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes()))?;
    Ok(next.run(request).await)
}

async fn models(State(state): State<ServerState>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList { object: "list", data: vec![state.serving()?.model()] }))
}

async fn model(State(state): State<ServerState>, Path(id): Path<String>) -> Result<Json<ModelObject>, ApiError> {
    let serving = state.serving()?;
    serving.check_model(&id)?;
    Ok(Json(serving.model()))
}

async fn health(State(state): State<ServerState>) -> Response {
    match state.serving() {
        Ok(_) => Json(json!({"status": "ok"})).into_response(),
        // Whoever asks for health wants to know whether to send requests: 503 whatever the reason.
        Err(error) => ApiError { status: StatusCode::SERVICE_UNAVAILABLE, ..error }.into_response(),
    }
}

async fn metrics(State(state): State<ServerState>) -> Result<Response, ApiError> {
    let text = state.metrics().encode().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
