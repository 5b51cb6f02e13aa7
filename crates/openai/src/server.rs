//! Serves a router on a listener until it is told to stop.
//!
//! `axum::serve` would do but for three things: connections that never send their headers are closed,
//! small writes are not delayed, and while requests are finished at shutdown new ones still get an
//! answer, a 503, instead of a refused connection.
use crate::ServerState;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Time a client has to send a request's headers, and that an idle connection is kept.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);
/// Rest after a failed accept, which most likely means too many open files.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Every request in flight was answered in full.
    Complete,
    /// Some were cut off at the time limit.
    TimedOut,
}

/// Answers connections until `stop` completes, then drains `state`, waits for the requests in flight,
/// at most `patience`, and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    state: ServerState,
    stop: impl Future<Output = ()>,
    patience: Duration,
) -> Shutdown {
    let connections = GracefulShutdown::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            stream = accept(&listener) => {
                let connection = builder().serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
                // An error here is a client that went away or spoke no HTTP.
                tokio::spawn(connections.watch(connection));
            }
        }
    }
    state.drain();
    tracing::info!("shutting down: requests in flight have {} s to finish", patience.as_secs());
    let finished = tokio::time::timeout(patience, connections.shutdown());
    let mut finished = pin!(finished);
    loop {
        tokio::select! {
            biased;
            result = &mut finished => return if result.is_ok() { Shutdown::Complete } else { Shutdown::TimedOut },
            stream = accept(&listener) => {
                let service = TowerToHyperService::new(router.clone());
                tokio::spawn(builder().keep_alive(false).serve_connection(TokioIo::new(stream), service));
            }
        }
    }
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it a token may wait for the acknowledgement of the one before. It cannot fail
                // in a way that matters.
                let _ = stream.set_nodelay(true);
                return stream;
            }
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
