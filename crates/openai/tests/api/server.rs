//! A server on a free port, in this process.
use anyfleet::{DTypeSpec, Engine, EngineBuilder};
use anyfleet_openai::{ServerState, ServerStateBuilder, Shutdown, router, serve};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub struct TestServer {
    pub address: SocketAddr,
    pub state: ServerState,
    pub runtime: Runtime,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Shutdown>>,
}

pub fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/parity/fixtures/tiny-chat")
}

/// What transformers made of the fixture.
pub fn expected() -> Value {
    let text = std::fs::read_to_string(fixture().join("expected.json")).expect("expected.json");
    serde_json::from_str(&text).expect("JSON")
}

pub fn builder() -> EngineBuilder {
    Engine::builder(fixture().to_string_lossy()).dtype(DTypeSpec::F32).kv_cache_bytes(8 << 20)
}

impl TestServer {
    /// A server that has no engine yet.
    pub fn loading(settings: ServerStateBuilder, patience: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let state = settings.build();
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, serving) = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
            let address = listener.local_addr().expect("address");
            let stopped = async {
                let _ = stopped.await;
            };
            (address, tokio::spawn(serve(listener, router(state.clone()), state.clone(), stopped, patience)))
        });
        TestServer { address, state, runtime, stop: Some(stop), serving: Some(serving) }
    }

    pub fn attach(&self, engine: Engine) {
        self.runtime.block_on(self.state.attach(engine)).expect("the warm-up");
    }

    pub fn start(engine: EngineBuilder) -> (Self, Engine) {
        let engine = engine.build().expect("the fixture loads");
        let server = Self::loading(ServerState::builder().served_model_name("tiny"), Duration::from_secs(30));
        server.attach(engine.clone());
        (server, engine)
    }

    /// Begins the shutdown.
    pub fn stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    /// Waits for the end of the shutdown.
    pub fn wait(&mut self) -> Shutdown {
        self.runtime.block_on(self.serving.take().expect("waited for once")).expect("the server does not panic")
    }
}

/// The server that tests share which change nothing.
pub fn shared() -> SocketAddr {
    static SHARED: OnceLock<(TestServer, Engine)> = OnceLock::new();
    SHARED.get_or_init(|| TestServer::start(builder())).0.address
}

/// Waits until `condition` holds, at most 20 s.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
