//! Connections that are not what HTTP expects, and clients that go away.
use crate::http::{connect, exchange, get, metric, request};
use crate::requests::Target;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn head(lines: &str) -> Vec<u8> {
    format!("POST /v1/completions HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{lines}\r\n").into_bytes()
}

#[test]
fn what_is_no_http() {
    let mut target = Target::new(&[]);
    const REFUSED: &[u16] = &[0, 400, 404, 405, 408, 411, 413, 414, 431, 501, 505];
    let mut send = |name: &str, bytes: &[u8]| target.bytes(name, bytes, REFUSED);
    send("noise", &(0..10_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>());
    send("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n");
    send("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    send("HTTP/0.9", b"GET /\r\n\r\n");
    send("HTTP/9.9", b"GET / HTTP/9.9\r\n\r\n");
    send("no path", b"GET  HTTP/1.1\r\n\r\n");
    send("a megabyte of headers", &head(&format!("X: {}\r\n", "a".repeat(1 << 20))));
    send("100000 headers", &head(&"A: b\r\n".repeat(100_000)));
    send("a header with NUL", &head("X: a\0b\r\n"));
    send("a header without colon", &head("garbage\r\n"));
    send("a path of a megabyte", format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)).as_bytes());
    send("dots", b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    send("percents", b"GET /v1/%00%2e%2e%2f%ff HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    send("a model that is none", b"GET /v1/models/%00/../x%ff%0a HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n");
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "X"] {
        send(method, &request(method, "/v1/completions", b"{}"));
    }
    send("CONNECT", b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n");
    for length in ["-1", "1e3", "99999999999999999999999", "0x10", "", "5, 6"] {
        send(&format!("a length of {length}"), &head(&format!("Content-Length: {length}\r\n")));
    }
    send("two lengths", &head("Content-Length: 1\r\nContent-Length: 2\r\n"));
    // Nothing more comes after these, so that no answer has to wait for it.
    let half_open = |name: &str, bytes: &[u8]| {
        let mut stream = connect(&target.server.address);
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let status = crate::http::read(&mut stream).status;
        assert!(REFUSED.contains(&status), "{name}: {status}");
    };
    half_open("blank lines", &b"\r\n".repeat(50_000));
    half_open("half a head", b"POST /v1/completions HTTP/1.1\r\nHo");
    for chunks in [
        "ZZZ\r\n",
        "-1\r\n",
        "FFFFFFFFFFFFFFFFF\r\nx",
        "5;a=b\r\nabc",
        "3\r\nabcdef\r\n0\r\n\r\n",
        "0\r\nX: \0\r\n\r\n",
    ] {
        half_open(chunks, &[head("Transfer-Encoding: chunked\r\n"), chunks.as_bytes().to_vec()].concat());
    }
    let both = [head("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), b"0\r\n\r\n".to_vec()].concat();
    target.bytes("chunks and a length", &both, REFUSED);
    target.bytes("a strange encoding", &head("Transfer-Encoding: gzip, x\r\n"), REFUSED);
    for kind in ["text/plain", "multipart/form-data", "application/xml", "\u{ff}", ""] {
        let body = json!({"model": target.model(), "prompt": "x", "max_tokens": 1}).to_string();
        let head = head(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()));
        target.bytes(&format!("as {kind:?}"), &[head, body.into_bytes()].concat(), &[200, 400, 415]);
    }
    target.done();
}

#[test]
fn clients_that_do_not_finish() {
    let target = Target::new(&[]);
    let address = target.server.address.clone();
    // Held open for as long as the test runs.
    let mut idle: Vec<TcpStream> = Vec::new();
    for i in 0..300 {
        let mut stream = connect(&address);
        let part: &[u8] = match i % 5 {
            0 => b"",
            1 => b"POST /v1/comp",
            2 => b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n",
            3 => b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000000\r\n\r\n{\"model\": ",
            _ => b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"mod",
        };
        stream.write_all(part).expect("write");
        idle.push(stream);
    }
    for _ in 0..3 {
        let begin = Instant::now();
        target.still_well("half a request from 300 clients");
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    }
    // A body that comes a byte at a time is a body.
    let body = json!({"model": target.model(), "prompt": "x", "max_tokens": 1}).to_string();
    let mut slow = connect(&address);
    for byte in request("POST", "/v1/completions", body.as_bytes()) {
        slow.write_all(&[byte]).expect("write");
    }
    assert_eq!(crate::http::read(&mut slow).status, 200);
    // One that ends early is none.
    for cut in [1, body.len() / 2, body.len() - 1] {
        let bytes = request("POST", "/v1/completions", body.as_bytes());
        let mut stream = connect(&address);
        stream.write_all(&bytes[..bytes.len() - cut]).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let reply = crate::http::read(&mut stream);
        assert!(matches!(reply.status, 0 | 400), "{reply:?}");
    }
    drop(idle);
    target.done();
}

#[test]
fn large_bodies_that_do_not_end() {
    const CLIENTS: usize = 40;
    let target = Target::new(&[]);
    let before = target.server.resident_mib().unwrap_or_default();
    let mut part =
        b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Length: 16000000\r\n\r\n{\"prompt\": \"".to_vec();
    part.resize(15_000_000, b'a');
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = connect(&target.server.address);
        // One too many is refused before all of it is written.
        let _ = stream.write_all(&part);
        held.push(stream);
    }
    target.still_well("large bodies without end");
    if let Some(now) = target.server.resident_mib() {
        assert!(now < before + 600, "{before} MiB before, {now} MiB with {CLIENTS} bodies of 15 MB");
    }
    drop(held);
    target.done();
}

#[test]
fn clients_that_go_away() {
    const CLIENTS: usize = 200;
    // Few pages, so that one that is not given back is missed.
    let target = Target::new(&["--kv-cache-memory", "1MiB", "--max-num-seqs", "16"]);
    let address = target.server.address.clone();
    let pages = metric(&address, "anyfleet_kv_pages");
    assert!(pages > 0.0, "{:?}", get(&address, "/metrics"));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (target, address) = (&target, &address);
            scope.spawn(move || (0..CLIENTS / 4).for_each(|i| go_away(target, address, worker + 4 * i)));
        }
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    let used = || {
        [
            "anyfleet_kv_pages_used",
            "anyfleet_sequences_running",
            "anyfleet_sequences_waiting",
            "anyfleet_requests_running",
            "anyfleet_requests_waiting",
        ]
        .map(|name| metric(&address, name))
    };
    while used() != [0.0; 5] {
        assert!(Instant::now() < deadline, "still held: {:?}", used());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(metric(&address, "anyfleet_kv_pages_free") + metric(&address, "anyfleet_kv_pages_cached"), pages);
    target.done();
}

/// Asks for a long answer and leaves: at once, before it begins, or in the middle.
fn go_away(target: &Target, address: &str, i: usize) {
    let wanted = [0, 1, 300, 2000][i % 4];
    let body = json!({
        "model": target.model(),
        "prompt": format!("Tell me a story, number {i}"),
        "max_tokens": 500,
        "n": 1 + i % 3,
        "stream": wanted > 0,
        "ignore_eos": true,
    });
    let mut stream = connect(address);
    stream.write_all(&request("POST", "/v1/completions", body.to_string().as_bytes())).expect("write");
    let mut buffer = vec![0; 256];
    let mut got = 0;
    // What is left unread when the socket closes makes it a reset.
    while got < wanted {
        match stream.read(&mut buffer) {
            Ok(n @ 1..) => got += n,
            _ => break,
        }
    }
}

#[test]
fn a_crowd_is_answered_or_told_to_wait() {
    let target = Target::new(&["--max-num-seqs", "2", "--max-queue", "4"]);
    let address = target.server.address.clone();
    let body = json!({"model": target.model(), "prompt": "x", "max_tokens": 200, "ignore_eos": true});
    let bytes = request("POST", "/v1/completions", body.to_string().as_bytes());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(|| exchange(&address, &bytes).status)).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    assert!(statuses.iter().all(|status| matches!(status, 200 | 429)), "{statuses:?}");
    assert!(statuses.contains(&200), "{statuses:?}");
    target.done();
}
