//! Whether the worker can work: the registry of its parts, and the pages `/livez` and `/readyz`.
//!
//! Each part of the worker has a [`ReadyHandle`], on which it reports whether it can work, and if not, why. The worker is ready
//! when all parts are. A part whose handle was dropped counts as not ready, so a part that ended unexpectedly never looks alive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

/// The longest reason on `/readyz`, in characters: some errors list every address that was tried.
const REASON_CHARS_MAX: usize = 1_000;

/// The parts of the worker, and whether each can work. The parts are probed again for each request.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Probe>>>);

/// Asks a part whether it can work; the error says why not.
type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Reports the state of one part to [`Readiness`].
#[derive(Debug)]
pub struct ReadyHandle {
    readiness: Readiness,
    name: String,
    state: Arc<Mutex<Result<(), String>>>,
}

impl Readiness {
    /// Adds a part that reports its state. It is not ready at first.
    #[must_use]
    pub fn component(&self, name: &str) -> ReadyHandle {
        let state = Arc::new(Mutex::new(Err("starting".to_owned())));
        let reported = Arc::clone(&state);
        self.watch(name, move || locked(&reported).clone());
        ReadyHandle { readiness: self.clone(), name: name.to_owned(), state }
    }

    /// Adds a part that is probed.
    pub fn watch(&self, name: &str, probe: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        locked(&self.0).insert(name.to_owned(), Box::new(probe));
    }

    /// The state of each part, by its name.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, Result<(), String>> {
        locked(&self.0).iter().map(|(name, probe)| (name.clone(), probe())).collect()
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.states()).finish()
    }
}

impl ReadyHandle {
    pub fn ready(&self) {
        *locked(&self.state) = Ok(());
    }

    /// Only the first `REASON_CHARS_MAX` characters of the reason are kept.
    pub fn not_ready(&self, reason: &str) {
        *locked(&self.state) = Err(reason.chars().take(REASON_CHARS_MAX).collect());
    }

    /// Removes the part: other parts cover it from now on.
    pub fn retire(self) {
        locked(&self.readiness.0).remove(&self.name);
    }
}

impl Drop for ReadyHandle {
    fn drop(&mut self) {
        self.not_ready("stopped");
    }
}

/// Ignores poisoning: no code panics while it holds one of these locks, and the data is consistent after every statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `/livez` and `/readyz`.
pub(crate) fn router(readiness: Readiness) -> Router {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(readyz).with_state(readiness))
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    let parts = readiness.states();
    let ready = !parts.is_empty() && parts.values().all(Result::is_ok);
    let components: serde_json::Map<_, _> = parts
        .into_iter()
        .map(|(name, state)| match state {
            Ok(()) => (name, json!({ "ready": true })),
            Err(reason) => (name, json!({ "ready": false, "reason": reason })),
        })
        .collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!("{:#}\n", json!({ "ready": ready, "components": components }));
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_are_cut() {
        let readiness = Readiness::default();
        let part = readiness.component("mongodb");
        part.not_ready(&"long ".repeat(1_000));
        assert_eq!(readiness.states()["mongodb"].as_ref().unwrap_err().len(), REASON_CHARS_MAX);
    }

    #[test]
    fn a_part_that_ended_is_not_ready() {
        let readiness = Readiness::default();
        let part = readiness.component("lane payment.failure");
        part.ready();
        assert_eq!(readiness.states()["lane payment.failure"], Ok(()));
        drop(part);
        assert_eq!(readiness.states()["lane payment.failure"], Err("stopped".to_owned()));
    }
}
