//! Server-sent events as servers write them, and what in them is the gateway's.
use anyfleet_openai::fleet::Part;
use axum::body::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// An event larger than this is no chunk of an answer.
const MAX_EVENT: usize = 64 << 20;

/// Events of a body.
pub(crate) struct Events {
    body: Incoming,
    read: Vec<u8>,
    /// What of it was taken.
    taken: usize,
}

/// Why a body has no more events.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It ended.
    End,
    /// The connection failed.
    Reset(String),
}

impl Events {
    pub fn new(body: Incoming) -> Self {
        Events { body, read: Vec::new(), taken: 0 }
    }

    /// The next event with the empty line that ends it. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Bytes, Broken> {
        let mut searched = self.taken;
        loop {
            let from = searched.saturating_sub(1).max(self.taken);
            if let Some(at) = self.read[from..].windows(2).position(|two| two == b"\n\n") {
                let end = from + at + 2;
                let event = Bytes::copy_from_slice(&self.read[self.taken..end]);
                self.taken = end;
                return Ok(event);
            }
            searched = self.read.len();
            if self.taken > 0 {
                self.read.drain(..self.taken);
                searched -= self.taken;
                self.taken = 0;
            }
            match self.body.frame().await {
                None => return Err(Broken::End),
                Some(Err(e)) => return Err(Broken::Reset(crate::upstream::reason(&e))),
                Some(Ok(frame)) => self.read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            }
            if self.read.len() > MAX_EVENT {
                return Err(Broken::Reset(format!("an event has more than {MAX_EVENT} bytes")));
            }
        }
    }
}

/// What an event means.
#[derive(Debug)]
pub(crate) enum Event {
    /// For the client, as it is.
    Other(Bytes),
    /// A chunk for the client and what it means for the ledger.
    Chunk(Vec<u8>, Part),
    /// Only for the ledger.
    Silent(Part),
    /// `[DONE]`.
    Done,
    /// The server failed.
    Error(Bytes),
}

/// The field with the part is the last of its chunk. In strings quotes are escaped, so this occurs nowhere else.
const FIELD: &[u8] = b",\"anyfleet\":";

impl Event {
    /// Reads an event; an error where its part cannot be read.
    pub fn read(event: Bytes) -> Result<Event, String> {
        let Some(data) = event.strip_prefix(b"data: ") else { return Ok(Event::Other(event)) };
        let data = data.trim_ascii_end();
        if data == b"[DONE]" {
            return Ok(Event::Done);
        }
        if data.starts_with(b"{\"error\":") {
            return Ok(Event::Error(event));
        }
        let Some(at) = data.windows(FIELD.len()).position(|field| field == FIELD) else {
            return Ok(Event::Other(event));
        };
        let part = data[at + FIELD.len()..].strip_suffix(b"}").ok_or("a chunk does not end")?;
        let part: Part = serde_json::from_slice(part).map_err(|e| format!("a chunk has a part that is none: {e}"))?;
        if matches!(part, Part::Begin(_) | Part::Suspended(_)) {
            return Ok(Event::Silent(part));
        }
        Ok(Event::Chunk([b"data: ", &data[..at], b"}\n\n"].concat(), part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_out_of_chunks_and_text_is_left_alone() {
        let chunk =
            br#"data: {"choices":[{"text":"say ,\"anyfleet\":{} }"}],"usage":null,"anyfleet":{"begun":{"index":3}}}"#;
        let event = Bytes::from([&chunk[..], b"\n\n"].concat());
        let Ok(Event::Chunk(visible, part)) = Event::read(event) else { panic!("a chunk") };
        assert_eq!(part, Part::Begun { index: 3 });
        let rest = br#"data: {"choices":[{"text":"say ,\"anyfleet\":{} }"}],"usage":null}"#;
        assert_eq!(visible, [&rest[..], b"\n\n"].concat());
        let plain = Bytes::from_static(b"data: {\"choices\":[{\"text\":\",\\\"anyfleet\\\":1\"}]}\n\n");
        assert!(matches!(Event::read(plain.clone()), Ok(Event::Other(same)) if same == plain));
        assert!(matches!(Event::read(Bytes::from_static(b"data: [DONE]\n\n")), Ok(Event::Done)));
        assert!(matches!(Event::read(Bytes::from_static(b": keep-alive\n\n")), Ok(Event::Other(_))));
        assert!(Event::read(Bytes::from_static(b"data: {\"a\":1,\"anyfleet\":{\"begun\":{}}}\n\n")).is_err());
    }
}
