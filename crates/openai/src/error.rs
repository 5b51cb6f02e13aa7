//! Failures as OpenAI's error bodies.
use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::borrow::Cow;

/// A refusal or failure, answered as `{"error": {message, type, param, code}}`.
///
/// <https://platform.openai.com/docs/guides/error-codes>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`, e.g. `invalid_request_error`.
    pub kind: &'static str,
    /// What is wrong and what to do, one line.
    pub message: String,
    /// The parameter at fault, e.g. `messages[0].content`.
    pub param: Option<Cow<'static, str>>,
    /// A word for programs, e.g. `context_length_exceeded`.
    pub code: Option<&'static str>,
    /// Seconds after which another try makes sense, sent as `Retry-After`.
    pub retry_after: Option<u32>,
}

impl ApiError {
    /// A failure of `status` whose `type` is the one OpenAI uses with it.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            _ if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A request that cannot be served as it stands: 400, naming the parameter.
    pub fn invalid(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        ApiError { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// Something OpenAI has and this server does not: 400.
    pub fn unsupported(param: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::invalid(param, message).code("unsupported_parameter")
    }

    /// A model by another name than those served: 404.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{}` does not exist", shorten(model));
        let error = Self::new(StatusCode::NOT_FOUND, message).code("model_not_found");
        ApiError { param: Some("model".into()), ..error }
    }

    /// No such route: 404.
    pub fn unknown_url(request: &Request) -> Self {
        let message = format!("Invalid URL ({} {})", request.method(), shorten(request.uri().path()));
        ApiError::new(StatusCode::NOT_FOUND, message).code("unknown_url")
    }

    /// A route that has other methods: 405.
    pub fn wrong_method(request: &Request) -> Self {
        let message = format!("Not allowed to {} on {}", request.method(), shorten(request.uri().path()));
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_supported")
    }

    /// Not able to answer at this moment: 503 with `Retry-After`.
    pub fn unavailable(message: impl Into<String>, retry_after: u32) -> Self {
        ApiError { retry_after: Some(retry_after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// An answer that goes on elsewhere, for callers who do not follow it: 503.
    pub(crate) fn suspended() -> Self {
        Self::unavailable("The answer was suspended because this server gives its work away; ask again.", 1)
            .code("suspended")
    }

    /// The same with a code.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// The body.
    pub fn body(&self) -> ErrorBody<'_> {
        let error =
            ErrorObject { message: &self.message, kind: self.kind, param: self.param.as_deref(), code: self.code };
        ErrorBody { error }
    }
}

/// At most 200 characters of what a client sent, for a message.
pub(crate) fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(200) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// `{"error": ...}`.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody<'a> {
    /// The error.
    pub error: ErrorObject<'a>,
}

/// OpenAI's error object; all four fields are always there.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorObject<'a> {
    /// See [`ApiError::message`].
    pub message: &'a str,
    /// See [`ApiError::kind`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// See [`ApiError::param`].
    pub param: Option<&'a str>,
    /// See [`ApiError::code`].
    pub code: Option<&'static str>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<anyfleet::Error> for ApiError {
    fn from(error: anyfleet::Error) -> Self {
        use anyfleet::Error;
        let message = error.to_string();
        match error {
            Error::Request { param, .. } => {
                ApiError { param: param.map(Cow::Owned), ..ApiError::new(StatusCode::BAD_REQUEST, message) }
            }
            Error::ContextLength { .. } => {
                ApiError::new(StatusCode::BAD_REQUEST, message).code("context_length_exceeded")
            }
            Error::QueueFull { .. } => {
                let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).code("queue_full");
                ApiError { retry_after: Some(1), ..error }
            }
            Error::ShuttingDown => ApiError::unavailable(message, 5),
            _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        }
    }
}
