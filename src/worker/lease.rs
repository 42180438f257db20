//! Leases of outbox entries, as senders see them: how much time remains, whether that is enough to begin, and extending the
//! lease of an email that takes long.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::{sleep, timeout};

use super::database_clock::DatabaseClock;
use crate::store::Store;
use crate::store::outbox::entry::LeasedEntry;

/// The pause between two attempts to extend a lease while the database is unavailable.
const EXTEND_EVERY: Duration = Duration::from_secs(1);

/// How much of a lease must remain when sending begins, so that no other worker claims the entry before it is sent and
/// marked.
pub(super) fn reserve(lease: Duration) -> Duration {
    lease / 2
}

/// How much of a lease must remain when the content of an email is sent: then it cannot be taken back.
fn content_reserve(lease: Duration) -> Duration {
    lease / 4
}

/// Whether enough of the lease remains to begin sending.
pub(super) fn suffices(leased: &LeasedEntry, reserve: Duration, clock: &DatabaseClock) -> bool {
    remaining(leased, clock) >= reserve
}

/// The time until the lease of an entry expires; zero afterwards.
pub(super) fn remaining(leased: &LeasedEntry, clock: &DatabaseClock) -> Duration {
    leased.entry.due.map(|due| until(due.to_chrono(), clock)).unwrap_or_default()
}

fn until(expiry: DateTime<Utc>, clock: &DatabaseClock) -> Duration {
    (expiry - clock.now()).to_std().unwrap_or_default()
}

/// The lease of an email that is being sent.
pub(super) struct HeldLease<'a> {
    store: &'a Store,
    clock: &'a DatabaseClock,
    leased: &'a LeasedEntry,
    /// How long it lasts when it is extended.
    duration: Duration,
    /// When it expires, in milliseconds since 1970.
    expiry: AtomicI64,
}

impl<'a> HeldLease<'a> {
    pub(super) fn new(store: &'a Store, clock: &'a DatabaseClock, leased: &'a LeasedEntry, duration: Duration) -> Self {
        let expiry = leased.entry.due.map_or(0, bson::DateTime::timestamp_millis);
        Self { store, clock, leased, duration, expiry: AtomicI64::new(expiry) }
    }

    /// Whether the content may be sent. If this process or its machine stood still during the dialogue, another worker may
    /// have the email by now.
    pub(super) fn allows_content(&self) -> bool {
        self.clock.fault().is_none() && self.remaining() >= content_reserve(self.duration)
    }

    /// Extends the lease whenever only the reserve remains. Returns, with a reason, once it is lost.
    pub(super) async fn keep_until_lost(&self) -> &'static str {
        loop {
            let remaining = self.remaining();
            sleep(remaining.saturating_sub(reserve(self.duration))).await;
            match timeout(self.remaining().min(reserve(self.duration)), self.extend()).await {
                Ok(true) => {}
                Ok(false) => return "sending took longer than the lease, and another worker has claimed the email",
                Err(_) => return "sending took longer than the lease, which could not be extended",
            }
        }
    }

    /// Extends the lease, retrying while the database is unavailable. Returns false when another worker has claimed the entry.
    async fn extend(&self) -> bool {
        loop {
            let expiry = self.clock.now() + TimeDelta::from_std(self.duration).unwrap_or(TimeDelta::MAX);
            match self.store.extend(self.leased, expiry).await {
                Ok(is_ours) => {
                    if is_ours {
                        self.expiry.store(expiry.timestamp_millis(), Ordering::Relaxed);
                    }
                    return is_ours;
                }
                Err(_) => sleep(EXTEND_EVERY).await,
            }
        }
    }

    fn remaining(&self) -> Duration {
        let expiry = DateTime::from_timestamp_millis(self.expiry.load(Ordering::Relaxed));
        expiry.map(|expiry| until(expiry, self.clock)).unwrap_or_default()
    }
}
