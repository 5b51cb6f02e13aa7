//! The binary: what it says when it cannot start, what it prints when it can, and how it stops.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures/tiny-chat")
}

fn serve() -> Command {
    quiet(Command::new(env!("CARGO_BIN_EXE_serve")))
}

/// Without what the surroundings could change.
fn quiet(mut command: Command) -> Command {
    command
        .env_remove("RUST_LOG")
        .env_remove("ANYFLEET_API_KEY")
        .env_remove("ANYFLEET_FLEET_KEY")
        .env("RUST_BACKTRACE", "1");
    // No test may reach a hub.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", std::env::temp_dir().join("anyfleet-no-hub"));
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; a server that starts after all is killed after three minutes.
fn run(arguments: &[&str]) -> Output {
    let mut child =
        serve().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("serve starts");
    let start = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        if start.elapsed() > Duration::from_secs(180) {
            child.kill().expect("kill");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("output")
}

/// The one line of a failure to start.
fn failure(arguments: &[&str]) -> String {
    let output = run(arguments);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
    assert!(error.starts_with("error: ") && error.ends_with('\n'), "{error}");
    error
}

/// A copy of the fixture, to be damaged.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for entry in std::fs::read_dir(fixture()).expect("the fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copy");
    }
    dir
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    #[cfg(not(feature = "pocket"))]
    assert!(failure(&[]).contains("--model DIR"));
    assert!(failure(&["--model", "/nonexistent/model"]).contains("/nonexistent/model"));
    assert!(failure(&["--model", "a\nb\u{1b}"]).contains("a\\nb"));
    assert!(failure(&["--model", &"x".repeat(5000)]).len() < 1500);
    let empty = tempfile::tempdir().expect("a directory");
    assert!(failure(&["--model", &empty.path().to_string_lossy()]).contains("config.json"));
    let good = fixture().to_string_lossy().into_owned();
    for (device, reason) in [
        // A build without CUDA, a machine without its driver, and one without such a device.
        ("cuda:nonesuch", "cuda:nonesuch"),
        ("tpu", "does not exist; use auto, cpu, cuda, cuda:DEVICE, wgpu"),
        ("cpu:1", "does not exist"),
        // A build without wgpu, a machine without Vulkan, and one without such an adapter.
        ("wgpu:nonesuch", "wgpu"),
    ] {
        let line = failure(&["--model", &good, "--device", device]);
        assert!(line.contains(reason), "{line}");
    }
    assert!(failure(&["--model", &good, "--dtype", "f8"]).contains("bf16"));
    assert!(failure(&["--model", &good, "--api-key", ""]).contains("empty"));
    assert!(failure(&["--model", &good, "--fleet-key", ""]).contains("empty"));
    assert!(failure(&["--model", &good, "--served-model-name", ""]).contains("--served-model-name"));
    assert!(failure(&["--model", &good, "--host", "256.0.0.1"]).contains("--host"));
    failure(&["--model", &good, "--kv-cache-memory", "100", "--max-model-len", "2048"]);
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("address").port().to_string();
    assert!(failure(&["--model", &good, "--port", &port]).contains(&port));
}

#[test]
fn damaged_checkpoints_are_refused_in_one_line() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let damage: [(&str, Damage); 6] = [
        ("model.safetensors", &|file| {
            let bytes = std::fs::read(file).expect("read");
            std::fs::write(file, &bytes[..bytes.len() / 2]).expect("write");
        }),
        ("model.safetensors", &|file| std::fs::write(file, [0xff; 64]).expect("write")),
        ("config.json", &|file| std::fs::write(file, "{\"architectures\": [\"GPT2LMHeadModel\"]}").expect("write")),
        ("config.json", &|file| std::fs::write(file, "{").expect("write")),
        ("tokenizer.json", &|file| std::fs::write(file, "{\"model\": {\"type\": \"BPE\"}}").expect("write")),
        ("tokenizer_config.json", &|file| {
            std::fs::write(file, "{\"chat_template\": \"{% for m in %}\"}").expect("write");
        }),
    ];
    for (name, damage) in damage {
        let dir = copy();
        damage(&dir.path().join(name));
        failure(&["--model", &dir.path().to_string_lossy(), "--port", "0"]);
    }
}

#[test]
fn usage_is_readable() {
    let output = run(&["--help"]);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success());
    for part in ["Model:", "Device:", "Server:", "Scheduling:", "Examples:", "--kv-cache-memory <SIZE>"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(failure(&["--port", "x"]).contains("'--port <PORT>'"));
    assert!(failure(&["--kv-cache-memory", "much"]).contains("64MiB"));
    assert!(failure(&["--modle", "x"]).contains("'--model'"), "a tip");
    assert!(failure(&["--model"]).ends_with("(see --help)\n"));
    let devices = run(&["--list-devices"]);
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(devices.starts_with("cpu ") && devices.contains("\nwgpu"), "{devices}");
    assert!(devices.contains("\ncuda"), "{devices}");
}

#[test]
fn a_check_prints_a_table_and_a_certificate() {
    let output = run(&["--check", "--device", "cpu"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("\nattention       f32 kv=bf16") && text.contains("\nwhole model     w=f32"), "{text}");
    let certificate = text.find("\n{").and_then(|start| serde_json::from_str(&text[start..]).ok());
    let certificate: serde_json::Value = certificate.expect("a certificate");
    assert_eq!(certificate["passed"], true);
    assert!(certificate["ops"].as_array().is_some_and(|ops| ops.len() > 20), "{certificate}");
    assert_eq!(certificate["models"].as_array().map(Vec::len), Some(2));
    assert!(failure(&["--check", "--device", "wgpu:nonesuch"]).contains("wgpu"));
}

/// A server that is up, and everything it printed.
struct Running {
    child: Child,
    banner: String,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let model = fixture();
        let model = model.to_string_lossy();
        let model = ["--model", &model, "--port", "0", "--dtype", "f32", "--kv-cache-memory", "8MiB"];
        Self::wait(serve().args(model).args(arguments))
    }

    /// Starts it and waits until requests are answered.
    fn wait(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("serve starts");
        let mut banner = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        while !banner.contains("\ntry ") {
            assert_ne!(out.read_line(&mut banner).expect("read"), 0, "it ended: {banner}");
        }
        child.stdout = Some(out.into_inner());
        Running { child, banner }
    }

    fn value(&self, label: &str) -> &str {
        let line = self.banner.lines().find_map(|line| line.strip_prefix(label));
        line.unwrap_or_else(|| panic!("no {label} in {}", self.banner)).trim()
    }

    fn connect(&self) -> TcpStream {
        let address = self.value("listening").strip_prefix("http://").expect("a URL");
        TcpStream::connect(address).expect("connect")
    }

    /// Runs the banner's line as a user would.
    fn run_the_line(&self) {
        let line = self.value("try");
        assert!(line.contains("/v1/chat/completions"), "the model has a chat template: {line}");
        // A shell and curl are on most machines; what they would send is checked on all of them.
        match Command::new("sh").args(["-c", &format!("{line} --silent --fail")]).output() {
            Ok(output) if output.status.code() != Some(127) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success() && text.contains("\"chat.completion\""), "{line}: {text}");
            }
            _ => println!("SKIPPED: running the banner's line, for want of a shell or curl"),
        }
    }

    /// The answer to a request, headers included.
    fn answer(&self, path: &str, body: &str) -> String {
        let mut stream = self.connect();
        ask(&stream, path, body);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        answer
    }

    #[cfg(unix)]
    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(killed.expect("kill runs").success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a body, or asks for a page where there is none.
fn ask(mut stream: &TcpStream, path: &str, body: &str) {
    let (method, length) = (if body.is_empty() { "GET" } else { "POST" }, body.len());
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .expect("send");
}

#[test]
fn the_banner_says_what_runs_and_its_curl_line_works() {
    let server = Running::start(&["--served-model-name", "it's tiny,alias"]);
    assert!(server.banner.contains("memory plan for "), "{}", server.banner);
    assert!(server.value("model").starts_with("it's tiny (llama, "));
    assert_eq!(server.value("dtype"), "f32");
    assert!(server.value("device").starts_with("cpu"));
    assert!(server.value("numerics").starts_with("anyfleet-"));
    server.run_the_line();
    for name in ["it's tiny", "alias"] {
        let body = format!("{{\"model\":\"{name}\",\"prompt\":\"Hi\",\"max_tokens\":2}}");
        let answer = server.answer("/v1/completions", &body);
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"model\":\"it's tiny\""), "{answer}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_finishes_streams_and_a_second_one_does_not() {
    let body = r#"{"model":"tiny-chat","prompt":"Hi","max_tokens":1500,"ignore_eos":true,"stream":true}"#;
    for name in ["TERM", "INT"] {
        let mut server = Running::start(&[]);
        let mut stream = server.connect();
        ask(&stream, "/v1/completions", body);
        stream.read_exact(&mut [0; 200]).expect("it has begun");
        server.signal(name);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("read");
        assert!(rest.contains("data: [DONE]"), "cut off: {rest}");
        assert_eq!(server.child.wait().expect("wait").code(), Some(0));
        let mut log = String::new();
        server.child.stderr.take().expect("piped").read_to_string(&mut log).expect("read");
        assert_eq!(log, "");
    }

    let mut server = Running::start(&["--max-num-seqs", "1"]);
    let streams: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    streams.iter().for_each(|stream| ask(stream, "/v1/completions", body));
    (&streams[0]).read_exact(&mut [0; 200]).expect("it has begun");
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(100));
    assert!(server.child.try_wait().expect("wait").is_none(), "it finishes the streams");
    server.signal("TERM");
    assert_eq!(server.child.wait().expect("wait").code(), Some(130));

    let mut server = Running::start(&["--shutdown-timeout", "0"]);
    let stream = server.connect();
    ask(&stream, "/v1/completions", body);
    (&stream).read_exact(&mut [0; 200]).expect("it has begun");
    server.signal("TERM");
    assert_eq!(server.child.wait().expect("wait").code(), Some(0), "the time limit is no failure");
}

#[cfg(feature = "pocket")]
#[test]
fn the_binary_alone_serves_the_bundled_model() {
    let empty = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let program = empty.path().join("program").with_extension(std::env::consts::EXE_EXTENSION);
    std::fs::copy(env!("CARGO_BIN_EXE_serve"), &program).expect("copy");
    for place in [&empty, &elsewhere] {
        let server = Running::wait(quiet(Command::new(&program)).args(["--port", "0"]).current_dir(place.path()));
        assert!(server.value("model").starts_with("pocket (") && server.value("model").ends_with(", bundled)"));
        server.run_the_line();
        let models = server.answer("/v1/models", "");
        assert!(models.starts_with("HTTP/1.1 200") && models.contains("\"id\":\"pocket\""), "{models}");
        let chat = r#"{"model":"pocket","messages":[{"role":"user","content":"Hi"}],"max_tokens":4}"#;
        let chat = server.answer("/v1/chat/completions", chat);
        assert!(chat.starts_with("HTTP/1.1 200") && chat.contains("\"model\":\"pocket\""), "{chat}");
    }
    assert_eq!(std::fs::read_dir(&elsewhere).expect("list").count(), 0, "nothing is written");
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("[default: the model pocket"));
}
