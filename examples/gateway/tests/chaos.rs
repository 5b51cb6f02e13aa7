//! A fleet under fire: two CPU servers with different kernels and one on software Vulkan, 100 streams through the
//! gateway, while servers are killed, stopped and drained at random. Every stream must end as one unbroken answer.
//!
//! As a demonstration: `cargo test --release -p gateway --test chaos -- --nocapture`.
#![cfg(unix)]
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const KEY: &str = "between-us";
const STREAMS: usize = 100;
const TOKENS: usize = 900;
/// A choice whose two best log-probabilities are closer than this may be made otherwise on another backend.
const NEAR: f64 = 0.01;

/// splitmix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A process that dies with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

impl Running {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a system call without pointers, on a child that has not been waited for.
        unsafe { libc::kill(self.0.id() as i32, signal) };
    }
}

/// The server program, beside the gateway's. `cargo test --workspace` has just built it; where it is missing or older
/// than one of its sources, it is built here, for the whole workspace: for one package alone dependencies would have
/// other features and be built again.
fn serve() -> PathBuf {
    let gateway = Path::new(env!("CARGO_BIN_EXE_gateway"));
    let serve = gateway.with_file_name("serve");
    if !is_fresh(&serve) {
        let release = gateway.parent().is_some_and(|dir| dir.ends_with("release"));
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--workspace", "--bin", "serve"]).args(release.then_some("--release"));
        // What cargo says of this test's package would make build scripts of dependencies run again.
        for (name, _) in std::env::vars() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|of| name.starts_with(of)) {
                build.env_remove(name);
            }
        }
        assert!(build.status().expect("cargo").success());
    }
    serve
}

/// Whether a program is newer than the sources of this workspace that a server is made of.
fn is_fresh(program: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let Some(built) = modified(program) else { return false };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths: Vec<PathBuf> = ["Cargo.lock", "crates", "examples/serve/src", "kernels", "models/src"]
        .iter()
        .map(|path| root.join(path))
        .collect();
    while let Some(path) = paths.pop() {
        // What is not in a server.
        if ["tests", "crates/fleet"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if let Ok(folder) = std::fs::read_dir(&path) {
            paths.extend(folder.flatten().map(|entry| entry.path()));
        } else if modified(&path).is_some_and(|changed| changed > built) {
            return false;
        }
    }
    true
}

/// A port below those that systems give to outgoing connections: one of these could hold a port while its server is
/// down.
fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 7;
    let port = || 20_000 + ((start + NEXT.fetch_add(1, Ordering::SeqCst)) % 10_000) as u16;
    std::iter::repeat_with(port)
        .take(10_000)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a port")
}

struct Server {
    name: &'static str,
    port: u16,
    command: Box<dyn Fn() -> Command + Sync>,
}

impl Server {
    fn new(name: &'static str, kernels: Option<&'static str>, device: &'static str) -> Self {
        let port = free_port();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures/tiny-chat");
        let program = serve();
        let command = move || {
            let mut command = Command::new(&program);
            command.arg("--model").arg(&model).args(["--served-model-name", "tiny", "--device", device]);
            command.args(["--port", &port.to_string(), "--fleet-key", KEY, "--dtype", "f32", "--threads", "1"]);
            command.args(["--self-check", "off", "--kv-cache-memory", "16MiB"]);
            command.env("HF_HUB_OFFLINE", "1").env_remove("ANYFLEET_CPU");
            command.envs(kernels.map(|kernels| ("ANYFLEET_CPU", kernels)));
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        Server { name, port, command: Box::new(command) }
    }

    fn start(&self) -> Running {
        Running((self.command)().spawn().expect("serve"))
    }

    fn healthy(&self) -> bool {
        request(self.port, "GET", "/health", "", Duration::from_secs(1)).is_some_and(|(status, _)| status == 200)
    }

    fn wait(&self) {
        let start = Instant::now();
        while !self.healthy() {
            assert!(start.elapsed() < Duration::from_secs(120), "{} does not start", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A whole answer; nothing where there is none.
fn request(port: u16, method: &str, path: &str, body: &str, patience: Duration) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nanyfleet-fleet-key: {KEY}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some((text.get(9..12)?.parse().ok()?, text))
}

/// What a client saw of a streamed completion.
#[derive(Debug, Default)]
struct Answer {
    ids: BTreeSet<String>,
    fingerprints: BTreeSet<String>,
    tokens: Vec<u64>,
    /// The two best log-probabilities of each token.
    best: Vec<[f64; 2]>,
    text: String,
    ends: usize,
    usage: Vec<u64>,
    done: bool,
    longest_silence: Duration,
}

fn ask(port: u16, body: &Value) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("timeout");
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("send");
    let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
    let status = lines.next().expect("a status line");
    assert!(status.contains(" 200 "), "{status}");
    let (mut answer, mut last) = (Answer::default(), Instant::now());
    for line in lines {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        answer.longest_silence = answer.longest_silence.max(last.elapsed());
        last = Instant::now();
        assert!(!answer.done, "after its end: {data}");
        if data == "[DONE]" {
            answer.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(data).expect("JSON");
        assert!(chunk["error"].is_null(), "{chunk}");
        assert!(chunk.get("anyfleet").is_none(), "the fleet's own matters: {chunk}");
        answer.ids.insert(format!("{} {}", chunk["id"], chunk["created"]));
        answer.fingerprints.insert(chunk["system_fingerprint"].as_str().expect("a fingerprint").to_owned());
        answer.usage.extend(chunk["usage"]["completion_tokens"].as_u64());
        for choice in chunk["choices"].as_array().expect("choices") {
            answer.text += choice["text"].as_str().expect("text");
            answer.tokens.extend(choice["token_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
            for top in choice["logprobs"]["top_logprobs"].as_array().into_iter().flatten() {
                let mut best: Vec<f64> = top.as_object().expect("tops").values().filter_map(Value::as_f64).collect();
                best.sort_by(|a, b| b.total_cmp(a));
                answer.best.push([best[0], *best.get(1).unwrap_or(&f64::NEG_INFINITY)]);
            }
            answer.ends += usize::from(!choice["finish_reason"].is_null());
        }
    }
    answer
}

fn completion(number: usize) -> Value {
    let greedy = number.is_multiple_of(2);
    json!({"model": "tiny", "prompt": format!("Stream {number} says"), "max_tokens": TOKENS, "ignore_eos": true,
        "stream": true, "temperature": if greedy { 0.0 } else { 1.0 }, "seed": number, "logprobs": 2,
        "return_token_ids": true, "stream_options": {"include_usage": true},
        "frequency_penalty": if number % 4 == 3 { 0.5 } else { 0.0 }})
}

/// One server after the other is made to fail and to come back, until nobody streams any more.
fn fire(
    servers: &[Server],
    running: &mut [Running],
    gateway: u16,
    left: &AtomicUsize,
    random: &mut Random,
) -> [usize; 3] {
    let mut counts = [0; 3];
    while left.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(200 + random.below(500)));
        let at = random.below(servers.len() as u64) as usize;
        // Each kind once before any again.
        let kind = (0..3).filter(|&kind| counts[kind] == counts.iter().copied().min().unwrap_or(0)).collect::<Vec<_>>();
        let kind = kind[random.below(kind.len() as u64) as usize];
        let server = &servers[at];
        println!(
            "  {} of {STREAMS} streams left; {} is {}",
            left.load(Ordering::SeqCst),
            server.name,
            ["killed", "stopped", "drained"][kind]
        );
        match kind {
            0 => running[at].signal(libc::SIGKILL),
            1 => {
                running[at].signal(libc::SIGSTOP);
                std::thread::sleep(Duration::from_millis(1500 + random.below(2000)));
                running[at].signal(libc::SIGCONT);
            }
            _ => {
                drop(request(gateway, "POST", &format!("/gateway/drain/{}", server.name), "", Duration::from_secs(20)))
            }
        }
        counts[kind] += 1;
        if kind != 1 {
            // Its port is free only when it is gone.
            running[at].end();
            running[at] = server.start();
        }
        server.wait();
    }
    counts
}

/// How far an answer is the one it would have been, and whether it may differ from there on.
fn compare(answer: &Answer, whole: &Answer, label: &str) -> bool {
    let shorter = answer.tokens.iter().zip(&whole.tokens).take_while(|(a, b)| a == b).count();
    if shorter == whole.tokens.len() {
        assert_eq!(answer.text, whole.text, "{label}");
        return true;
    }
    assert!(
        answer.fingerprints.len() > 1 || answer.fingerprints != whole.fingerprints,
        "{label} differs from token {shorter} on, though it never left its NumericsId"
    );
    let [best, second] = whole.best[shorter];
    // What is drawn depends on sums of probabilities, so only what is taken greedily has a margin.
    assert!(
        best - second < NEAR || !label.contains("greedy"),
        "{label}: token {shorter} had a margin of {}",
        best - second
    );
    false
}

#[test]
fn every_stream_ends_unbroken_whatever_happens_to_its_server() {
    let seed = std::env::var("ANYFLEET_SEED")
        .ok()
        .map_or_else(|| u64::from(std::process::id()), |s| s.parse().expect("a seed"));
    println!("ANYFLEET_SEED={seed}");
    let mut servers = vec![Server::new("best", None, "cpu"), Server::new("portable", Some("portable"), "cpu")];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        servers[1] = Server::new("avx2", Some("avx2"), "cpu");
    }
    let vulkan = Command::new(serve()).arg("--list-devices").output().expect("serve --list-devices");
    match String::from_utf8_lossy(&vulkan.stdout).contains("llvmpipe") {
        true => servers.push(Server::new("vulkan", None, "wgpu:llvmpipe")),
        false => {
            let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "wgpu"), "ANYFLEET_REQUIRE={required}: no llvmpipe");
            eprintln!("SKIPPED: no server on software Vulkan: no llvmpipe (Debian: mesa-vulkan-drivers)");
        }
    }
    let mut running: Vec<Running> = servers.iter().map(Server::start).collect();
    servers.iter().for_each(Server::wait);
    // What every request answers when nothing happens, on a CPU.
    let whole: Vec<Answer> = std::thread::scope(|scope| {
        let cpu = servers[0].port;
        let streams: Vec<_> = (0..STREAMS).map(|number| scope.spawn(move || ask(cpu, &completion(number)))).collect();
        streams.into_iter().map(|stream| stream.join().expect("an answer")).collect()
    });

    let dir = tempfile::tempdir().expect("a folder");
    let config = dir.path().join("fleet.toml");
    let pool =
        |server: &Server| format!("[[pool]]\nname = {:?}\nurl = \"http://127.0.0.1:{}\"\n", server.name, server.port);
    let pools: String = servers.iter().map(pool).collect();
    std::fs::write(&config, format!("fleet_key = {KEY:?}\nstall_seconds = 1.0\npatience_seconds = 60\n{pools}"))
        .expect("config");
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_gateway"));
    gateway.arg("--config").arg(&config).args(["--port", "0"]).env("RUST_LOG", "warn").stdout(Stdio::piped());
    let mut gateway = Running(gateway.spawn().expect("gateway"));
    let mut line = String::new();
    BufReader::new(gateway.0.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    let port: u16 = line.trim().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");

    let left = AtomicUsize::new(STREAMS);
    let (answers, counts) = std::thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|number| {
                let left = &left;
                scope.spawn(move || {
                    struct Leaves<'a>(&'a AtomicUsize);
                    impl Drop for Leaves<'_> {
                        fn drop(&mut self) {
                            self.0.fetch_sub(1, Ordering::SeqCst);
                        }
                    }
                    let _leaves = Leaves(left);
                    ask(port, &completion(number))
                })
            })
            .collect();
        let counts = fire(&servers, &mut running, port, &left, &mut Random(seed));
        let answers: Vec<Answer> = streams.into_iter().map(|stream| stream.join().expect("an answer")).collect();
        (answers, counts)
    });

    let mut equal = 0;
    for (number, (answer, whole)) in answers.iter().zip(&whole).enumerate() {
        let label = format!("stream {number} ({})", if number.is_multiple_of(2) { "greedy" } else { "seeded" });
        assert!(answer.done && answer.ends == 1, "{label}: {answer:?}");
        assert_eq!(answer.ids.len(), 1, "{label} has one id");
        assert_eq!(answer.usage, [TOKENS as u64], "{label}");
        // A token whose text never completes a character has no entry.
        assert!(
            answer.tokens.len() <= TOKENS && answer.tokens.len() + 4 > TOKENS,
            "{label}: {} tokens",
            answer.tokens.len()
        );
        equal += usize::from(compare(answer, whole, &label));
    }
    let (_, status) =
        request(port, "GET", "/gateway/status", "", Duration::from_secs(5)).expect("the gateway's status");
    let status: Value = serde_json::from_str(status.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
    let silence = answers.iter().map(|answer| answer.longest_silence).max().unwrap_or_default();
    println!(
        "{counts:?} killed, stopped, drained; {} moves, {} retries; {equal} of {STREAMS} answers equal in every token, \
        the others up to a near-tie after a change of backend; longest gap of a move {} s, longest silence {silence:?}",
        status["moves"], status["retries"], status["longest_gap_seconds"]
    );
    assert_eq!(status["failures"], 0, "{status}");
    assert!(status["moves"].as_u64() > Some(0), "nothing had to move: {status}");
}
