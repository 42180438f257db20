//! Leases of outbox entries, as senders see them: how much time remains, whether that is enough to begin, and extending the
//! lease of an email that takes long.

use std::time::Duration;

use chrono::TimeDelta;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::store::Store;
use crate::store::outbox::entry::LeasedEntry;

/// The pause between two attempts to extend a lease while the database is unavailable.
const EXTEND_EVERY: Duration = Duration::from_secs(1);

/// How much of a lease must remain when sending begins, so that no other worker claims the entry before it is sent and
/// marked.
pub(super) fn reserve(lease: Duration) -> Duration {
    lease / 2
}

/// Whether enough of the lease remains to begin sending.
pub(super) fn suffices(leased: &LeasedEntry, reserve: Duration) -> bool {
    remaining(leased) >= reserve
}

/// The time until the lease of an entry expires; zero afterwards.
pub(super) fn remaining(leased: &LeasedEntry) -> Duration {
    let due = leased.entry.due.map(bson::DateTime::to_chrono);
    due.and_then(|due| (due - clock::now()).to_std().ok()).unwrap_or_default()
}

/// Extends the lease of an entry whenever only the reserve remains. Returns, with a reason, once the lease is lost.
pub(super) async fn keep_until_lost(store: &Store, leased: &LeasedEntry, lease: Duration) -> &'static str {
    let mut remaining = remaining(leased);
    loop {
        sleep(remaining.saturating_sub(reserve(lease))).await;
        match timeout(remaining.min(reserve(lease)), extend(store, leased, lease)).await {
            Ok(Some(extended_at)) => remaining = lease.saturating_sub(extended_at.elapsed()),
            Ok(None) => return "sending took longer than the lease, and another worker has claimed the email",
            Err(_) => return "sending took longer than the lease, which could not be extended",
        }
    }
}

/// Extends the lease of an entry, retrying while the database is unavailable. Returns the instant from which it runs again;
/// `None` when another worker has claimed the entry.
async fn extend(store: &Store, leased: &LeasedEntry, lease: Duration) -> Option<Instant> {
    loop {
        let extended_at = Instant::now();
        let until = clock::now() + TimeDelta::from_std(lease).unwrap_or(TimeDelta::MAX);
        match store.extend(leased, until).await {
            Ok(is_ours) => return is_ours.then_some(extended_at),
            Err(_) => sleep(EXTEND_EVERY).await,
        }
    }
}
