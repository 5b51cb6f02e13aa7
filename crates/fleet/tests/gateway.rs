//! What the gateway answers by itself, over real sockets.
use anyfleet_fleet::{Config, Gateway, Health, router};
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

/// A gateway before a server that there is not.
async fn start() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    let config = format!(
        "fleet_key = \"k\"\napi_key = \"key\"\npatience_seconds = 0.05\nmax_body_bytes = 100\n\
         [[pool]]\nname = \"gone\"\nurl = \"http://{free}\"\n"
    );
    let gateway = Gateway::start(Config::from_toml(&config).expect("a configuration")).expect("a gateway");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async { axum::serve(listener, router(gateway)).await });
    address
}

/// Status and body.
fn ask(address: SocketAddr, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("connect");
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice()).expect("send");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let body = text.split_once("\r\n\r\n").expect("a body").1.to_owned();
    (text[9..12].parse().expect("a status"), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_openai_s_and_counted() {
    let address = start().await;
    let completions = "/v1/completions";
    let large = " ".repeat(101);
    for (method, path, key, body, status, code) in [
        ("POST", completions, "key", large.as_str(), 413, "request_too_large"),
        ("POST", completions, "key", "{}", 503, "no_server"),
        ("POST", completions, "kex", "{}", 401, "invalid_api_key"),
        ("GET", completions, "key", "", 405, "method_not_supported"),
        ("GET", "/nothing", "key", "", 404, "unknown_url"),
    ] {
        let (answered, text) = ask(address, method, path, key, body);
        let error: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        assert_eq!((answered, error["error"]["code"].as_str()), (status, Some(code)), "{text}");
        assert!(error["error"]["message"].is_string() && error["error"]["type"].is_string(), "{text}");
    }
    let (status, metrics) = ask(address, "GET", "/metrics", "", "");
    assert_eq!(status, 200);
    for line in [
        "anyfleet_gateway_http_requests_total{endpoint=\"/v1/completions\",status=\"413\"} 1",
        "anyfleet_gateway_pool_in_flight{pool=\"gone\"} 0",
        "anyfleet_gateway_pool_up{pool=\"gone\"} 0",
        "anyfleet_gateway_failures_total 0",
        "anyfleet_gateway_move_gap_seconds_count 0",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

/// Waits until the gateway says that its first server is `health`.
async fn becomes(gateway: &Gateway, health: Health) {
    let start = Instant::now();
    while gateway.status().pools[0].health != health {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?} instead of {health:?}", gateway.status().pools[0]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_device_hangs_is_gone() {
    let says = Arc::new(Mutex::new((200, "{\"ready\":true,\"step_seconds\":0.5,\"model\":\"m\"}")));
    let answer = says.clone();
    let status = move || async move {
        let (status, body) = *answer.lock().expect("a lock");
        (StatusCode::from_u16(status).expect("a status"), body)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = Router::new().route("/fleet/status", get(status));
    tokio::spawn(async { axum::serve(listener, server).await });
    let config = format!(
        "fleet_key = \"k\"\nstall_seconds = 30.0\nstep_seconds = 2.0\n[[pool]]\nname = \"one\"\nurl = \"http://{address}\"\n"
    );
    let gateway = Gateway::start(Config::from_toml(&config).expect("a configuration")).expect("a gateway");
    for (status, body, health) in [
        (200, "{\"ready\":true,\"step_seconds\":2.5}", Health::Down),
        (200, "{\"ready\":true,\"step_seconds\":1.5}", Health::Up),
        (200, "{\"ready\":false,\"step_seconds\":0}", Health::Refusing),
        (200, "{\"ready\":true,\"step_seconds\":0}", Health::Up),
        (403, "{}", Health::Refusing),
    ] {
        *says.lock().expect("a lock") = (status, body);
        becomes(&gateway, health).await;
    }
}
