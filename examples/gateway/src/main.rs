//! `gateway`: one OpenAI-compatible address before a fleet of servers, of which any may go away in the middle of an
//! answer.
//!
//! ```text
//! cargo run --release -p gateway -- --config examples/gateway/fleet.toml
//! ```
use anyfleet_fleet::{Config, Gateway, router};
use axum::serve::ListenerExt;
use clap::Parser;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// One OpenAI-compatible address before a fleet of anyfleet servers. Running answers move to another server when theirs
/// goes away, in the same stream.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The fleet: see examples/gateway/fleet.toml
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one, which is printed
    #[arg(long, value_name = "PORT", default_value_t = 9000)]
    port: u16,
    /// Threads; one passes on tens of thousands of tokens a second, and more cost more for each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "error: {}", failure.replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let file = args.config.display();
    let text = std::fs::read_to_string(&args.config).map_err(|e| format!("{file} cannot be read: {e}"))?;
    let config = Config::from_toml(&text).map_err(|e| format!("{file}: {e}"))?;
    // One thread needs no other to be woken for every chunk.
    let mut runtime = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.worker_threads(args.threads.into()).enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start threads: {e}"))?;
    runtime.block_on(async {
        let gateway = Gateway::start(config).map_err(|e| format!("{file}: {e}"))?;
        let address = (args.host.as_str(), args.port);
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.map_err(|e| format!("cannot listen on {}:{}: {e}", args.host, args.port))?;
        let address = listener.local_addr().map_err(|e| e.to_string())?;
        // A closed standard output is no reason not to serve.
        let _ = writeln!(std::io::stdout(), "listening  http://{address}");
        let stop = async {
            let _ = tokio::signal::ctrl_c().await;
        };
        // A chunk must not wait until the client has acknowledged the one before.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        axum::serve(listener, router(gateway)).with_graceful_shutdown(stop).await.map_err(|e| e.to_string())
    })
}
