//! Sent emails that are not marked yet: those that would be sent twice if this process were killed now. Their number is
//! bounded here; marking them is the marker's work.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::store::outbox::delivery::Mark;

/// How many emails may be sent and not yet marked.
pub const UNMARKED_EMAILS_MAX: usize = 256;

/// The sent emails that are not marked yet, shared by the email senders and the marker.
#[derive(Debug)]
pub(super) struct UnmarkedEmails {
    /// The ids of their entries. If the lease of one has expired and this process has claimed it again, it must not be sent
    /// again.
    entry_ids: Mutex<HashSet<String>>,
    permits: Arc<Semaphore>,
    /// How many flushes are late.
    late_flushes: watch::Sender<usize>,
}

impl Default for UnmarkedEmails {
    fn default() -> Self {
        Self {
            entry_ids: Mutex::default(),
            permits: Arc::new(Semaphore::new(UNMARKED_EMAILS_MAX)),
            late_flushes: watch::Sender::new(0),
        }
    }
}

impl UnmarkedEmails {
    /// Waits until one more email may be unmarked.
    pub(super) async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    /// Waits until no flush is late.
    pub(super) async fn no_late_flush(&self) {
        // An error would mean that the sender is gone, and the sender is our own field.
        drop(self.late_flushes.subscribe().wait_for(|&late| late == 0).await);
    }

    pub(super) fn insert(&self, entry_id: &str) {
        self.lock().insert(entry_id.to_owned());
    }

    pub(super) fn contains(&self, entry_id: &str) -> bool {
        self.lock().contains(entry_id)
    }

    pub(super) fn remove(&self, marks: &[Mark]) {
        let mut entry_ids = self.lock();
        for mark in marks {
            entry_ids.remove(&mark.entry_id);
        }
    }

    /// Counts a flush as late until the returned value is dropped: no email is sent meanwhile.
    pub(super) fn late_flush(&self) -> LateFlush<'_> {
        self.late_flushes.send_modify(|late| *late += 1);
        LateFlush(self)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.entry_ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flush that is late. See [`UnmarkedEmails::late_flush`].
pub(super) struct LateFlush<'a>(&'a UnmarkedEmails);

impl Drop for LateFlush<'_> {
    fn drop(&mut self) {
        self.0.late_flushes.send_modify(|late| *late -= 1);
    }
}
