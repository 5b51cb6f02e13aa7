//! CUDA's libraries without a GPU (`libcuda.cpp`, `state.h`, `libnvrtc.cpp`, `libcublasLt.cpp`,
//! `libnccl.cpp`), and tests that run on them.
//!
//! CUDA is found by the loader of the system, when a process first asks for it: a test runs itself again as a process that
//! finds these libraries first.
// Each test has it as a module of its own, and not all of them ask for all of it.
#![allow(dead_code, reason = "each test program uses a part")]
use libloading::Library;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A name for each test, and a clean report.
#[allow(unused_macros, reason = "each test program uses a part")]
macro_rules! on_fake {
    ($($(#[$about:meta])* fn $name:ident($($setting:ident = $value:expr),*) $body:block)*) => {$(
        $(#[$about])*
        #[test]
        fn $name() {
            let settings: &[(&str, &str)] = &[$((stringify!($setting), $value)),*];
            if let Some(report) = on_fake(stringify!($name), settings, || $body) {
                report.assert_clean();
            }
        }
    )*};
}

const CUDA: &str = include_str!("libcuda.cpp");
const STATE: &str = include_str!("state.h");
pub const NVRTC: &str = include_str!("libnvrtc.cpp");
const CUBLASLT: &str = include_str!("libcublasLt.cpp");
const NCCL: &str = include_str!("libnccl.cpp");

/// Set in the process that runs a test.
const INSIDE: &str = "ANYFLEET_FAKE_DRIVER";
/// What it prints at last.
const DONE: &str = "ran on the fake driver";
/// The longest that a test may take: one that waits for itself is ended.
const LONGEST: Duration = Duration::from_secs(300);

/// What the driver saw of a process.
#[derive(Debug, Default)]
pub struct Report {
    /// Rules that were broken.
    pub wrong: Vec<String>,
    /// What was not freed.
    pub leaks: Vec<String>,
    /// Calls of each function.
    pub calls: BTreeMap<String, u64>,
}

impl Report {
    fn read(file: &Path) -> Report {
        let mut report = Report::default();
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            match line.split_once(' ') {
                Some(("wrong", rule)) => report.wrong.push(rule.to_owned()),
                Some(("leak", what)) => report.leaks.push(what.to_owned()),
                Some(("calls", rest)) => {
                    let (count, name) = rest.split_once(' ').expect("a count and a name");
                    report.calls.insert(name.to_owned(), count.parse().expect("a count"));
                }
                _ => panic!("not a line of a report: {line}"),
            }
        }
        report
    }

    /// # Panics
    /// When a rule was broken or something was not freed.
    pub fn assert_clean(&self) {
        assert!(self.wrong.is_empty() && self.leaks.is_empty(), "{:#?}\n{:#?}", self.wrong, self.leaks);
    }
}

/// Runs `body` in a process of its own on the fake driver with these settings (see `libcuda.cpp`), and gives what the driver
/// saw; nothing inside of that process, and where there is no C++ compiler. `test` is the test's name.
///
/// # Panics
/// When `body` does, or when the process ends in another way or not at all.
pub fn on_fake(test: &str, settings: &[(&str, &str)], body: impl FnOnce()) -> Option<Report> {
    if std::env::var_os(INSIDE).is_some() {
        body();
        println!("{DONE}");
        return None;
    }
    let fakes = fakes()?;
    Some(again(test, &fakes.join("cuda"), settings))
}

/// The same with another folder of libraries.
pub fn again(test: &str, libraries: &Path, settings: &[(&str, &str)]) -> Report {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (report, output) = (folder.path().join("report"), folder.path().join("output"));
    let file = File::create(&output).expect("a file for output");
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FAKE_CUDA_")) {
        command.env_remove(name);
    }
    let mut paths = vec![libraries.to_owned()];
    paths.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", std::env::join_paths(paths).expect("folders without colons"))
        .env("ANYFLEET_NVRTC", libraries.join("libnvrtc.so"))
        .env("ANYFLEET_CUBLASLT", libraries.join("libcublasLt.so"))
        .env("ANYFLEET_NCCL", libraries.join("libnccl.so"))
        .env("FAKE_CUDA_KERNELS", anyfleet_cuda::emulated_kernels().expect("kernels for the host"))
        .env("FAKE_CUDA_REPORT", &report)
        .env(INSIDE, "1")
        .envs(settings.iter().copied())
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file);
    let mut process = command.spawn().expect("the test as a process");
    let start = Instant::now();
    let status = loop {
        match process.try_wait().expect("a process that was started") {
            Some(status) => break Some(status),
            None if start.elapsed() > LONGEST => {
                process.kill().expect("a process that runs");
                process.wait().expect("a process that was ended");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let output = fs::read(&output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let report = Report::read(&report);
    let passed = status.is_some_and(|status| status.success()) && output.contains(DONE);
    let ended = status.map_or(format!("did not end within {LONGEST:?}"), |status| status.to_string());
    assert!(passed, "{test} on the fake driver: {ended}\n{output}\n{:#?}\n{:#?}", report.wrong, report.leaks);
    report
}

/// A folder with `cuda/lib*.so`; none, said loudly, where there is no C++ compiler.
pub fn fakes() -> Option<&'static Path> {
    static FAKES: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let compiler = compiler();
    if let Err(e) = Command::new(&compiler).arg("--version").output() {
        skipped(&format!("the fake driver needs a C++ compiler, and {compiler} does not run: {e}"));
        return None;
    }
    Some(FAKES.get_or_init(make).as_ref().unwrap_or_else(|reason| panic!("{reason}")))
}

/// Makes the folder of [`fakes`], or finds it.
fn make() -> Result<PathBuf, String> {
    let mut hasher = DefaultHasher::new();
    ([include_str!("mod.rs"), &compiler()], CUDA, STATE, NVRTC, CUBLASLT, NCCL).hash(&mut hasher);
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = all.join(format!("fake-driver-{:016x}", hasher.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    // Tests of several processes may do so at once: what is there is always whole.
    let draft = tempfile::tempdir_in(all).map_err(|e| e.to_string())?;
    let cuda = draft.path().join("cuda");
    fs::create_dir(&cuda).and_then(|()| fs::write(cuda.join("state.h"), STATE)).map_err(|e| e.to_string())?;
    compile(CUDA, &cuda.join("libcuda.so"))?;
    compile(NVRTC, &cuda.join("libnvrtc.so"))?;
    compile(CUBLASLT, &cuda.join("libcublasLt.so"))?;
    compile(NCCL, &cuda.join("libnccl.so"))?;
    let made = draft.keep();
    if fs::rename(&made, &folder).is_err() && fs::remove_dir_all(&made).is_err() {
        eprintln!("{} stays", made.display());
    }
    Ok(folder)
}

/// Compiles a library; the source stays beside it.
///
/// # Errors
/// What the compiler found.
pub fn compile(source: &str, library: &Path) -> Result<(), String> {
    let text = library.with_extension("cpp");
    fs::write(&text, source).map_err(|e| e.to_string())?;
    let mut command = Command::new(compiler());
    command.args(["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-w"]);
    command.arg(&text).arg("-o").arg(library).args(["-ldl", "-pthread"]);
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

fn skipped(reason: &str) {
    let required = std::env::var("ANYFLEET_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "cuda"), "ANYFLEET_REQUIRE={required}: {reason}");
    eprintln!("SKIPPED on cuda: {reason} (ANYFLEET_REQUIRE=cuda makes this a failure)");
}

/// The functions of CUDA's driver that the fake has.
pub fn functions() -> impl Iterator<Item = &'static str> {
    CUDA.lines().filter_map(|line| line.strip_prefix("API(")?.split_once(',').map(|(name, _)| name))
}

/// The driver of this process, for what tests ask of it besides CUDA.
pub struct Fake(Library);

impl Fake {
    /// # Panics
    /// Outside of [`on_fake`].
    pub fn new() -> Fake {
        // SAFETY: the library that the process has loaded or is about to; its initialiser reads the environment.
        Fake(unsafe { Library::new("libcuda.so") }.expect("the fake driver"))
    }

    fn ask<T>(&self, name: &str, text: &str) -> T {
        let text = CString::new(text).expect("text without NUL");
        // SAFETY: libcuda.cpp defines it so: of those without an argument, what is passed is ignored.
        unsafe { self.0.get::<unsafe extern "C" fn(*const c_char) -> T>(name.as_bytes()).expect(name)(text.as_ptr()) }
    }

    /// Calls of a function so far.
    pub fn calls(&self, function: &str) -> u64 {
        self.ask("anyfleet_fake_calls", function)
    }

    /// Copies, records and launches that wait.
    pub fn waiting(&self) -> u64 {
        self.ask("anyfleet_fake_waiting", "")
    }

    /// Rules that were broken and kinds of things that were not freed.
    pub fn faults(&self) -> u64 {
        self.ask("anyfleet_fake_faults", "")
    }

    /// Lets `<function>:<n>[:<code>][:sticky]` fail from now on, and nothing else.
    pub fn fail(&self, rule: &str) {
        self.ask("anyfleet_fake_fail", rule)
    }
}
