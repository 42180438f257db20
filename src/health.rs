//! Whether the worker can work. Each part holds a [`ReadyHandle`] and reports on it whether it is ready, and if not, why. The worker is
//! ready when all its parts are. A part that ends without a report counts as not ready: nothing dead looks alive.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The longest reason that `/readyz` gives, in characters. Some reasons list every address that was tried.
const REASON_CHARS_MAX: usize = 1_000;

/// Whether each part of the worker is ready. A part is asked each time somebody wants to know.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Probe>>>);

/// Asks a part whether it is ready. The error says why not.
type Probe = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A part's own entry in [`Readiness`].
#[derive(Debug)]
pub struct ReadyHandle {
    readiness: Readiness,
    name: String,
    state: Arc<Mutex<Result<(), String>>>,
}

impl Readiness {
    /// Adds a part that reports its own state. It is not ready yet.
    #[must_use]
    pub fn component(&self, name: &str) -> ReadyHandle {
        let state = Arc::new(Mutex::new(Err("starting".to_owned())));
        let reported = Arc::clone(&state);
        self.watch(name, move || locked(&reported).clone());
        ReadyHandle { readiness: self.clone(), name: name.to_owned(), state }
    }

    /// Adds a part that is asked for its state.
    pub fn watch(&self, name: &str, probe: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        locked(&self.0).insert(name.to_owned(), Box::new(probe));
    }

    /// The state of each part.
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

    /// `reason` is cut to `REASON_CHARS_MAX` characters.
    pub fn not_ready(&self, reason: &str) {
        *locked(&self.state) = Err(reason.chars().take(REASON_CHARS_MAX).collect());
    }

    /// Removes the part: others report for it from now on.
    pub fn retire(self) {
        locked(&self.readiness.0).remove(&self.name);
    }
}

impl Drop for ReadyHandle {
    fn drop(&mut self) {
        self.not_ready("stopped");
    }
}

/// Nothing panics while it holds one of the locks here, and the data is whole after every statement.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_ends_is_not_ready() {
        let readiness = Readiness::default();
        let lane = readiness.component("lane payment.failure");
        lane.ready();
        assert_eq!(readiness.states()["lane payment.failure"], Ok(()));
        drop(lane);
        assert_eq!(readiness.states()["lane payment.failure"], Err("stopped".to_owned()));
    }

    #[test]
    fn long_reasons_are_cut() {
        let readiness = Readiness::default();
        let database = readiness.component("mongodb");
        database.not_ready(&"long ".repeat(1_000));
        assert_eq!(readiness.states()["mongodb"].as_ref().unwrap_err().len(), REASON_CHARS_MAX);
    }
}
