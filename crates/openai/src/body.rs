//! Reads request bodies within limits of size and time.
use crate::ApiError;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use futures_util::StreamExt;
use std::time::Duration;

/// Time a client has to send its request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A body up to this many times too large is read to its end and thrown away: a client that is still
/// writing when the connection closes sees a reset and not the answer.
const PATIENCE: usize = 8;

pub(crate) async fn read_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIMEOUT, read(request.into_body(), limit)).await {
        Ok(result) => result,
        Err(_) => {
            let message = format!("The request body did not arrive within {} s.", BODY_TIMEOUT.as_secs());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut length = 0usize;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, format!("The request body could not be read: {e}.")))?;
        length += chunk.len();
        if length <= limit {
            bytes.extend_from_slice(&chunk);
        } else if length > limit.saturating_mul(PATIENCE) {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if length > limit {
        let message = format!("The request body is larger than {limit} bytes.");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large"));
    }
    Ok(bytes.into())
}
