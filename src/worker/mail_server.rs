//! What the email senders of a worker know about its mail server, together: whether it is available, how fast it accepts
//! emails, and what operators were told about it. No connection lives here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::pacer::Pacer;
use crate::advice;
use crate::outage::{Outage, seconds};
use offramp_mail::{SendError, SenderProblem};

/// How often the same problem of this worker as a sender is logged.
const REPORT_EVERY: Duration = Duration::from_secs(60 * 60);
/// The log says that an outage has ended when no connection has failed for this time: a server may accept one and refuse another.
const QUIET: Duration = Duration::from_secs(10);

/// The state of the mail server, shared by all connections to it.
#[derive(Debug)]
pub(super) struct MailServer {
    pub(super) pacer: Pacer,
    is_unavailable: AtomicBool,
    /// What the log was told of an outage.
    outage: Outage,
    /// How many emails are being sent, or were sent while the server was unavailable and wait for the backoff to end.
    in_flight: AtomicUsize,
    /// When each problem was last reported.
    reported: Mutex<HashMap<SenderProblem, Instant>>,
}

impl MailServer {
    /// Accepts at most `emails_per_second`; `None` means unlimited.
    pub(super) fn new(emails_per_second: Option<f64>) -> Self {
        Self {
            pacer: Pacer::new(emails_per_second),
            is_unavailable: AtomicBool::new(false),
            outage: Outage::default(),
            in_flight: AtomicUsize::new(0),
            reported: Mutex::default(),
        }
    }

    pub(super) fn is_unavailable(&self) -> bool {
        self.is_unavailable.load(Ordering::Relaxed)
    }

    pub(super) fn set_unavailable(&self, is_unavailable: bool) {
        self.is_unavailable.store(is_unavailable, Ordering::Relaxed);
        self.report_end();
    }

    /// Logs the end of an outage. Also called now and then while there is nothing to send.
    pub(super) fn report_end(&self) {
        if let Some(duration) = self.ended_outage(QUIET) {
            tracing::info!(unavailable_seconds = seconds(duration), "the mail server is available again");
        }
    }

    fn ended_outage(&self, quiet: Duration) -> Option<Duration> {
        if self.is_unavailable() { None } else { self.outage.ended_after(quiet) }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records that the server accepted an email.
    pub(super) fn accepted(&self) {
        if self.pacer.accepted() {
            tracing::info!("the mail server accepts emails at the full rate again");
        }
    }

    /// Logs why the server is unavailable, each reason once.
    pub(super) fn unavailable(&self, error: &SendError) {
        let error = advice::append(error.brief(), advice::send_error(error));
        if self.outage.failed(&error) {
            tracing::warn!(error, "the mail server is unavailable; emails wait");
        }
    }

    /// Records that the server wants fewer emails.
    pub(super) fn throttled(&self, error: &SendError) {
        if self.pacer.throttled() {
            tracing::warn!(error = error.brief(), "the mail server throttles; sending fewer emails per second");
        }
    }

    /// Logs, once per [`REPORT_EVERY`], what an operator can do about a server that rejects this worker.
    pub(super) fn report(&self, error: &SendError, problem: SenderProblem) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.get(&problem).is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
            reported.insert(problem, Instant::now());
            let advice = advice::sender_problem(problem);
            tracing::error!(
                error = error.brief(),
                "the mail server rejects this worker: {advice}; its emails are retried for a day, then kept for an operator"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_when_no_connection_is_refused() {
        let server = MailServer::new(None);
        let refused = || {
            server.set_unavailable(true);
            server.outage.failed("refused")
        };
        let accepted = |quiet| {
            server.is_unavailable.store(false, Ordering::Relaxed);
            server.ended_outage(quiet)
        };
        assert!(refused());
        assert_eq!(accepted(QUIET), None, "one connection works, and another has just failed");
        assert!(!refused(), "still the same outage");
        assert_eq!(server.ended_outage(Duration::ZERO), None, "the last attempt failed");
        assert!(accepted(Duration::ZERO).is_some());
        assert_eq!(accepted(Duration::ZERO), None, "it has ended already");
        assert!(refused(), "a new outage");
    }
}
