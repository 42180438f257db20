//! Test support for everything that runs the program from outside: the integration tests, the chaos test, the email audit, the
//! benchmarks and the demo. Nothing here is part of the program.
//!
//! Servers: [`test_bed`] (a database and a broker prefix for one test), [`rabbit`] (the broker alone), [`private_servers`] and [`tls`]
//! (servers for one test), [`smtp_sink`] (a scripted SMTP server), [`proxy`] (network faults), [`machine_clock`] (a wrong clock).
//! Processes: [`process`], [`worker_process`], [`web_process`], [`preview_process`], [`http`], [`progress`]. Data: [`fixtures`], [`recording`]. Emails: [`emails`], [`email_facts`],
//! [`html`], [`dkim`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    clippy::new_without_default,
    reason = "for callers outside this repository, of which there are none"
)]

pub mod dkim;
pub mod email_facts;
pub mod emails;
pub mod fixtures;
pub mod html;
pub mod http;
pub mod machine_clock;
pub mod preview_process;
pub mod private_servers;
pub mod process;
pub mod progress;
pub mod proxy;
pub mod rabbit;
pub mod recording;
pub mod smtp_sink;
pub mod test_bed;
pub mod tls;
pub mod web_process;
pub mod worker_process;

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a condition may take to become true, on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The root of this repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/testkit is two folders below the root")
}

/// A setting of the servers under test, with the worker's own default.
pub fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

/// Runs the `main` of a test that is a program of its own.
pub fn run_program<T>(main: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let result = runtime.block_on(main);
    // Threads of lapin panic when the runtime shuts down.
    std::mem::forget(runtime);
    result
}

/// What a poll returns: whether the condition is true, or what was found, or why not.
pub trait Poll {
    type Found;

    /// # Errors
    /// Why nothing was found.
    fn found(self) -> Result<Self::Found, String>;
}

impl Poll for bool {
    type Found = ();

    fn found(self) -> Result<(), String> {
        self.then_some(()).found()
    }
}

impl<T> Poll for Option<T> {
    type Found = T;

    fn found(self) -> Result<T, String> {
        self.ok_or_else(|| "not yet".to_owned())
    }
}

impl<T> Poll for Result<T, String> {
    type Found = T;

    fn found(self) -> Self {
        self
    }
}

/// Polls until a condition is true, or something is found. Panics with `what` when that takes too long.
#[track_caller]
pub fn eventually<P: Poll, F: Future<Output = P>>(
    what: &str,
    poll: impl FnMut() -> F,
) -> impl Future<Output = P::Found> {
    eventually_within(PATIENCE, what, poll)
}

/// [`eventually`] with a time limit of its own.
#[track_caller]
pub fn eventually_within<P: Poll, F: Future<Output = P>>(
    patience: Duration,
    what: &str,
    mut poll: impl FnMut() -> F,
) -> impl Future<Output = P::Found> {
    let caller = std::panic::Location::caller();
    async move {
        let begin = Instant::now();
        loop {
            let why = match poll().await.found() {
                Ok(found) => return found,
                Err(why) => why,
            };
            assert!(begin.elapsed() < patience, "{caller}: timed out after {patience:?} waiting for {what} ({why})");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}
