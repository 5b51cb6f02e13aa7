//! Reads request bodies within limits of size and time.
use crate::ApiError;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use futures_util::StreamExt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Time a client has to send its request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// A body up to this many times too large is read to its end and thrown away: a client that is still
/// writing when the connection closes sees a reset and not the answer.
const PATIENCE: usize = 8;
/// Bodies of the largest size that are held at once, over all connections.
const LARGE_BODIES: usize = 16;
/// Bytes that any body may have beside those, so that ordinary requests never wait for large ones.
const SMALL_BODY: usize = 64 << 10;
/// Bytes of a permit.
const UNIT: usize = 1 << 10;

/// Limits of request bodies. Clones share what all bodies may hold.
#[derive(Clone, Debug)]
pub struct BodyLimits {
    /// Bytes of one.
    most: usize,
    /// What all of them may hold beyond [`SMALL_BODY`], in [`UNIT`]s.
    room: Arc<Semaphore>,
}

/// A body. Its size counts until it is dropped.
#[derive(Debug)]
pub struct RequestBody {
    bytes: Vec<u8>,
    _held: Option<OwnedSemaphorePermit>,
}

impl Deref for RequestBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for RequestBody {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl BodyLimits {
    /// For bodies of at most this many bytes each.
    pub fn new(most: usize) -> Self {
        let each = most.saturating_sub(SMALL_BODY).div_ceil(UNIT);
        let units = each.saturating_mul(LARGE_BODIES).min(Semaphore::MAX_PERMITS);
        BodyLimits { most, room: Arc::new(Semaphore::new(units)) }
    }

    /// Reads a request's body.
    ///
    /// # Errors
    /// It is too large (413), too slow (408), cut off (400), or others of its size are being held (503).
    pub async fn read(&self, request: Request) -> Result<RequestBody, ApiError> {
        match tokio::time::timeout(BODY_TIMEOUT, self.read_all(request.into_body())).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("The request body did not arrive within {} s.", BODY_TIMEOUT.as_secs());
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
            }
        }
    }

    async fn read_all(&self, body: Body) -> Result<RequestBody, ApiError> {
        let limit = self.most;
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        let mut held = None;
        let mut length = 0usize;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| {
                ApiError::new(StatusCode::BAD_REQUEST, format!("The request body could not be read: {e}."))
            })?;
            length += chunk.len();
            if length <= limit {
                self.hold(&mut held, length)?;
                bytes.extend_from_slice(&chunk);
            } else if length > limit.saturating_mul(PATIENCE) {
                break;
            } else {
                (bytes, held) = (Vec::new(), None);
            }
        }
        if length > limit {
            let message = format!("The request body is larger than {limit} bytes.");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("request_too_large"));
        }
        Ok(RequestBody { bytes, _held: held })
    }

    /// Makes `held` enough for a body of `length` bytes.
    fn hold(&self, held: &mut Option<OwnedSemaphorePermit>, length: usize) -> Result<(), ApiError> {
        let need = length.saturating_sub(SMALL_BODY).div_ceil(UNIT);
        let more = need.saturating_sub(held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let permit = u32::try_from(more).ok().and_then(|more| self.room.clone().try_acquire_many_owned(more).ok());
        match (permit, held) {
            (None, _) => Err(ApiError::unavailable("Too many large requests are being read; try again.", 1)),
            (Some(permit), Some(held)) => {
                held.merge(permit);
                Ok(())
            }
            (permit, held) => {
                *held = permit;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_share_what_there_is() {
        let limits = BodyLimits::new(1 << 20);
        let mut held = Vec::new();
        for _ in 0..LARGE_BODIES {
            let mut permit = None;
            for length in [10, SMALL_BODY, SMALL_BODY + 1, 1 << 19, 1 << 20] {
                limits.hold(&mut permit, length).unwrap();
            }
            held.push(permit);
        }
        assert_eq!(limits.hold(&mut None, 1 << 20).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        limits.hold(&mut None, SMALL_BODY).unwrap();
        held.pop();
        limits.hold(&mut None, 1 << 20).unwrap();
    }
}
