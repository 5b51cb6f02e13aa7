use crate::client::{Response, get, post, send};
use crate::server::{TestServer, builder, fixture, until};
use anyfleet_openai::{Phase, ServerState, Shutdown};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATH: &str = "/v1/completions";

fn endless() -> Value {
    json!({"model": "tiny", "prompt": "Hello", "max_tokens": 1500, "ignore_eos": true, "stream": true})
}

/// The first event of a stream has arrived.
fn started(response: &mut Response) {
    assert_eq!(response.status, 200);
    assert!(response.event().expect("an event").starts_with("data: {"));
}

#[test]
fn health_follows_the_engine() {
    let mut server = TestServer::loading(ServerState::builder().served_model_name("tiny"), Duration::from_secs(30));
    let address = server.address;
    assert_eq!(server.state.phase(), Phase::Loading);
    for path in ["/health", "/v1/models", "/v1/models/tiny"] {
        let response = get(address, path);
        assert_eq!(response.header("retry-after"), Some("5"));
        assert_eq!(response.error(503)["type"], "service_unavailable_error");
    }
    post(address, PATH, &endless()).error(503);
    post(address, "/v1/chat/completions", &json!({})).error(503);
    get(address, "/v1/nothing").error(404);
    assert!(get(address, "/metrics").text().ends_with("# EOF\n"));

    let engine = builder().build().expect("the fixture loads");
    server.attach(engine.clone());
    assert_eq!(engine.stats().generated_tokens, 1, "it has been seen to answer");
    assert_eq!(get(address, "/health").ok(), json!({"status": "ok"}));
    assert!(server.runtime.block_on(server.state.attach(engine)).is_err(), "one engine is enough");

    let mut stream = post(address, PATH, &endless());
    started(&mut stream);
    server.stop();
    until("draining", || server.state.phase() == Phase::Draining);
    // New requests hear why; the one in flight goes on to its end.
    get(address, "/health").error(503);
    post(address, PATH, &endless()).error(503);
    assert!(stream.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(server.wait(), Shutdown::Complete);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn shutdown_has_a_time_limit_and_idle_connections_do_not_hold_it_up() {
    let engine = builder().build().expect("the fixture loads");
    let mut server = TestServer::loading(ServerState::builder(), Duration::from_secs(30));
    server.attach(engine.clone());
    let idle: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(server.address).expect("connect")).collect();
    get(server.address, "/health").ok();
    let start = Instant::now();
    server.stop();
    assert_eq!(server.wait(), Shutdown::Complete);
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(idle);

    let mut server = TestServer::loading(ServerState::builder().served_model_name("tiny"), Duration::from_millis(20));
    server.attach(engine);
    // Many streams, so that the engine is not done in an instant.
    let mut streams: Vec<Response> = (0..8).map(|_| post(server.address, PATH, &endless())).collect();
    started(&mut streams[0]);
    server.stop();
    assert_eq!(server.wait(), Shutdown::TimedOut);
}

#[test]
fn the_key_guards_the_api() {
    let server =
        TestServer::loading(ServerState::builder().served_model_name("tiny").api_key("secret"), Duration::ZERO);
    server.attach(builder().build().expect("the fixture loads"));
    let body = json!({"model": "tiny", "prompt": "Hello", "max_tokens": 1}).to_string();
    let ask = |headers: &[(&str, &str)]| send(server.address, "POST", PATH, headers, body.as_bytes());
    for headers in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Bearer secre")],
        &[("authorization", "Bearer secrets")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic secret")],
    ] {
        let response = ask(headers);
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        assert_eq!(response.error(401)["code"], "invalid_api_key");
    }
    ask(&[("authorization", "Bearer secret")]).ok();
    ask(&[("Authorization", "bearer secret")]).ok();
    get(server.address, "/v1/models").error(401);
    get(server.address, "/health").ok();
    assert_eq!(get(server.address, "/metrics").status, 200);
}

#[test]
fn the_model_has_a_name_without_being_given_one() {
    let server = TestServer::loading(ServerState::builder(), Duration::ZERO);
    server.attach(builder().build().expect("the fixture loads"));
    assert_eq!(get(server.address, "/v1/models").ok()["data"][0]["id"], "tiny-chat");
    for name in ["tiny-chat", &fixture().to_string_lossy()] {
        let answer = post(server.address, PATH, &json!({"model": name, "prompt": "Hello", "max_tokens": 1})).ok();
        assert_eq!(answer["model"], "tiny-chat");
    }
}

#[test]
fn a_client_that_goes_away_frees_its_pages() {
    let (server, engine) = TestServer::start(builder().prefix_cache(false));
    let all = engine.stats().groups[0].pages;
    for stream in [true, false] {
        let mut body = endless();
        body["stream"] = stream.into();
        body["n"] = 2.into();
        let text = body.to_string();
        let mut client = TcpStream::connect(server.address).expect("connect");
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", text.len());
        client.write_all(head.as_bytes()).expect("send");
        client.write_all(text.as_bytes()).expect("send");
        until("running", || engine.stats().sequences_running == 2);
        let generated = engine.stats().generated_tokens;
        drop(client);
        until("all pages are free", || engine.stats().groups[0].free == all);
        let stats = engine.stats();
        assert_eq!((stats.requests_running, stats.requests_waiting), (0, 0));
        // Far from the 3,000 tokens that were asked for: it was stopped, not finished.
        assert!(stats.generated_tokens - generated < 2500);
    }
    // The server counts when it has let go of the stream, by which the engine knows.
    until("both are counted", || {
        get(server.address, "/metrics").text().contains("anyfleet_choices_total{reason=\"cancelled\"} 2\n")
    });
}

#[test]
fn connections_are_kept_and_requests_may_come_in_a_trickle() {
    let (server, _) = TestServer::start(builder());
    let mut client = TcpStream::connect(server.address).expect("connect");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    for _ in 0..2 {
        for byte in b"GET /health HTTP/1.1\r\nhost: test\r\n\r\n" {
            client.write_all(&[*byte]).expect("send");
        }
        let mut answer = Vec::new();
        while !answer.ends_with(b"{\"status\":\"ok\"}") {
            let mut byte = [0];
            client.read_exact(&mut byte).expect("read");
            answer.push(byte[0]);
        }
    }
}

#[test]
fn metrics_count_what_happened() {
    let (server, engine) = TestServer::start(builder());
    let prompt = vec![7; 40];
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 5, "n": 2, "ignore_eos": true});
    post(server.address, PATH, &body).ok();
    post(server.address, PATH, &body).ok();
    post(server.address, PATH, &json!({"model": "other", "prompt": "x"})).error(404);
    until("idle", || engine.stats().requests_running == 0);
    let text = get(server.address, "/metrics").text();
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in\n{text}")).parse().expect("a number")
    };
    assert_eq!(value("anyfleet_http_requests_total{endpoint=\"/v1/completions\",status=\"200\"}"), 2.0);
    assert_eq!(value("anyfleet_http_requests_total{endpoint=\"/v1/completions\",status=\"404\"}"), 1.0);
    assert_eq!(value("anyfleet_choices_total{reason=\"length\"}"), 4.0);
    assert_eq!(value("anyfleet_prompt_tokens_total"), 80.0);
    assert_eq!(value("anyfleet_time_to_first_token_seconds_count"), 4.0);
    // Four intervals a choice, less those between tokens that begin together because their bytes do.
    assert!((4.0..=16.0).contains(&value("anyfleet_inter_token_latency_seconds_count")));
    assert_eq!(value("anyfleet_request_duration_seconds_count"), 2.0);
    assert_eq!(value("anyfleet_requests_running"), 0.0);
    assert_eq!(value("anyfleet_requests_waiting"), 0.0);
    assert!(value("anyfleet_generated_tokens_total") >= 20.0);
    assert!(value("anyfleet_prefix_hit_tokens_total") >= 32.0, "the second request found the first one's pages");
    assert_eq!(value("anyfleet_preemptions_total"), 0.0);
    let group = |name: &str| value(&format!("anyfleet_kv_pages{name}{{group=\"0\"}}"));
    assert_eq!(group(""), group("_used") + group("_free") + group("_cached"));
    assert!(text.contains("anyfleet_model_info{model=\"tiny\",family=\"llama\""));
}
