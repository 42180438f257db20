//! Whether the database can be worked with: it accepts writes on a majority, and its clock agrees with ours.
//!
//! All lanes share one [`Availability`], so that one of them asks and the others wait for the answer. Nothing is decided
//! here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::database_clock::{ClockFault, DatabaseClock};
use crate::backoff::Backoff;
use crate::health::ReadyHandle;
use crate::outage::{Outage, seconds};
use crate::store::{Store, StoreError};

/// The delays, minimum and maximum, before a database that was unavailable is tried again.
pub(super) const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// The longest time between two checks.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// How long no operation may fail before an outage counts as over: with one shard unavailable, some operations fail and others do not.
const QUIET: Duration = Duration::from_secs(5);
/// The same for missing rights, which only some searches may need.
const QUIET_AFTER_DENIAL: Duration = Duration::from_secs(300);
/// Why a server that answers is unavailable: a write that changes nothing takes no time where writes are accepted at all.
const NO_WRITES: &str = "it answers, but accepts no writes: one that changes nothing was not done within 9 s. Is it locked \
                         (fsyncLock), or short of resources?";

/// What is known about the database. Clones share it.
#[derive(Clone, Debug)]
pub struct Availability {
    store: Store,
    ready: Arc<ReadyHandle>,
    /// Held by the one that asks whether the database is back.
    asking: Arc<Mutex<()>>,
    /// Compared with each check: leases and ends decided by a wrong clock would be wrong, too.
    clock: DatabaseClock,
    /// What the log was told of an outage, and of slow operations.
    outage: Arc<Outage>,
    slow: Arc<Outage>,
    /// When the database was last found unavailable.
    unavailable_at: Arc<watch::Sender<Option<Instant>>>,
    /// What the log was told of missing rights.
    denied: Arc<Outage>,
}

impl Availability {
    /// `ready` is the component of `/readyz`.
    #[must_use]
    pub fn new(store: Store, clock: DatabaseClock, ready: ReadyHandle) -> Self {
        Self {
            store,
            ready: Arc::new(ready),
            asking: Arc::default(),
            clock,
            outage: Arc::default(),
            slow: Arc::default(),
            unavailable_at: Arc::new(watch::Sender::new(None)),
            denied: Arc::default(),
        }
    }

    /// Checks until `shutdown`: each `every`, at least every 2 s. The database may be available for reads only, and there may
    /// be no message whose processing would find out.
    pub async fn keep_checking(self, every: Duration, shutdown: CancellationToken) {
        let checking = async {
            loop {
                sleep(every.min(CHECK_EVERY)).await;
                self.check().await;
            }
        };
        // Never ends by itself.
        shutdown.run_until_cancelled(checking).await;
    }

    /// Checks whether the database accepts writes wherever decisions are written, and whether its clock agrees with ours.
    pub async fn check(&self) {
        let writable = accepts_writes(self.store.check_writable().await);
        // Also where a right to write is missing: nobody needs one to ask for the time.
        let compared = self.compare_clocks().await;
        match writable.and(compared) {
            Ok(()) => self.answered(),
            // A missing right or an unavailable shard: the rest of the database may be available.
            Err(error) if !self.is_unavailable().await => self.report(&error),
            Err(_) => {}
        }
    }

    /// Waits until the database accepts writes and the clocks agree. One caller asks; the others wait for its answer.
    pub async fn wait_until_available(&self) {
        let _asking = self.asking.lock().await;
        let mut backoff = Backoff::new(RETRY_DELAYS);
        // A server that answers but rejects writes does not suffice: the wait would end at once, and the messages would be
        // released and redelivered again and again, which the broker counts.
        loop {
            let checking = async {
                accepts_writes(self.store.check_majority().await)?;
                self.compare_clocks().await
            };
            match checking.await {
                Ok(()) if self.clock.fault().is_none() => break,
                Ok(()) => self.answered(),
                Err(error) => self.report_unavailable(&error),
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// Checks, after an operation failed, whether the database rejects all writes.
    pub async fn is_unavailable(&self) -> bool {
        match accepts_writes(self.store.check_majority().await) {
            Ok(()) => false,
            Err(error) => {
                self.report_unavailable(&error);
                true
            }
        }
    }

    /// Whether the database was found unavailable within the last `period`.
    #[must_use]
    pub fn was_unavailable_within(&self, period: Duration) -> bool {
        self.unavailable_at.borrow().is_some_and(|at| at.elapsed() < period)
    }

    /// MongoDB's clock. While it is at fault, nothing is decided, claimed or sent.
    #[must_use]
    pub fn clock(&self) -> &DatabaseClock {
        &self.clock
    }

    /// Compares our clock with the database's.
    async fn compare_clocks(&self) -> Result<(), StoreError> {
        let compared = self.clock.compare(self.store.server_time().await?);
        if let Some(step) = compared.stepped {
            let seconds = step.num_seconds();
            tracing::warn!(seconds, "this machine's clock has jumped: it was set, or the machine was suspended");
        }
        match (compared.before, compared.now) {
            (Some(ClockFault::Wrong(_)), None) => {
                tracing::info!("this machine's clock agrees with MongoDB's again; processing continues");
            }
            (None | Some(ClockFault::Unknown | ClockFault::Stepped(_)), Some(fault)) => {
                tracing::error!("processing is paused: {fault}");
            }
            _ => {}
        }
        Ok(())
    }

    /// Records that the database answered: a majority of its servers has a write.
    pub(super) fn answered(&self) {
        if let Some(duration) = self.outage.ended_after(QUIET) {
            tracing::info!(unavailable_seconds = seconds(duration), "MongoDB is available again");
        }
        if let Some(duration) = self.slow.ended_after(QUIET) {
            tracing::info!(slow_seconds = seconds(duration), "MongoDB is no longer slow");
        }
        if self.denied.ended_after(QUIET_AFTER_DENIAL).is_some() {
            tracing::info!("MongoDB no longer denies access");
        }
        match self.clock.fault() {
            None => self.ready.ready(),
            Some(fault) => self.ready.not_ready(&fault.to_string()),
        }
    }

    /// Records that an operation failed. Unless it only timed out, this worker is not ready.
    pub fn report(&self, error: &StoreError) {
        let reason = error.reason();
        // A server that aborts a slow operation is available.
        if *error == StoreError::TimedOut {
            if self.slow.failed(&reason) {
                tracing::warn!(error = reason, "MongoDB is slow; retrying");
            }
        } else if matches!(error, StoreError::Denied(_)) {
            if self.denied.failed(&reason) {
                tracing::error!(error = reason, "MongoDB denies access; retrying");
            }
            self.ready.not_ready(&reason);
        } else {
            if self.outage.failed(&reason) {
                tracing::warn!(error = reason, "MongoDB is unavailable; retrying");
            }
            self.ready.not_ready(&reason);
        }
    }

    fn report_unavailable(&self, error: &StoreError) {
        self.report(error);
        if matches!(error, StoreError::Unavailable(_) | StoreError::Denied(_)) {
            self.unavailable_at.send_replace(Some(Instant::now()));
        }
    }
}

/// A server that ends an empty write because of its duration does not accept writes.
fn accepts_writes(checked: Result<(), StoreError>) -> Result<(), StoreError> {
    checked.map_err(|error| match error {
        StoreError::TimedOut => StoreError::Unavailable(NO_WRITES.to_owned()),
        error => error,
    })
}
