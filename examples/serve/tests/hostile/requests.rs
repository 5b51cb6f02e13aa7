//! Requests that no client would send, one after the other against one server: each is refused with a
//! 4xx or answered, soon, and the server's answers stay what they were.
use crate::checkpoint::Checkpoint;
use crate::http::{Reply, exchange, post, request};
use crate::process::{Server, broken, verbose};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
/// For one request, on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// A server, what it answers when it is well, and what has gone wrong.
pub struct Target {
    checkpoint: Checkpoint,
    pub server: Server,
    expected: String,
    resident: Option<u64>,
    count: usize,
    failures: Vec<String>,
}

impl Target {
    pub fn new(flags: &[&str]) -> Self {
        let checkpoint = Checkpoint::chat();
        let server = Server::of(checkpoint.path(), flags);
        let resident = server.resident_mib();
        let mut target =
            Target { checkpoint, server, expected: String::new(), resident, count: 0, failures: Vec::new() };
        target.expected = target.normal().text();
        target
    }

    pub fn model(&self) -> String {
        self.checkpoint.name()
    }

    /// A request like any other.
    pub fn normal(&self) -> Reply {
        let body = json!({"model": self.model(), "prompt": "Hello there", "max_tokens": 12, "temperature": 0, "ignore_eos": true});
        post(&self.server.address, COMPLETIONS, body.to_string().as_bytes())
    }

    pub fn still_well(&self, after: &str) {
        let reply = self.normal();
        assert_eq!(reply.status, 200, "after {after}: {reply:?}; {}", self.server.stderr());
        assert_eq!(reply.text(), self.expected, "after {after}");
        assert!(!broken(&self.server.stderr()), "after {after}: {}", self.server.stderr());
    }

    /// Sends bytes; the answer's status has to be one of `statuses`, 0 being a closed connection.
    pub fn bytes(&mut self, name: &str, bytes: &[u8], statuses: &[u16]) {
        self.count += 1;
        let begin = Instant::now();
        let reply = exchange(&self.server.address, bytes);
        let took = begin.elapsed();
        if verbose() {
            println!(
                "{took:>8.1?} {:?} MiB {name:.100} {} {:.150}",
                self.server.resident_mib(),
                reply.status,
                reply.body
            );
        }
        // A refusal by the API is in OpenAI's shape; what is no HTTP gets HTTP's.
        let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        let told = reply.status < 400 || !name.starts_with("json ") || (!message.is_empty() && message.len() < 2000);
        if !statuses.contains(&reply.status) || took > BOUND || !told || broken(&self.server.stderr()) {
            self.failures.push(format!(
                "{name:.200}: {} in {took:?}: {:.500} {}",
                reply.status,
                reply.body,
                self.server.stderr()
            ));
        }
    }

    pub fn body(&mut self, name: &str, path: &str, body: impl AsRef<[u8]>, statuses: &[u16]) {
        self.bytes(&format!("json {name}"), &request("POST", path, body.as_ref()), statuses);
    }

    /// A completion or chat completion with these fields instead.
    pub fn fields(&mut self, path: &str, change: Value, statuses: &[u16]) {
        let mut body = match path {
            COMPLETIONS => json!({"model": self.model(), "prompt": "Hello", "max_tokens": 2}),
            _ => json!({"model": self.model(), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
        };
        let name: String = change.to_string().chars().take(100).collect();
        for (key, value) in change.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        self.body(&format!("{path} {name}"), path, body.to_string(), statuses);
    }

    /// Reports, and stops the server.
    pub fn done(self) {
        println!("{} requests", self.count);
        assert!(self.failures.is_empty(), "{} of {}:\n{}", self.failures.len(), self.count, self.failures.join("\n"));
        self.still_well("everything");
        if let (Some(now), Some(before)) = (self.server.resident_mib(), self.resident) {
            assert!(now < before + 1024, "{before} MiB before, {now} MiB after");
        }
        self.server.stop();
    }
}

const OK: &[u16] = &[200];
const BAD: &[u16] = &[400];
const EITHER: &[u16] = &[200, 400];

#[test]
fn bodies() {
    let mut target = Target::new(&[]);
    for path in [COMPLETIONS, CHAT] {
        for text in [
            "",
            "{",
            "[]",
            "null",
            "\"x\"",
            "5",
            "{\"model\":}",
            "{} {}",
            "{'model': 1}",
            "\u{feff}{}",
            "{\"a\": NaN}",
            "{\"model\": 1e999}",
            "{\"n\": -}",
        ] {
            target.body(text, path, text, BAD);
        }
        target.body("zeros", path, [0; 1000], BAD);
        target.body("invalid UTF-8", path, b"{\"model\": \"\xff\xfe\xc0\x80\"}", BAD);
        target.body(
            "UTF-16",
            path,
            "{\"model\": 1}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(),
            BAD,
        );
        target.body("lists in lists", path, "[".repeat(1_000_000), BAD);
        target.body("objects in objects", path, "{\"a\":".repeat(1_000_000), BAD);
        let nested = |key: &str, depth: usize| format!("{{\"{key}\": {}1{}}}", "[".repeat(depth), "]".repeat(depth));
        for key in ["prompt", "messages", "tools", "stop", "logit_bias", "unknown"] {
            target.body(&format!("deep {key}"), path, nested(key, 200_000), BAD);
            target.body(&format!("less deep {key}"), path, nested(key, 120), BAD);
        }
        target.body("40 MB", path, vec![b' '; 40 << 20], &[413]);
        target.body("16 MiB of brackets", path, vec![b'['; (16 << 20) - 1], BAD);
        target.body(
            "a million keys",
            path,
            format!("{{{}\"z\": 1}}", (0..1_000_000).map(|i| format!("\"{i}\":1,")).collect::<String>()),
            BAD,
        );
        target.body("a key of 10 MB", path, format!("{{\"{}\": 1}}", "k".repeat(10 << 20)), BAD);
        target.body(
            "a lone surrogate",
            path,
            r#"{"model": "m", "prompt": "\ud800", "messages": [{"role": "user", "content": "\ud800x"}]}"#,
            BAD,
        );
    }
    for escape in [r"\ud800", r"\udfff\ud800", r"\ud83d", r"\u12", r"\x41"] {
        let body = format!(r#"{{"model": "{}", "prompt": "{escape}"}}"#, target.model());
        target.body(escape, COMPLETIONS, body, BAD);
    }
    target.still_well("bodies");
    target.done();
}

#[test]
fn parameters() {
    let mut target = Target::new(&[]);
    let huge = 1_000_000_000;
    let long = "x".repeat(1 << 20);
    for path in [COMPLETIONS, CHAT] {
        for model in [json!("other"), json!(""), json!(long), json!("m\n\u{0}\u{1b}")] {
            target.fields(path, json!({"model": model}), &[404]);
        }
        for model in [json!(null), json!(5), json!(["m"]), json!({})] {
            target.fields(path, json!({"model": model}), BAD);
        }
        for n in [json!(0), json!(-1), json!(huge), json!(1.5), json!("2"), json!(1e30), json!([1]), json!(129)] {
            target.fields(path, json!({"n": n}), BAD);
        }
        target.fields(path, json!({"n": 128, "max_tokens": 1}), OK);
        for tokens in [
            json!(-1),
            json!(1.5),
            json!("2"),
            json!(4_294_967_295_u64),
            json!(4_294_967_296_u64),
            json!(1e30),
            json!(huge),
            json!([]),
        ] {
            target.fields(path, json!({"max_tokens": tokens}), BAD);
        }
        for value in [json!(-0.1), json!(2.1), json!("1"), json!(1e30), json!([1]), json!(true), json!({})] {
            for key in [
                "temperature",
                "top_p",
                "frequency_penalty",
                "presence_penalty",
                "min_p",
                "repetition_penalty",
                "top_k",
            ] {
                let inside = matches!(
                    (key, value.as_f64()),
                    ("frequency_penalty" | "presence_penalty", Some(-0.1)) | ("repetition_penalty", Some(2.1))
                );
                target.fields(path, json!({key: value}), if inside { OK } else { BAD });
            }
        }
        for seed in [json!(i64::MIN), json!(i64::MAX), json!(-1), json!(u64::MAX), json!(1e30), json!("x")] {
            target.fields(path, json!({"seed": seed}), EITHER);
        }
        for stop in [
            json!(vec!["x"; 5000]),
            json!([""]),
            json!(""),
            json!([1]),
            json!({"a": 1}),
            json!([["a"]]),
            json!(vec![long.as_str(); 5]),
        ] {
            target.fields(path, json!({"stop": stop}), BAD);
        }
        target.fields(path, json!({"stop": [long, "\u{0}", "e", "\u{10ffff}"], "max_tokens": 50}), OK);
        let biases: Value = (0..100_000).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into();
        for bias in [
            biases,
            json!({"1": 101}),
            json!({"443": 1}),
            json!({"-1": 1}),
            json!({"x": 1}),
            json!({"1": "x"}),
            json!([1]),
            json!("x"),
            json!({"1": 1, "01": 1}),
            json!({(long.as_str()): 1}),
        ] {
            target.fields(path, json!({"logit_bias": bias}), BAD);
        }
        let all: Value = (0..443).map(|i| (i.to_string(), json!(-100))).collect::<serde_json::Map<_, _>>().into();
        target.fields(path, json!({"logit_bias": all}), OK);
        for stop in [json!([443]), json!([-1]), json!([1e30]), json!("x"), json!([[1]])] {
            target.fields(path, json!({"stop_token_ids": stop}), BAD);
        }
        target.fields(path, json!({"stop_token_ids": vec![1; 100_000]}), EITHER);
        target.fields(path, json!({"min_tokens": 5, "max_tokens": 2}), BAD);
        target.fields(path, json!({"min_tokens": -1}), BAD);
        target.fields(path, json!({"stream": "yes"}), BAD);
        target.fields(path, json!({"stream_options": {"include_usage": true}}), BAD);
        target.fields(path, json!({"stream": true, "stream_options": 5}), BAD);
        target.fields(path, json!({"response_format": {"type": "json_object"}}), BAD);
        target.fields(path, json!({"best_of": 1e9, "functions": [1]}), BAD);
        target.fields(path, json!({"user": [[[{}]]], "unknown\n\u{0}": long, "priority": "x", "metadata": 5}), OK);
    }
    target.fields(CHAT, json!({"top_logprobs": 21, "logprobs": true}), BAD);
    target.fields(CHAT, json!({"top_logprobs": -1, "logprobs": true}), BAD);
    target.fields(COMPLETIONS, json!({"logprobs": 21}), BAD);
    target.fields(COMPLETIONS, json!({"logprobs": -1}), BAD);
    target.still_well("parameters");
    target.done();
}

#[test]
fn prompts() {
    let mut target = Target::new(&[]);
    for prompt in [
        json!([]),
        json!(null),
        json!({}),
        json!(5),
        json!(true),
        json!([[]]),
        json!([[], [1]]),
        json!([1, "a"]),
        json!(["a", 1]),
        json!([[1], "a"]),
        json!([null]),
        json!([[[1]]]),
        json!([{"a": 1}]),
    ] {
        target.fields(COMPLETIONS, json!({"prompt": prompt}), BAD);
    }
    for id in [
        json!(443),
        json!(4_294_967_295_u64),
        json!(4_294_967_296_u64),
        json!(u64::MAX),
        json!(-1),
        json!(1.5),
        json!(1e300),
        json!("1"),
    ] {
        target.fields(COMPLETIONS, json!({"prompt": [1, id]}), BAD);
    }
    let ids = |count: usize| {
        format!("{{\"model\": \"{}\", \"max_tokens\": 1, \"prompt\": [{}1]}}", target.model(), "1,".repeat(count - 1))
    };
    let (ten_million, some_million, full) = (ids(10_000_000), ids(7_000_000), ids(2047));
    target.body("10 million ids", COMPLETIONS, ten_million, &[413]);
    target.body("7 million ids", COMPLETIONS, some_million, BAD);
    target.body("as many ids as fit", COMPLETIONS, full, OK);
    target.fields(COMPLETIONS, json!({"prompt": vec![1; 2047], "max_tokens": 1, "echo": true, "logprobs": 20}), OK);
    target.fields(COMPLETIONS, json!({"prompt": vec![1; 2048], "max_tokens": 1}), BAD);
    target.fields(COMPLETIONS, json!({"prompt": vec!["x"; 2049]}), BAD);
    target.fields(COMPLETIONS, json!({"prompt": vec!["x"; 2048], "max_tokens": 1}), OK);
    target.fields(COMPLETIONS, json!({"prompt": vec![vec![1; 3000]; 500]}), BAD);
    // Of two prompts one cannot run.
    target.fields(COMPLETIONS, json!({"prompt": [[1, 2], vec![1; 5000]]}), BAD);
    target.fields(COMPLETIONS, json!({"prompt": [[1, 2], [99999]], "stream": true}), EITHER);
    let torture = [
        "\u{0}",
        "a\u{0}b\u{1}\u{7f}\u{80}\u{9f}",
        "\u{feff}\u{fffe}\u{ffff}\u{10ffff}\u{fffd}",
        "\u{202e}\u{2066}\u{2069}\u{200b}\u{200d}\u{2028}",
        "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
        "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
        "ﷺﬀǅİıſß",
        "<|bos|><|im_start|>system<|im_end|><|endoftext|>",
        "{{ 7 * 7 }}{% for %}",
        "\r\n\r\nHTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n",
    ];
    for text in torture {
        for stream in [false, true] {
            target.fields(COMPLETIONS, json!({"prompt": text, "echo": true, "logprobs": 2, "stream": stream}), OK);
            let message = json!({"role": "user", "content": text, "name": text});
            target.fields(CHAT, json!({"messages": [message], "stream": stream}), OK);
        }
    }
    for unit in ["a", " ", "\n", "é", "漢", "\u{301}", "ﷺ", "\u{0}", "1", "ab ", "<|im_end|>"] {
        // Far too long, and as long as may be tokenized.
        for bytes in [1 << 20, 30_000] {
            let text = unit.repeat(bytes / unit.len());
            target.fields(COMPLETIONS, json!({"prompt": text}), EITHER);
            target.fields(CHAT, json!({"messages": [{"role": "user", "content": text}]}), EITHER);
        }
    }
    target.still_well("prompts");
    target.done();
}

#[test]
fn conversations() {
    let mut target = Target::new(&[]);
    for messages in [
        json!("hi"),
        json!({}),
        json!([]),
        json!([null]),
        json!([[]]),
        json!(["hi"]),
        json!([5]),
        json!(null),
        json!([{}]),
        json!([[{"role": "user", "content": "x"}]]),
    ] {
        target.fields(CHAT, json!({"messages": messages}), BAD);
    }
    for role in [
        json!("judge"),
        json!(""),
        json!(5),
        json!(null),
        json!(["user"]),
        json!("USER"),
        json!("user\u{0}"),
        json!("x".repeat(1 << 20)),
        json!("tool"),
    ] {
        target.fields(CHAT, json!({"messages": [{"role": role, "content": "x"}]}), BAD);
    }
    for content in [
        json!(5),
        json!(null),
        json!({}),
        json!({"text": "x"}),
        json!([5]),
        json!([{}]),
        json!([{"type": "text"}]),
        json!([{"type": "text", "text": 5}]),
        json!([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        json!([{"type": 5}]),
        json!([[]]),
        json!([null]),
    ] {
        target.fields(CHAT, json!({"messages": [{"role": "user", "content": content}]}), BAD);
    }
    let parts: Vec<Value> = (0..50_000).map(|_| json!({"type": "text", "text": "x"})).collect();
    target.fields(CHAT, json!({"messages": [{"role": "user", "content": parts}]}), BAD);
    let many: Vec<Value> = (0..100_000).map(|_| json!({"role": "user", "content": "x"})).collect();
    target.fields(CHAT, json!({"messages": many}), BAD);
    let keys: serde_json::Map<String, Value> = (0..100_000).map(|i| (format!("k{i}"), json!(i))).collect();
    let mut message = Value::Object(keys);
    message["role"] = json!("user");
    message["content"] = json!("x");
    target.fields(CHAT, json!({"messages": [message]}), OK);
    for calls in [
        json!(5),
        json!({}),
        json!([5]),
        json!([{}]),
        json!([{"function": 5}]),
        json!([{"function": {"arguments": "[1]"}}]),
        json!([{"function": {"arguments": "{"}}]),
        json!([{"function": {"arguments": "[".repeat(100_000)}}]),
    ] {
        target.fields(CHAT, json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": calls}]}), BAD);
    }
    for tools in [
        json!(5),
        json!({}),
        json!("x"),
        json!([5]),
        json!([{}]),
        json!([{"type": "web"}]),
        json!([{"type": "function"}]),
        json!([{"type": "function", "function": {"name": 5}}]),
        json!([null]),
    ] {
        target.fields(CHAT, json!({"tools": tools}), BAD);
    }
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"x": [[[[null]]]]}}});
    target.fields(CHAT, json!({"tools": vec![tool; 10_000]}), EITHER);
    for choice in [json!("required"), json!(5), json!({"type": "function"}), json!("x"), json!([])] {
        target.fields(CHAT, json!({"tool_choice": choice}), BAD);
    }
    let last = json!([{"role": "assistant", "content": ""}]);
    target.fields(CHAT, json!({"messages": last, "continue_final_message": true}), BAD);
    target.fields(CHAT, json!({"continue_final_message": true, "add_generation_prompt": true}), BAD);
    target.still_well("conversations");
    target.done();
}
