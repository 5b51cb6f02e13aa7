use crate::client::{Response, post};
use crate::server::{TestServer, builder};
use serde_json::{Value, json};
use std::net::SocketAddr;

const PATH: &str = "/v1/completions";
const STREAMS: usize = 64;

fn body(i: usize) -> Value {
    let prompt: Vec<usize> = (0..9 + i % 7).map(|j| 4 + (i * 31 + j * 17) % 430).collect();
    let temperature = [0.0, 1.0][i % 2];
    json!({
        "model": "tiny", "prompt": prompt, "max_tokens": 40, "ignore_eos": true,
        "temperature": temperature, "seed": i, "logprobs": 2,
    })
}

/// Text and log-probabilities of a stream, put together.
fn streamed(address: SocketAddr, i: usize) -> (String, Vec<Value>) {
    let mut body = body(i);
    body["stream"] = true.into();
    let chunks = post(address, PATH, &body).chunks();
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    let text = choices.clone().map(|choice| choice["text"].as_str().expect("text")).collect();
    let logprobs =
        choices.flat_map(|choice| choice["logprobs"]["top_logprobs"].as_array().cloned().unwrap_or_default());
    (text, logprobs.collect())
}

/// Sixteen pages hold four of these requests: the others wait, and some lose their pages and start again.
#[test]
fn sixty_four_streams_share_sixteen_pages() {
    let tokens = 16 * 16;
    let probe = builder().page_size(16).kv_cache_bytes(1 << 20).plan().expect("a plan");
    let per_token = probe.kv_cache / probe.kv_tokens;
    let small = builder().page_size(16).kv_cache_bytes(per_token * tokens).max_model_len(128);
    let (server, engine) = TestServer::start(small);
    assert_eq!(engine.stats().groups[0].pages, 16);
    let address = server.address;
    let alone: Vec<_> = (0..STREAMS).map(|i| streamed(address, i)).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..STREAMS).map(|i| scope.spawn(move || streamed(address, i))).collect();
        clients.into_iter().map(|client| client.join().expect("a client")).collect()
    });
    for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
        assert_eq!(together, alone, "stream {i}");
        assert_eq!(alone.1.len(), 40);
    }
    assert!(engine.stats().preemptions > 0, "the cache was too large for this test");
}

#[test]
fn a_full_queue_says_try_again() {
    let (server, engine) = TestServer::start(builder().max_num_seqs(1).max_queue(1));
    let long = json!({"model": "tiny", "prompt": [1], "max_tokens": 1500, "ignore_eos": true, "stream": true});
    let mut running: Vec<Response> = Vec::new();
    // One runs, one waits.
    for _ in 0..2 {
        running.push(post(server.address, PATH, &long));
        assert_eq!(running.last().expect("pushed").status, 200);
        crate::server::until("one runs", || engine.stats().requests_running == 1);
    }
    let refused = post(server.address, PATH, &long);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let error = refused.error(429);
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("queue_full")));
    drop(running);
    crate::server::until("idle", || engine.stats().requests_running + engine.stats().requests_waiting == 0);
    // Prompts of one request wait for each other instead.
    let list = json!({"model": "tiny", "prompt": [[1], [2], [3], [4], [5]], "max_tokens": 3, "ignore_eos": true});
    assert_eq!(post(server.address, PATH, &list).ok()["usage"]["completion_tokens"], 15);
}
