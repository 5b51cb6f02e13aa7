//! Requests to servers.
use crate::pool::Pool;
use anyfleet_openai::fleet::KEY_HEADER;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// Time to connect to a server in the same network.
const CONNECT: Duration = Duration::from_secs(2);

/// Sends requests; clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    fleet_key: Option<HeaderValue>,
}

/// A request without an answer.
#[derive(Debug)]
pub(crate) struct Failure {
    pub message: String,
    /// The server takes no connections.
    pub refused: bool,
}

impl Failure {
    pub fn of(message: impl Into<String>) -> Self {
        Failure { message: message.into(), refused: false }
    }
}

/// Errors of Linux that are this process's own: no memory, no file descriptors, no ports.
const OWN: [i32; 4] = [12, 23, 24, 99];

/// Whether this process is what failed.
fn is_own(error: &(dyn std::error::Error + 'static)) -> bool {
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| OWN.contains(&code)) || error.source().is_some_and(is_own)
}

impl Client {
    pub fn new(fleet_key: Option<HeaderValue>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        Client { http: HyperClient::builder(TokioExecutor::new()).build(connector), fleet_key }
    }

    /// Sends a request with the server's own keys; the head of its answer.
    pub async fn send(
        &self,
        pool: &Pool,
        method: Method,
        path: &str,
        body: Bytes,
        accept: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        let uri = format!("{}{path}", pool.config.url.trim_end_matches('/'));
        *request.uri_mut() = uri.parse().map_err(|e| Failure::of(format!("{uri}: {e}")))?;
        self.headers(pool, accept, request.headers_mut());
        let answered = self.http.request(request).await;
        answered.map_err(|e| Failure { message: reason(&e), refused: e.is_connect() && !is_own(&e) })
    }

    fn headers(&self, pool: &Pool, accept: Option<&HeaderValue>, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(accept) = accept {
            headers.insert(header::ACCEPT, accept.clone());
        }
        let bearer = pool.config.api_key.as_ref().map(|key| HeaderValue::from_str(&format!("Bearer {key}")));
        if let Some(Ok(bearer)) = bearer {
            headers.insert(header::AUTHORIZATION, bearer);
        }
        if let Some(key) = self.fleet_key.as_ref().filter(|_| pool.can_move()) {
            headers.insert(KEY_HEADER, key.clone());
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}
