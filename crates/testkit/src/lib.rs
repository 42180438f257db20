//! What every integration test needs: real servers under names of its own, worker processes, and waiting for conditions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    reason = "only tests use it"
)]

pub mod dkim;
pub mod facts;
pub mod html;
pub mod mails;
pub mod preview;
pub mod private;
pub mod process;
pub mod proxy;
pub mod rabbit;
pub mod samples;
pub mod smtp;
pub mod tls;
pub mod worker;
pub mod world;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long a condition may take to come true, on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The root of the repository.
pub fn repository() -> &'static Path {
    static ROOT: LazyLock<PathBuf> =
        LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap());
    &ROOT
}

/// A setting of the servers under test, with the default that the worker itself has.
pub fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Waits until `look` answers, and says `what` was awaited in vain otherwise.
#[track_caller]
pub fn eventually<T, F: Future<Output = Option<T>>>(what: &str, look: impl FnMut() -> F) -> impl Future<Output = T> {
    eventually_within(PATIENCE, what, look)
}

/// The same for what may take longer, or not so long.
#[track_caller]
pub fn eventually_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(begin.elapsed() < patience, "{caller}: waited {patience:?} in vain: {what}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
