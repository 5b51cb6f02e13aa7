//! An HTTP/1.1 client of a few lines, so that what goes over the wire is seen as it is.
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A response whose head has arrived.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    chunked: bool,
    /// What is left of the body, where its length is known.
    left: usize,
}

pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
    let mut stream = TcpStream::connect(address).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("send the head");
    stream.write_all(body).expect("send the body");
    Response::read_head(stream)
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    send(address, "GET", path, &[], &[])
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    send(address, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

impl Response {
    pub fn read_head(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("a line of the head");
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).expect("a status line").parse().expect("a status");
        let mut headers = Vec::new();
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let chunked = find("transfer-encoding") == Some("chunked");
        let left = find("content-length").map_or(0, |n| n.parse().expect("a length"));
        Response { status, headers, reader, chunked, left }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The next piece of the body; empty at its end.
    fn piece(&mut self) -> Vec<u8> {
        let length = if self.chunked {
            let mut line = String::new();
            self.reader.read_line(&mut line).expect("a chunk's length");
            usize::from_str_radix(line.trim(), 16).expect("a chunk's length")
        } else {
            std::mem::take(&mut self.left)
        };
        let mut piece = vec![0; length];
        self.reader.read_exact(&mut piece).expect("the body");
        if self.chunked {
            self.reader.read_exact(&mut [0; 2]).expect("a chunk's end");
        }
        piece
    }

    pub fn text(mut self) -> String {
        let mut body = Vec::new();
        loop {
            let piece = self.piece();
            if piece.is_empty() {
                return String::from_utf8(body).expect("UTF-8");
            }
            body.extend(piece);
        }
    }

    pub fn json(self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The body of a success.
    pub fn ok(self) -> Value {
        let status = self.status;
        let text = self.text();
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The error object of a failure: all four fields, the message one line.
    pub fn error(self, status: u16) -> Value {
        let got = self.status;
        let body = self.json();
        assert_eq!(got, status, "{body}");
        let error = body["error"].as_object().unwrap_or_else(|| panic!("no error object in {body}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"]);
        let message = error["message"].as_str().expect("a message");
        assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        body["error"].clone()
    }

    /// The next event of a stream: its data, or nothing for a comment; `None` at the end.
    pub fn event(&mut self) -> Option<String> {
        let piece = self.piece();
        let text = String::from_utf8(piece).expect("UTF-8");
        (!text.is_empty()).then_some(text)
    }

    /// All chunks of a stream, which must end with `[DONE]`.
    pub fn chunks(self) -> Vec<Value> {
        assert_eq!(self.status, 200);
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let text = self.text();
        let mut data: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(data.pop(), Some("data: [DONE]"), "{text}");
        data.iter()
            .map(|event| serde_json::from_str(event.strip_prefix("data: ").expect("data")).expect("JSON"))
            .collect()
    }
}
