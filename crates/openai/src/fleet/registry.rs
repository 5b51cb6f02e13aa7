//! Answers that are being given, so that they can be suspended by their ids.
use super::StreamSnapshot;
use anyfleet::{Engine, RequestId};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long a caller may take to read what was said before its answer was suspended.
const PATIENCE: Duration = Duration::from_secs(5);

/// All answers of a server. Clones are handles to the same ones.
#[derive(Clone, Default)]
pub(crate) struct Registry {
    answers: Arc<Mutex<HashMap<String, Arc<Answering>>>>,
}

/// One answer.
#[derive(Default)]
pub(crate) struct Answering {
    suspended: AtomicBool,
    /// Its prompts that are with the engine.
    requests: Mutex<Vec<RequestId>>,
    /// How it ended, once it has: with a snapshot if it was suspended.
    end: watch::Sender<Option<Option<Arc<StreamSnapshot>>>>,
}

/// Keeps an answer in the registry.
pub(crate) struct Entry {
    registry: Registry,
    id: String,
    answering: Arc<Answering>,
}

/// What became of an attempt to suspend an answer.
pub(crate) enum Outcome {
    Suspended(Arc<StreamSnapshot>),
    /// It ended before it could be suspended.
    Over,
    /// Its caller does not read.
    Stalled,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub fn enter(&self, id: &str) -> Entry {
        let answering = Arc::new(Answering::default());
        lock(&self.answers).insert(id.to_owned(), answering.clone());
        Entry { registry: self.clone(), id: id.to_owned(), answering }
    }

    pub fn find(&self, id: &str) -> Option<Arc<Answering>> {
        lock(&self.answers).get(id).cloned()
    }

    pub fn all(&self) -> Vec<(String, Arc<Answering>)> {
        lock(&self.answers).iter().map(|(id, answering)| (id.clone(), answering.clone())).collect()
    }
}

impl Answering {
    /// Ends the answer; its caller gets everything that was generated, then its snapshot.
    pub async fn suspend(&self, engine: &Engine) -> Outcome {
        let mut end = self.end.subscribe();
        self.suspended.store(true, Ordering::SeqCst);
        let requests = lock(&self.requests).clone();
        for request in requests {
            // One that is over has said so to its stream.
            let _ = engine.suspend_async(request).await;
        }
        match tokio::time::timeout(PATIENCE, end.wait_for(Option::is_some)).await {
            Ok(Ok(end)) => end.clone().flatten().map_or(Outcome::Over, Outcome::Suspended),
            Ok(Err(_)) => Outcome::Over,
            Err(_) => Outcome::Stalled,
        }
    }
}

impl Entry {
    /// Notes a prompt that the engine took; false if the answer was suspended meanwhile, and the prompt is to wait.
    pub fn started(&self, request: RequestId) -> bool {
        lock(&self.answering.requests).push(request);
        !self.is_suspended()
    }

    pub fn is_suspended(&self) -> bool {
        self.answering.suspended.load(Ordering::SeqCst)
    }

    /// Hands the snapshot to whoever suspended the answer.
    pub fn hand_over(&self, snapshot: &StreamSnapshot) {
        self.answering.end.send_replace(Some(Some(Arc::new(snapshot.clone()))));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.registry.answers).remove(&self.id);
        self.answering.end.send_if_modified(|end| end.is_none().then(|| *end = Some(None)).is_some());
    }
}
