//! HTTP as the hub needs it: one GET that follows redirects, keeps the first answer's metadata and
//! never sends the token to another host.
use super::{Hub, hub_error};
use crate::Result;
use crate::error::quote;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

const REDIRECTS: usize = 8;
/// A server that sends nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) struct Client<'a> {
    agent: Agent,
    hub: &'a Hub,
    model: &'a str,
}

/// An answer with a body still to be read.
pub(super) struct Answer {
    pub status: StatusCode,
    /// From the endpoint itself: commit, tag and size of the file.
    pub meta: Meta,
    /// First byte of the file in this body: above 0 where the server resumed.
    pub start: u64,
    pub body: Body,
}

/// What the hub says about a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Meta {
    pub commit: Option<String>,
    pub etag: Option<String>,
    pub size: Option<u64>,
    /// Of files the hub keeps in large-file storage, in hexadecimal.
    pub sha256: Option<String>,
    /// The hub's own words for a refusal.
    pub message: Option<String>,
    pub error_code: Option<String>,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub, model: &'a str) -> Result<Self> {
        let endpoint = hub.endpoint.parse::<Uri>().ok().filter(|u| u.host().is_some() && scheme_fits(u));
        let Some(endpoint) = endpoint else {
            return Err(hub_error(
                model,
                format!("HF_ENDPOINT is {}; expected an http or https URL", quote(&hub.endpoint)),
            ));
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(SILENCE))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .user_agent(concat!("anyfleet/", env!("CARGO_PKG_VERSION")));
        // A mirror on this machine is not behind the proxy.
        if matches!(endpoint.host(), Some("localhost" | "127.0.0.1" | "[::1]")) {
            config = config.proxy(None);
        }
        Ok(Client { agent: config.build().into(), hub, model })
    }

    /// Asks for `path` below the endpoint, from byte `from` on.
    pub(super) fn get(&self, path: &str, from: u64) -> Result<Answer> {
        let mut url = format!("{}/{path}", self.hub.endpoint.trim_end_matches('/'));
        let home = origin(&url);
        let mut meta = Meta::default();
        for _ in 0..REDIRECTS {
            let at_home = origin(&url) == home;
            let response = self.send(&url, from, at_home)?;
            // The hub may redirect within itself before it says what the file is; what storage says
            // is about its own copy.
            if at_home {
                meta.fill(Meta::read(response.headers()));
            }
            if !response.status().is_redirection() {
                return Ok(Answer::new(response, meta));
            }
            let target = response.headers().get("location").and_then(|l| l.to_str().ok());
            url = target.and_then(|target| join(&url, target)).ok_or_else(|| {
                hub_error(self.model, format!("{} redirects to no valid address; check HF_ENDPOINT", quote(&url)))
            })?;
        }
        Err(hub_error(self.model, format!("{} redirects in circles; check HF_ENDPOINT", quote(&url))))
    }

    fn send(&self, url: &str, from: u64, own_host: bool) -> Result<Response<Body>> {
        let mut request = self.agent.get(url).header("accept-encoding", "identity");
        if let (Some(token), true) = (&self.hub.token, own_host) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| {
            let reason = format!("{} cannot be fetched: {e}; check the network and HF_ENDPOINT", quote(url));
            hub_error(self.model, quote_line(&reason))
        })
    }
}

impl Answer {
    fn new(response: Response<Body>, mut meta: Meta) -> Self {
        let (parts, body) = response.into_parts();
        let length = number(&parts.headers, "content-length");
        let range = parts.headers.get("content-range").and_then(|v| v.to_str().ok());
        // `bytes START-END/TOTAL`
        let range = range.and_then(|r| r.strip_prefix("bytes ")?.split_once('/'));
        let start = match parts.status {
            StatusCode::PARTIAL_CONTENT => range.and_then(|(r, _)| r.split_once('-')?.0.parse().ok()).unwrap_or(0),
            _ => 0,
        };
        let total = range.and_then(|(_, total)| total.parse().ok());
        if parts.status.is_success() {
            meta.size = meta.size.or(total).or(length.map(|l| l + start));
        }
        Answer { status: parts.status, meta, start, body }
    }
}

impl Meta {
    /// Takes from `later` what is not known yet.
    fn fill(&mut self, later: Meta) {
        self.commit = self.commit.take().or(later.commit);
        self.etag = self.etag.take().or(later.etag);
        self.size = self.size.or(later.size);
        self.sha256 = self.sha256.take().or(later.sha256);
        self.message = self.message.take().or(later.message);
        self.error_code = self.error_code.take().or(later.error_code);
    }

    fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let is_sha256 = |t: &String| t.len() == 64 && t.bytes().all(|b| b.is_ascii_hexdigit());
        let linked = text("x-linked-etag");
        Meta {
            commit: text("x-repo-commit"),
            sha256: linked.as_deref().map(|t| t.trim_matches('"').to_ascii_lowercase()).filter(is_sha256),
            etag: linked.or_else(|| text("etag")),
            size: number(headers, "x-linked-size"),
            message: text("x-error-message"),
            error_code: text("x-error-code"),
        }
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn scheme_fits(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
}

/// Scheme, host and port: what a token may be sent to.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// The address `target` means when `base` redirects to it.
fn join(base: &str, target: &str) -> Option<String> {
    let absolute = if target.contains("://") {
        target.to_owned()
    } else if let Some(rest) = target.strip_prefix("//") {
        format!("{}://{rest}", base.parse::<Uri>().ok()?.scheme_str()?)
    } else if target.starts_with('/') {
        format!("{}{target}", origin(base)?)
    } else {
        let path = base.split(['?', '#']).next()?;
        format!("{}/{target}", path.rsplit_once('/')?.0)
    };
    let uri: Uri = absolute.parse().ok()?;
    let downgrade = base.starts_with("https:") && uri.scheme_str() == Some("http");
    (scheme_fits(&uri) && uri.host().is_some() && !downgrade).then_some(absolute)
}

/// A message made of several parts, on one line.
fn quote_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
