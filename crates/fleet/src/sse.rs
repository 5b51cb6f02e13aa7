//! Server-sent events as servers write them, and what in them is the gateway's.
use anyfleet_openai::fleet::Part;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use memchr::{memchr_iter, memmem};

/// An event larger than this is no chunk of an answer.
const MAX_EVENT: usize = 64 << 20;

/// Events of a body.
pub(crate) struct Events {
    body: Incoming,
    read: Buffer,
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
        Events { body, read: Buffer::default() }
    }

    /// Waits for an event that [`Events::next`] has not given yet. Nothing is lost when the future is dropped.
    pub async fn wait(&mut self) -> Result<(), Broken> {
        while self.read.end.is_none() {
            match self.body.frame().await {
                None => return Err(Broken::End),
                Some(Err(e)) => return Err(Broken::Reset(crate::upstream::reason(&e))),
                Some(Ok(frame)) => self.read.push(frame.data_ref().map_or(&[], |data| data)),
            }
            if self.read.bytes.len() > MAX_EVENT {
                return Err(Broken::Reset(format!("an event has more than {MAX_EVENT} bytes")));
            }
        }
        Ok(())
    }

    /// The next event that was read, with the empty line that ends it.
    pub fn next(&mut self) -> Option<&[u8]> {
        self.read.next()
    }
}

/// Bytes that were read.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// What of them was taken.
    taken: usize,
    /// Where the next event ends, if it does.
    end: Option<usize>,
}

impl Buffer {
    fn push(&mut self, data: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        // An end may have begun before.
        let from = self.bytes.len().saturating_sub(2);
        self.bytes.extend_from_slice(data);
        self.end = self.end_after(from);
    }

    fn next(&mut self) -> Option<&[u8]> {
        let event = self.taken..self.end?;
        self.taken = event.end;
        self.end = self.end_after(event.end);
        Some(&self.bytes[event])
    }

    /// Where the first empty line at or after `from` ends. Line breaks in JSON are escaped, so there are few.
    fn end_after(&self, from: usize) -> Option<usize> {
        let bytes = &self.bytes[from..];
        memchr_iter(b'\n', bytes).find_map(|at| match bytes[at + 1..] {
            [b'\n', ..] => Some(from + at + 2),
            [b'\r', b'\n', ..] => Some(from + at + 3),
            _ => None,
        })
    }
}

/// What an event means.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// For the client, as it is.
    Other(&'a [u8]),
    /// A chunk for the client but for the end of its JSON, [`Event::END`], and what it means for the ledger.
    Chunk(&'a [u8], Part),
    /// Only for the ledger.
    Silent(Part),
    /// `[DONE]`.
    Done,
    /// The server failed.
    Error(&'a [u8]),
}

/// The field with the part is the last of its chunk. In strings quotes are escaped and no part has such a field, so the
/// last of these is it; log-probabilities before it may be of a token of this name.
const FIELD: &[u8] = b",\"anyfleet\":";

impl<'a> Event<'a> {
    /// What a [`Event::Chunk`] ends with.
    pub const END: &'static [u8] = b"}\n\n";

    /// Reads an event; an error where its part cannot be read.
    pub fn read(event: &'a [u8]) -> Result<Self, String> {
        let Some(data) = event.strip_prefix(b"data: ") else { return Ok(Event::Other(event)) };
        let data = data.trim_ascii_end();
        if data == b"[DONE]" {
            return Ok(Event::Done);
        }
        if data.starts_with(b"{\"error\":") {
            return Ok(Event::Error(event));
        }
        let Some(at) = memmem::rfind(data, FIELD) else { return Ok(Event::Other(event)) };
        let part = data[at + FIELD.len()..].strip_suffix(b"}").ok_or("a chunk does not end")?;
        let part: Part = serde_json::from_slice(part).map_err(|e| format!("a chunk has a part that is none: {e}"))?;
        if matches!(part, Part::Begin(_) | Part::Suspended(_)) {
            return Ok(Event::Silent(part));
        }
        Ok(Event::Chunk(&event[..b"data: ".len() + at], part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_taken_out_of_chunks_and_text_is_left_alone() {
        let visible = br#"data: {"choices":[{"text":"say ,\"anyfleet\":{} }","top":[{"a":1,"anyfleet":2}]}]"#;
        let chunk = [&visible[..], br#","anyfleet":{"begun":{"index":3}}}"#, b"\n\n"].concat();
        let Ok(Event::Chunk(shown, part)) = Event::read(&chunk) else { panic!("a chunk") };
        assert_eq!(part, Part::Begun { index: 3 });
        assert_eq!(shown, visible);
        let plain = b"data: {\"choices\":[{\"text\":\",\\\"anyfleet\\\":1\"}]}\n\n";
        assert!(matches!(Event::read(plain), Ok(Event::Other(same)) if same == plain));
        assert!(matches!(Event::read(b"data: [DONE]\n\n"), Ok(Event::Done)));
        assert!(matches!(Event::read(b"data: [DONE]\r\n\r\n"), Ok(Event::Done)));
        assert!(matches!(Event::read(b": keep-alive\n\n"), Ok(Event::Other(_))));
        assert!(Event::read(b"data: {\"a\":1,\"anyfleet\":{\"begun\":{}}}\n\n").is_err());
    }

    #[test]
    fn events_come_whole_wherever_reads_cut_them() {
        let events: [&[u8]; 4] = [b"data: a\n\n", b": b\n\n", b"data: c\r\n\r\n", b"data: d\ndata: e\n\n"];
        let all = events.concat();
        for size in 1..=all.len() {
            let mut buffer = Buffer::default();
            let mut seen: Vec<Vec<u8>> = Vec::new();
            for data in all.chunks(size) {
                buffer.push(data);
                while let Some(event) = buffer.next() {
                    seen.push(event.to_vec());
                }
            }
            assert_eq!(seen, events, "{size} bytes at a time");
        }
    }
}
