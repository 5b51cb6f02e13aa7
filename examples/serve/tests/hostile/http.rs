//! As much of an HTTP client as it takes to send what no client would.
use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Every answer has to be there by then.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Reply {
    /// 0 where the connection was closed without an answer.
    pub status: u16,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// `choices[0].text`, or the message's.
    pub fn text(&self) -> String {
        let choice = &self.json()["choices"][0];
        let text = choice["text"].as_str().or_else(|| choice["message"]["content"].as_str());
        text.unwrap_or_else(|| panic!("no text in {self:?}")).to_owned()
    }
}

pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE))).expect("timeouts");
    stream
}

/// A request's head and body; the connection closes with the answer.
pub fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends bytes and reads all that comes back.
pub fn exchange(address: &str, bytes: &[u8]) -> Reply {
    let mut stream = connect(address);
    // A server that refuses early may close before everything is written.
    let _ = stream.write_all(bytes);
    read(&mut stream)
}

/// Reads to the end of the connection.
pub fn read(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    if let Err(e) = stream.read_to_end(&mut bytes) {
        let waited = matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        assert!(!waited, "no end of the answer within {PATIENCE:?}: {}", String::from_utf8_lossy(&bytes));
    }
    let text = String::from_utf8_lossy(&bytes);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    Reply { status, body }
}

pub fn post(address: &str, path: &str, body: &[u8]) -> Reply {
    exchange(address, &request("POST", path, body))
}

pub fn get(address: &str, path: &str) -> Reply {
    exchange(address, &request("GET", path, b""))
}

/// A number of `/metrics`, summed over its labels.
pub fn metric(address: &str, name: &str) -> f64 {
    let reply = get(address, "/metrics");
    assert_eq!(reply.status, 200, "{reply:?}");
    let lines = reply.body.lines().filter(|line| line.strip_prefix(name).is_some_and(|r| r.starts_with([' ', '{'])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
