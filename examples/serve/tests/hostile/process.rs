//! Runs `serve` within limits and judges how it ended.
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Address space of a server: several times what the small models take.
const ADDRESS_SPACE_KIB: u64 = 4 << 20;
/// A start takes a fraction of a second; this is a hang even where many tests share a core.
const HANG: Duration = Duration::from_secs(60);

/// How a start that did not serve ended.
#[derive(Debug)]
pub struct Outcome {
    /// `None` where it had to be killed.
    pub status: Option<ExitStatus>,
    pub stderr: String,
}

/// A server that answers requests.
pub struct Server {
    child: Child,
    stderr: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    /// `HOST:PORT`.
    pub address: String,
}

/// What became of a start.
pub enum Start {
    Serving(Server),
    Ended(Outcome),
}

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new("sh");
    // Where there is no such limit, the others still hold.
    let script = format!("ulimit -v {ADDRESS_SPACE_KIB} 2>/dev/null; exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_serve")).args(args);
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent");
    for name in ["ANYFLEET_API_KEY", "ANYFLEET_FLEET_KEY", "ANYFLEET_CPU", "HF_HUB_CACHE", "RUST_LOG", "RUST_BACKTRACE"]
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts `serve` with exactly these arguments and waits until it answers or ends.
pub fn start<S: AsRef<OsStr>>(args: &[S]) -> Start {
    let mut child = command(args).spawn().expect("serve starts");
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let (send, listening) = mpsc::channel();
    let text = Arc::new(Mutex::new(String::new()));
    let sink = text.clone();
    let readers = vec![
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("http://").filter(|_| line.starts_with("listening")) {
                    let _ = send.send(address.to_owned());
                }
            }
        }),
        std::thread::spawn(move || collect(stderr, &sink)),
    ];
    // The sender is dropped when standard output ends: when the process does.
    let address = listening.recv_timeout(HANG);
    let mut server = Server { child, stderr: text, readers, address: String::new() };
    match address {
        Ok(address) => {
            server.address = address;
            Start::Serving(server)
        }
        Err(_) => Start::Ended(server.wait()),
    }
}

fn collect(mut from: impl Read, sink: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        sink.lock().expect("unpoisoned").push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

impl Server {
    /// A server for this model, which has to start.
    pub fn of(model: &Path, more: &[&str]) -> Server {
        let mut args = vec!["--port", "0", "--model", model.to_str().expect("UTF-8")];
        args.extend_from_slice(more);
        match start(&args) {
            Start::Serving(server) => server,
            Start::Ended(outcome) => panic!("{args:?} did not serve: {outcome:?}"),
        }
    }

    /// What it has written to standard error.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("unpoisoned").clone()
    }

    /// Resident memory, where the system says.
    pub fn resident_mib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
    }

    /// Asks it to stop, and sees that it does and never complained.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
        let outcome = self.wait();
        assert!(outcome.status.is_some_and(|s| s.success()), "{outcome:?}");
        assert!(!broken(&outcome.stderr), "{outcome:?}");
    }

    fn wait(&mut self) -> Outcome {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("wait") {
                Some(status) => break Some(status),
                None if start.elapsed() > HANG => break None,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            reader.join().expect("reader");
        }
        Outcome { status, stderr: self.stderr() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether to tell of every case, with `HOSTILE_VERBOSE=1`.
pub fn verbose() -> bool {
    std::env::var_os("HOSTILE_VERBOSE").is_some()
}

/// Signs of a bug of ours.
pub fn broken(stderr: &str) -> bool {
    ["panicked", "internal error", "Internal error", "memory allocation of", "overflow"]
        .iter()
        .any(|s| stderr.contains(s))
}

/// What is wrong with a start that should have been refused by one line that says all of `says`.
fn complaint(start: Start, says: &[&str]) -> Option<String> {
    let outcome = match start {
        Start::Serving(_) => return Some("serves".into()),
        Start::Ended(outcome) => outcome,
    };
    let stderr = outcome.stderr.trim_end_matches('\n');
    if verbose() {
        println!("    {stderr:.400}");
    }
    let Some(status) = outcome.status else { return Some(format!("hangs: {stderr}")) };
    let one_line = stderr.lines().count() == 1 && stderr.starts_with("error: ") && stderr.len() < 1500;
    if status.code() != Some(1) || !one_line || broken(stderr) || stderr.chars().any(char::is_control) {
        return Some(format!("{status}: {stderr}"));
    }
    let missing: Vec<_> = says.iter().filter(|&&s| !stderr.contains(s)).collect();
    (!missing.is_empty()).then(|| format!("does not say {missing:?}: {stderr}"))
}

/// Starts that must be refused. All are run before a failure is reported.
#[derive(Default)]
pub struct Refusals {
    count: usize,
    failures: Vec<String>,
}

impl Refusals {
    /// A model that must be refused.
    pub fn model(&mut self, name: &str, model: &Path, says: &[&str]) {
        self.args(name, &["--port", "0", "--model", model.to_str().expect("UTF-8")], says);
    }

    /// Arguments that must be refused.
    pub fn args(&mut self, name: &str, args: &[&str], says: &[&str]) {
        self.count += 1;
        let begin = Instant::now();
        let complaint = complaint(start(args), says);
        if verbose() {
            println!("{:>8.0?} {name}", begin.elapsed());
        }
        self.failures.extend(complaint.map(|complaint| format!("{name}: {complaint}")));
    }

    /// Reports.
    pub fn done(self) {
        println!("{} starts were to be refused", self.count);
        assert!(self.failures.is_empty(), "{} of {}:\n{}", self.failures.len(), self.count, self.failures.join("\n"));
    }
}
