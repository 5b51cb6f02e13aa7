//! What the gateway answers by itself, over real sockets.
use anyfleet_fleet::{Config, Gateway, router};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
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
