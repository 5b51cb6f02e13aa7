//! Answers that go on on another server: cut anywhere, suspended, drained; and who may do that.
use crate::client::{Response, get, post, send};
use crate::schema;
use crate::server::{TestServer, builder};
use anyfleet_openai::fleet::{Drained, KEY_HEADER, Part, Status, StreamSnapshot};
use anyfleet_openai::{Phase, ServerState};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

const KEY: &str = "between-us";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn start() -> TestServer {
    let settings = ServerState::builder().served_model_name("tiny").fleet_key(KEY);
    let server = TestServer::loading(settings, Duration::from_secs(30));
    server.attach(builder().prefix_cache(false).build().expect("the fixture loads"));
    server
}

/// Two servers that tests share which change nothing.
fn shared() -> [SocketAddr; 2] {
    static SHARED: OnceLock<[TestServer; 2]> = OnceLock::new();
    SHARED.get_or_init(|| [start(), start()]).each_ref().map(|server| server.address)
}

fn in_fleet(address: SocketAddr, path: &str, body: &[u8]) -> Response {
    send(address, "POST", path, &[("content-type", "application/json"), (KEY_HEADER, KEY)], body)
}

/// Requests with everything that a move could lose.
fn requests() -> Vec<(&'static str, Value)> {
    let messages = json!([{"role": "user", "content": "Say hello."}]);
    let usage = json!({"include_usage": true});
    vec![
        (CHAT, json!({"messages": messages, "max_tokens": 9, "stream_options": usage})),
        (
            CHAT,
            json!({"messages": messages, "max_tokens": 6, "n": 2, "temperature": 1.0, "seed": 5, "logprobs": true,
            "top_logprobs": 2, "stream_options": usage, "return_token_ids": true}),
        ),
        // The bytes of é, so that characters take two tokens.
        (
            CHAT,
            json!({"messages": messages, "max_tokens": 8, "temperature": 1.3, "seed": 9, "ignore_eos": true,
            "logit_bias": {"96": 9, "70": 9}, "stop": ["th", "e"], "frequency_penalty": 0.7}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "naïve café", "echo": true, "logprobs": 3, "max_tokens": 5, "n": 2,
            "temperature": 0.9, "seed": 1, "stream_options": usage}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": ["Hello", "The quick"], "max_tokens": 5, "n": 2, "temperature": 1.0, "seed": 3,
            "return_token_ids": true, "repetition_penalty": 1.3, "min_tokens": 3, "stream_options": usage}),
        ),
        (
            COMPLETIONS,
            json!({"prompt": "Once", "max_tokens": 12, "ignore_eos": true, "temperature": 2.0, "seed": 4,
            "stop": ["zz top", " a"], "include_stop_str_in_output": true, "logprobs": 1}),
        ),
        (COMPLETIONS, json!({"prompt": "Echo", "max_tokens": 0, "echo": true, "logprobs": 0, "stream_options": usage})),
    ]
}

fn body(request: &Value) -> Vec<u8> {
    let mut request = request.clone();
    request["model"] = "tiny".into();
    request["stream"] = true.into();
    request.to_string().into_bytes()
}

/// What a client has of an answer.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    heads: Vec<(Value, Value, Value, Value)>,
    choices: BTreeMap<u64, Choice>,
    usage: Vec<Value>,
    prompt_token_ids: Vec<Value>,
    done: bool,
}

#[derive(Debug, Default, PartialEq)]
struct Choice {
    roles: Vec<Value>,
    text: String,
    /// Entries of log-probabilities.
    logprobs: Vec<Value>,
    tokens: Vec<Value>,
    prompts: Vec<Value>,
    ends: Vec<(Value, Value)>,
}

impl Answer {
    fn take(&mut self, chunk: &Value) {
        let head = ["id", "created", "model", "object"].map(|name| chunk[name].clone());
        let [id, created, model, object] = head;
        let head = (id, created, model, object);
        if !self.heads.contains(&head) {
            self.heads.push(head);
        }
        self.usage.extend(chunk.get("usage").filter(|usage| !usage.is_null()).cloned());
        self.prompt_token_ids.extend(chunk.get("prompt_token_ids").cloned());
        for choice in chunk["choices"].as_array().expect("choices") {
            let seen = self.choices.entry(choice["index"].as_u64().expect("an index")).or_default();
            seen.roles.extend(choice["delta"].get("role").cloned());
            seen.text += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
            let logprobs = &choice["logprobs"];
            seen.logprobs.extend(logprobs["content"].as_array().into_iter().flatten().cloned());
            for (i, token) in logprobs["tokens"].as_array().into_iter().flatten().enumerate() {
                let of = |name: &str| logprobs[name][i].clone();
                seen.logprobs.push(json!([token, of("token_logprobs"), of("top_logprobs"), of("text_offset")]));
            }
            seen.tokens.extend(choice["token_ids"].as_array().into_iter().flatten().cloned());
            seen.prompts.extend(choice.get("prompt_token_ids").cloned());
            if !choice["finish_reason"].is_null() {
                seen.ends.push((choice["finish_reason"].clone(), choice["stop_reason"].clone()));
            }
        }
    }

    /// Without what differs between two answers to one request.
    fn content(mut self) -> Self {
        self.heads.iter_mut().for_each(|head| (head.0, head.1) = (Value::Null, Value::Null));
        self
    }
}

/// Reads a fleet's stream as its front door does, at most so many events; the ledger, if it did not end.
fn follow(mut response: Response, answer: &mut Answer, ledger: &mut Option<StreamSnapshot>, events: usize) -> bool {
    assert_eq!(response.status, 200);
    let mut left = events;
    while left > 0 {
        let Some(event) = response.event() else { return true };
        for data in event.split_terminator("\n\n") {
            let data = data.strip_prefix("data: ").expect("data");
            if data == "[DONE]" {
                answer.done = true;
                return true;
            }
            let chunk: Value = serde_json::from_str(data).expect("JSON");
            if left > 0 {
                answer.take(&chunk);
                if let Some(part) = chunk.get("anyfleet") {
                    schema::check("part", part);
                    let part: Part = serde_json::from_value(part.clone()).expect("a part");
                    match (ledger.as_mut(), part) {
                        (None, Part::Begin(snapshot)) => *ledger = Some(*snapshot),
                        (None, part) => panic!("{part:?} before the beginning"),
                        (Some(ledger), part) => ledger.apply(part).expect("it fits"),
                    }
                    schema::check("stream_snapshot", ledger);
                }
                left -= 1;
            }
        }
    }
    false
}

fn plain(address: SocketAddr, path: &str, request: &Value) -> Answer {
    let response = send(address, "POST", path, &[("content-type", "application/json")], &body(request));
    let mut answer = Answer { done: true, ..Answer::default() };
    let chunks = response.chunks();
    assert!(chunks.iter().all(|chunk| chunk.get("anyfleet").is_none()), "nobody asked for it");
    chunks.iter().for_each(|chunk| answer.take(chunk));
    answer
}

#[test]
fn an_answer_cut_anywhere_goes_on_elsewhere_as_if_nothing_had_happened() {
    let [here, there] = shared();
    let mut moves = 0;
    for (path, request) in requests() {
        let whole = plain(here, path, &request).content();
        for cut in 1.. {
            let (mut answer, mut ledger) = (Answer::default(), None);
            // Once the connection is gone nothing more is heard of the first server.
            if follow(in_fleet(here, path, &body(&request)), &mut answer, &mut ledger, cut) {
                assert_eq!(answer.content(), whole, "{request} in one piece");
                break;
            }
            let snapshot = serde_json::to_vec(&ledger).expect("JSON");
            assert!(follow(in_fleet(there, "/fleet/resume", &snapshot), &mut answer, &mut ledger, usize::MAX));
            assert_eq!(answer.heads.len(), 1, "{request} after {cut}: one answer has one id");
            assert_eq!(answer.content(), whole, "{request} after {cut} events");
            assert!(ledger.expect("a ledger").is_finished());
            moves += 1;
        }
    }
    assert!(moves > 60, "{moves}");
}

#[test]
fn an_answer_that_is_suspended_hands_itself_over() {
    let [here, there] = shared();
    for (path, request) in requests() {
        let mut request = request;
        if request["max_tokens"] != 0 {
            request["max_tokens"] = 400.into();
            request["ignore_eos"] = true.into();
            request["stop"] = json!([]);
        }
        let whole = plain(here, path, &request).content();
        let (mut answer, mut ledger) = (Answer::default(), None);
        let mut response = in_fleet(here, path, &body(&request));
        let first = response.event().expect("the beginning");
        let first: Value =
            serde_json::from_str(first.split("\n\n").next().unwrap()["data: ".len()..].trim()).expect("JSON");
        let id = first["id"].as_str().expect("an id").to_owned();
        let begin: Part = serde_json::from_value(first["anyfleet"].clone()).expect("a part");
        let Part::Begin(begin) = begin else { panic!("{begin:?}") };
        ledger.get_or_insert(*begin);
        let suspending = std::thread::spawn(move || in_fleet(here, &format!("/fleet/suspend/{id}"), b""));
        // Roles may have come with the beginning.
        let roles = path == CHAT;
        if roles {
            (0..request["n"].as_u64().unwrap_or(1)).for_each(|index| {
                answer.take(&json!({"id": first["id"], "created": first["created"], "model": "tiny",
                    "object": first["object"], "choices": [{"index": index, "delta": {"role": "assistant"}}]}));
                ledger.as_mut().unwrap().apply(Part::Begun { index: index as usize }).unwrap();
            });
            answer.prompt_token_ids.extend(whole.prompt_token_ids.clone());
        }
        follow(response, &mut answer, &mut ledger, usize::MAX);
        let handed = suspending.join().expect("no panic");
        match answer.done {
            true => drop(handed.error(404)),
            false => {
                let handed: StreamSnapshot = serde_json::from_value(handed.ok()).expect("a snapshot");
                assert_eq!(Some(&handed), ledger.as_ref(), "the stream and the caller of suspend hear the same");
                let snapshot = serde_json::to_vec(&handed).expect("JSON");
                assert!(follow(in_fleet(there, "/fleet/resume", &snapshot), &mut answer, &mut ledger, usize::MAX));
            }
        }
        assert_eq!(answer.content(), whole, "{request}");
    }
}

#[test]
fn a_drained_server_gives_its_answers_away() {
    let [_, there] = shared();
    let here = start();
    let (path, request) =
        (COMPLETIONS, json!({"prompt": ["a", "b"], "max_tokens": 900, "ignore_eos": true, "seed": 2}));
    let whole = plain(here.address, path, &request).content();
    let address = here.address;
    let followers: Vec<_> = (0..3)
        .map(|_| {
            let request = body(&request);
            std::thread::spawn(move || {
                let (mut answer, mut ledger) = (Answer::default(), None);
                follow(in_fleet(address, path, &request), &mut answer, &mut ledger, usize::MAX);
                (answer, ledger)
            })
        })
        .collect();
    // One who is in no fleet, and one who waits for all of it.
    let outsider = std::thread::spawn({
        let request = body(&request);
        move || send(address, "POST", path, &[], &request).text()
    });
    let patient = std::thread::spawn({
        let mut request = request.clone();
        request["model"] = "tiny".into();
        move || post(address, path, &request).error(503)
    });
    crate::server::until("five answers", || {
        let status: Status =
            serde_json::from_value(send(address, "GET", "/fleet/status", &[(KEY_HEADER, KEY)], b"").ok()).unwrap();
        status.running + status.waiting == 10
    });
    let drained = in_fleet(address, "/fleet/drain", b"").ok();
    schema::check("drained", &drained);
    let drained: Drained = serde_json::from_value(drained).expect("snapshots");
    assert_eq!((drained.snapshots.len(), drained.stalled.len()), (5, 0));
    assert_eq!(here.state.phase(), Phase::Draining);
    assert!(outsider.join().expect("no panic").contains("\"code\":\"suspended\""));
    assert_eq!(patient.join().expect("no panic")["code"], "suspended");
    for follower in followers {
        let (mut answer, mut ledger) = follower.join().expect("no panic");
        let snapshot = ledger.clone().expect("a ledger");
        assert!(!answer.done && drained.snapshots.contains(&snapshot));
        let snapshot = serde_json::to_vec(&snapshot).expect("JSON");
        assert!(follow(in_fleet(there, "/fleet/resume", &snapshot), &mut answer, &mut ledger, usize::MAX));
        assert_eq!(answer.content(), whole);
    }
}

#[test]
fn the_fleet_is_for_those_who_hold_its_key() {
    let [address, _] = shared();
    let keyless = TestServer::start(builder()).0;
    let routes =
        [("POST", "/fleet/resume"), ("POST", "/fleet/suspend/x"), ("POST", "/fleet/drain"), ("GET", "/fleet/status")];
    for (method, path) in routes {
        for (address, headers) in [
            (address, &[][..]),
            (address, &[(KEY_HEADER, "between")]),
            (keyless.address, &[(KEY_HEADER, KEY)]),
            (keyless.address, &[]),
        ] {
            assert_eq!(send(address, method, path, headers, b"{}").error(401)["code"], "invalid_fleet_key");
        }
    }
    let (path, request) = &requests()[0];
    send(address, "POST", path, &[(KEY_HEADER, "no")], &body(request)).error(401);
    get(address, "/health").ok();
    let status = send(address, "GET", "/fleet/status", &[(KEY_HEADER, KEY)], b"").ok();
    schema::check("status", &status);
    let status: Status = serde_json::from_value(status).expect("a status");
    assert!(status.ready && status.model == "tiny" && status.identity.numerics_id.starts_with("anyfleet-"));
    assert_eq!(in_fleet(address, "/fleet/suspend/chatcmpl-x", b"").error(404)["code"], "unknown_answer");
}

#[test]
fn what_is_no_snapshot_of_this_model_is_refused() {
    let [address, _] = shared();
    let (path, request) = &requests()[3];
    let (mut answer, mut ledger) = (Answer::default(), None);
    follow(in_fleet(address, path, &body(request)), &mut answer, &mut ledger, 5);
    let snapshot = serde_json::to_value(ledger.expect("a ledger")).expect("JSON");
    let refused = |change: &dyn Fn(&mut Value), status| {
        let mut snapshot = snapshot.clone();
        change(&mut snapshot);
        in_fleet(address, "/fleet/resume", snapshot.to_string().as_bytes()).error(status)
    };
    type Change<'a> = &'a dyn Fn(&mut Value);
    let changes: [Change<'_>; 12] = [
        &|s| s["version"] = 2.into(),
        &|s| s["more"] = 2.into(),
        &|s| *s = json!([]),
        &|s| s["prompts"] = json!([]),
        &|s| s["answer"]["n"] = 3.into(),
        &|s| s["answer"]["api"] = "chat_of_old".into(),
        &|s| s["prompts"][0]["begun"] = json!([true]),
        &|s| s["prompts"][0]["request"]["version"] = 9.into(),
        &|s| s["prompts"][0]["request"]["identity"]["weights"] = "other".into(),
        &|s| s["prompts"][0]["request"]["params"]["temperature"] = 99.into(),
        &|s| s["prompts"][0]["request"]["prompt"] = json!([99_999]),
        &|s| s["prompts"][0]["request"]["choices"][0]["tokens"] = json!([1, 2, 3, 4, 5, 6, 7, 8]),
    ];
    for change in changes {
        refused(change, 400);
    }
    refused(&|s| s["answer"]["model"] = "other".into(), 404);
    assert_eq!(in_fleet(address, "/fleet/resume", b"no JSON").error(400)["code"], "invalid_snapshot");
    in_fleet(address, "/fleet/resume", &vec![b' '; 17 << 20]).error(413);
}
