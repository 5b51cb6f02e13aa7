//! Routes.
use crate::metrics::CONTENT_TYPE;
use crate::relay::{Asked, Refusal, ask, stream, through};
use crate::{Gateway, GatewayStatus, Health};
use anyfleet_openai::{ApiError, same_secret};
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::FutureExt;
use serde::Deserialize;
use std::panic::AssertUnwindSafe;

/// The API of a gateway: `/v1/models`, `/v1/completions` and `/v1/chat/completions` of its servers, `GET /health`,
/// `GET /metrics` for Prometheus, `GET /gateway/status`, and `POST /gateway/drain/{pool}`, which makes a server give its
/// work away. The key of clients guards all but health and metrics. All errors have OpenAI's shape.
pub fn router(gateway: Gateway) -> Router {
    let guarded = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/gateway/status", get(status))
        .route("/gateway/drain/{pool}", post(drain))
        .route_layer(from_fn_with_state(gateway.clone(), authorize));
    Router::new()
        .merge(guarded)
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async |request: Request| ApiError::unknown_url(&request))
        .method_not_allowed_fallback(async |request: Request| ApiError::wrong_method(&request))
        .layer(from_fn_with_state(gateway.clone(), observe))
        .with_state(gateway)
}

/// Counts answers, and makes one of a panic: that is a bug of ours, but the client should hear of it.
async fn observe(State(gateway): State<Gateway>, request: Request, next: Next) -> Response<Body> {
    let endpoint = match request.uri().path() {
        "/v1/models" => "/v1/models",
        "/v1/completions" => "/v1/completions",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/gateway/status" => "/gateway/status",
        path if path.starts_with("/gateway/drain/") => "/gateway/drain/{pool}",
        "/health" => "/health",
        "/metrics" => "/metrics",
        _ => "other",
    };
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a request to {endpoint} failed: its handler panicked");
        let message = "Internal error: the request could not be handled.";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
    });
    gateway.shared.metrics.answered(endpoint, response.status().as_u16());
    response
}

async fn authorize(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response<Body>, ApiError> {
    if let Some(key) = &gateway.shared.config.api_key {
        let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
        if !same_secret(given, key.as_bytes()) {
            let message = "Incorrect API key provided: send 'Authorization: Bearer YOUR_KEY'.";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key"));
        }
    }
    Ok(next.run(request).await)
}

async fn completions(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    answer(gateway, "/v1/completions", request).await
}

async fn chat_completions(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    answer(gateway, "/v1/chat/completions", request).await
}

async fn models(State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    let asked = Asked { path: "/v1/models", body: Bytes::new() };
    let answered = ask(&gateway.shared, Method::GET, &asked, false).await;
    answered.map(|(held, response)| through(response, held)).or_else(refused)
}

async fn answer(gateway: Gateway, path: &'static str, request: Request) -> Result<Response<Body>, ApiError> {
    /// All that a gateway has to know of a request; whether it is one is the server's to say.
    #[derive(Deserialize)]
    struct Wish {
        #[serde(default)]
        stream: bool,
    }
    let asked = Asked { path, body: Bytes::from_owner(gateway.shared.bodies.read(request).await?) };
    let streams = serde_json::from_slice::<Wish>(&asked.body).is_ok_and(|wish| wish.stream);
    let answered = match streams {
        true => stream(gateway.shared.clone(), asked).await,
        false => {
            ask(&gateway.shared, Method::POST, &asked, false).await.map(|(held, response)| through(response, held))
        }
    };
    answered.or_else(refused)
}

fn refused(refusal: Refusal) -> Result<Response<Body>, ApiError> {
    match refusal {
        Refusal::Answer(response) => Ok(response.map(Body::new)),
        Refusal::Nobody(why) => {
            let message = format!("No server takes this request: {why}.");
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).code("no_server");
            Err(ApiError { retry_after: Some(1), ..error })
        }
    }
}

async fn health(State(gateway): State<Gateway>) -> Response<Body> {
    match gateway.shared.pools.iter().any(|pool| pool.health() == Health::Up) {
        true => Json(serde_json::json!({"status": "ok"})).into_response(),
        false => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "No server takes requests.").into_response(),
    }
}

async fn metrics(State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    let text = gateway.shared.metrics.encode();
    let text = text.map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

async fn status(State(gateway): State<Gateway>) -> Json<GatewayStatus> {
    Json(gateway.status())
}

async fn drain(State(gateway): State<Gateway>, Path(name): Path<String>) -> Result<Response<Body>, ApiError> {
    let pool = gateway.shared.pools.iter().find(|pool| pool.config.name == name && pool.can_move());
    let pool =
        pool.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "There is no such pool of anyfleet servers."))?;
    pool.note(Health::Refusing);
    let drained = gateway.shared.client.send(pool, Method::POST, "/fleet/drain", Bytes::new(), None).await;
    let drained = drained.map_err(|e| ApiError::new(StatusCode::BAD_GATEWAY, format!("{name}: {}", e.message)))?;
    Ok(Json(serde_json::json!({"status": drained.status().as_u16()})).into_response())
}
