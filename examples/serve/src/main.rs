//! `serve`: one model behind an OpenAI-compatible HTTP API.
//!
//! The port is taken first, so a busy one is known before the weights are read; while the model
//! loads, requests are answered with a 503. Every failure to start is one line on standard error and
//! exit code 1.
mod args;
mod banner;
mod progress;
mod signals;
mod size;

use anyfleet::{DeviceSpec, Engine};
use anyfleet_openai::{ServerState, Shutdown, router, serve};
use args::Args;
use signals::Signals;
use std::any::Any;
use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;

/// A failure to start, for the user.
type Failure = String;

/// Requests are being answered.
static STARTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    one_line_panics();
    start_log();
    let outcome = std::panic::catch_unwind(|| run(&args::parse()?));
    match outcome.unwrap_or_else(|panic| Err(internal_error(&*panic))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "error: {}", one_line(&failure));
            ExitCode::FAILURE
        }
    }
}

/// A message as a line that is fit for a terminal: it quotes what the user gave, which may hold anything.
fn one_line(message: &str) -> String {
    const END: usize = 600;
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let characters: Vec<String> = message.trim().chars().map(escape).collect();
    match characters.len() {
        // What is wrong comes first and what to do comes last.
        n if n > 2 * END => format!("{} ... {}", characters[..END].concat(), characters[n - END..].concat()),
        _ => characters.concat(),
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    if args.list_devices {
        return banner::print(&banner::devices()).map_err(|e| e.to_string());
    }
    if args.check {
        return check(args);
    }
    let load = args.loader()?;
    let address = (args.host.as_str(), args.port);
    let listener = TcpListener::bind(address)
        .map_err(|e| format!("cannot listen on {}:{}: {e}; choose another --host or --port", args.host, args.port))?;
    listener.set_nonblocking(true).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // They move bytes; the cores are the model's.
        .worker_threads(args.io_threads())
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start threads: {e}"))?;
    let outcome = runtime.block_on(serve_until_stopped(args, listener, load));
    // A load that was interrupted must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

/// Holds the device to the references.
fn check(args: &Args) -> Result<(), Failure> {
    let device: DeviceSpec = args.device.parse()?;
    let gemm = args.gemm.parse()?;
    let bar = progress::CheckBar::new(&device.to_string());
    let certificate = anyfleet::check_device(&device, gemm, |what| bar.step(what)).map_err(|e| e.to_string())?;
    bar.finish();
    banner::print(&format!("{}\n{:#}\n", certificate.table(), certificate.json())).map_err(|e| e.to_string())?;
    match certificate.passed() {
        true => Ok(()),
        false => Err(format!("{device} computes wrong results; update its driver or use another --device")),
    }
}

async fn serve_until_stopped(
    args: &Args,
    listener: TcpListener,
    load: impl FnOnce() -> anyfleet::Result<Engine> + Send + 'static,
) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|e| format!("cannot listen for signals: {e}"))?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let state = args.state();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        // An error is a sender that is gone, which also means stop.
        let _ = stopped.await;
    };
    let server = serve(listener, router(state.clone()), state.clone(), stopped, args.shutdown_timeout());
    let server = tokio::spawn(server);

    let engine = tokio::select! {
        engine = start_engine(&state, load) => engine?,
        () = signals.next() => return Ok(()),
    };
    STARTED.store(true, Ordering::Release);
    let names = state.model_names().unwrap_or_default();
    // A closed standard output is no reason not to serve.
    let _ = banner::print(&banner::ready(&engine, names, address, args.api_key.is_some()));

    signals.next().await;
    let _ = stop.send(());
    tokio::select! {
        outcome = server => {
            if let Ok(Shutdown::TimedOut) = outcome {
                tracing::warn!("some streams were cut off after {} s", args.shutdown_timeout().as_secs());
            }
        }
        () = signals.next() => std::process::exit(130),
    }
    engine.shutdown();
    Ok(())
}

/// Loads the model, off the async threads, and sees that it answers.
async fn start_engine(
    state: &ServerState,
    load: impl FnOnce() -> anyfleet::Result<Engine> + Send + 'static,
) -> Result<Engine, Failure> {
    let engine = match tokio::task::spawn_blocking(load).await {
        Ok(result) => result.map_err(|e| e.to_string())?,
        Err(e) => {
            return Err(e.try_into_panic().map_or("loading was cancelled".into(), |panic| internal_error(&*panic)));
        }
    };
    state.attach(engine.clone()).await.map_err(|e| format!("the first generation failed: {e}"))?;
    Ok(engine)
}

fn internal_error(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("internal error: {}; please report it", text.unwrap_or("a panic without a message"))
}

/// A panic is a bug of ours, but a backtrace tells a user nothing. Before requests are answered, `main`
/// tells of those that nobody caught; later, each is a line of the log.
fn one_line_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if STARTED.load(Ordering::Acquire) {
            let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
            let message = internal_error(panic.payload());
            tracing::error!("{message}{place}");
        }
    }));
}

/// Warnings and errors go to standard error, more of them as `RUST_LOG` asks.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}
