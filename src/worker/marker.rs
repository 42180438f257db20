//! The marker: writes into the documents what became of their outbox entries, many in one statement.
//!
//! An email is marked at once, unless many were marked just before: then it shares the next statement. While the database is
//! unavailable, marks wait here, and the senders wait with them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::companions::Companions;
use super::flush_pace::FlushPace;
use super::mail_server::MailServer;
use super::unmarked::UnmarkedEmails;
use crate::backoff::Backoff;
use crate::outage::{Outage, seconds};
use crate::store::outbox::delivery::Mark;
use crate::store::{Store, StoreError};

/// How many published events may wait for the marker. Unlike an email, an event may be repeated: it has the same id.
pub(super) const UNMARKED_EVENTS_MAX: usize = 512;
/// How many entries one flush marks.
const FLUSH_MAX: usize = 256;
/// How many flushes may be under way.
const FLUSHES_MAX: usize = 8;
/// No email is sent while a flush takes longer than this: if this process were killed before the database answers, each email
/// would be sent twice.
const FLUSH_LATE_AFTER: Duration = Duration::from_millis(40);
/// How many marks may wait because a part of the database (a shard) is unavailable.
pub(super) const ASIDE_MAX: usize = 1_024;
/// The delays, minimum and maximum, before marks are written again.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(2));

/// An email that was tried.
pub(super) struct TriedEmail {
    pub(super) mark: Mark,
    /// Whether events of the same change are in flight.
    pub(super) has_events: bool,
    /// Its room in [`UnmarkedEmails`], until the mark is written.
    pub(super) permit: OwnedSemaphorePermit,
}

/// An event that was tried.
pub(super) struct TriedEvent {
    pub(super) mark: Mark,
    /// Whether emails of the same change are in flight.
    pub(super) has_emails: bool,
}

/// Collects marks and flushes them.
pub(super) struct Marker {
    emails: Option<async_channel::Receiver<TriedEmail>>,
    events: Option<async_channel::Receiver<TriedEvent>>,
    flusher: Flusher,
    /// See [`Flusher::flush`].
    aside: async_channel::Sender<Mark>,
    mail_server: Arc<MailServer>,
    companions: Companions,
}

impl Marker {
    pub(super) fn new(
        emails: async_channel::Receiver<TriedEmail>,
        events: async_channel::Receiver<TriedEvent>,
        flusher: Flusher,
        aside: async_channel::Sender<Mark>,
        mail_server: Arc<MailServer>,
    ) -> Self {
        let companions = Companions::default();
        Self { emails: Some(emails), events: Some(events), flusher, aside, mail_server, companions }
    }

    /// Marks entries until all senders have ended and everything is marked.
    pub(super) async fn run(mut self) {
        let mut batch = Batch::default();
        let mut flushes = JoinSet::new();
        let mut pace = FlushPace::new(Instant::now());
        loop {
            if self.emails.is_none() && self.events.is_none() {
                batch.marks.extend(self.companions.take_all());
                if batch.marks.is_empty() && flushes.is_empty() {
                    return;
                }
            }
            let has_room = batch.marks.len() < FLUSH_MAX;
            let may_flush = !batch.marks.is_empty() && flushes.len() < FLUSHES_MAX;
            let flush_at = may_flush.then(|| pace.next(batch.has_emails()));
            tokio::select! {
                received = receive(&mut self.emails), if has_room => if let Some(tried) = received {
                    if tried.has_events {
                        batch.marks.extend(self.companions.take(&tried.mark));
                    }
                    batch.marks.push(tried.mark);
                    batch.permits.push(tried.permit);
                },
                received = receive(&mut self.events), if has_room => if let Some(TriedEvent { mark, has_emails }) = received {
                    let waits = has_emails && !self.mail_server.is_unavailable();
                    batch.marks.extend(if waits { self.companions.park(mark, Instant::now()) } else { Some(mark) });
                },
                () = wait_until(self.companions.next_deadline()), if has_room => {
                    batch.marks.extend(self.companions.take_overdue(Instant::now()));
                }
                () = wait_until(flush_at) => {
                    pace.begin(Instant::now(), batch.has_emails());
                    let batch = std::mem::take(&mut batch);
                    flushes.spawn(self.flusher.clone().flush(batch, self.aside.clone()));
                }
                Some(ended) = flushes.join_next() => {
                    // A panic is a bug. Ending here ends the senders, and they end the worker.
                    if ended.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Marks that are written together.
#[derive(Default)]
struct Batch {
    marks: Vec<Mark>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Batch {
    fn has_emails(&self) -> bool {
        !self.permits.is_empty()
    }
}

/// Writes marks, retrying while the database is unavailable.
#[derive(Clone)]
pub(super) struct Flusher {
    pub(super) store: Store,
    pub(super) unmarked: Arc<UnmarkedEmails>,
    /// The duration of a lease.
    pub(super) lease: Duration,
}

impl Flusher {
    /// Writes the marks of a batch. Those that a part of the database cannot accept now go to `aside`.
    async fn flush(self, batch: Batch, aside: async_channel::Sender<Mark>) {
        let Batch { mut marks, permits } = batch;
        let began_at = Instant::now();
        let postponed = {
            let marking = self.mark(&marks);
            tokio::pin!(marking);
            match timeout(FLUSH_LATE_AFTER, &mut marking).await {
                Ok(postponed) => postponed,
                Err(_late) => {
                    let _late_flush = self.unmarked.late_flush();
                    marking.await
                }
            }
        };
        let again = take(&mut marks, postponed);
        if began_at.elapsed() < self.lease / 4 {
            self.unmarked.remove(&marks);
        } else {
            self.remove_after_lease(marks);
        }
        drop(permits);
        for mark in again {
            if aside.send(mark).await.is_err() {
                return;
            }
        }
    }

    /// Returns the positions of the marks that must be written again, in ascending order.
    async fn mark(&self, marks: &[Mark]) -> Vec<usize> {
        let mut backoff = Backoff::new(RETRY_DELAYS);
        let outage = Outage::default();
        loop {
            match self.store.mark(marks).await {
                Ok(postponed) => {
                    if let Some(duration) = outage.ended() {
                        tracing::info!(unavailable_seconds = seconds(duration), "sent entries can be marked again");
                    }
                    return postponed;
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::Denied(_) | StoreError::TimedOut)) => {
                    if outage.failed(&error.to_string()) {
                        tracing::warn!(%error, entries = marks.len(), "cannot mark sent entries; retrying");
                    }
                    sleep(backoff.next_delay()).await;
                }
                Err(StoreError::Permanent(error)) => {
                    tracing::error!(%error, entries = marks.len(), "MongoDB rejects the marks of sent entries; they may be sent again");
                    return Vec::new();
                }
            }
        }
    }

    /// Writes the marks that a part of the database could not accept, without delaying the others.
    pub(super) async fn flush_aside(self, aside: async_channel::Receiver<Mark>) {
        while let Ok(first) = aside.recv().await {
            let mut marks = vec![first];
            let mut backoff = Backoff::new(RETRY_DELAYS);
            while !marks.is_empty() {
                sleep(backoff.next_delay()).await;
                while marks.len() < ASIDE_MAX
                    && let Ok(mark) = aside.try_recv()
                {
                    marks.push(mark);
                }
                let postponed = self.mark(&marks).await;
                let again = take(&mut marks, postponed);
                self.remove_after_lease(marks);
                marks = again;
            }
        }
    }

    /// For entries that were marked late: this process may have claimed them again, and have them in its queue.
    fn remove_after_lease(&self, marks: Vec<Mark>) {
        let (unmarked, lease) = (Arc::clone(&self.unmarked), self.lease);
        tokio::spawn(async move {
            sleep(lease).await;
            unmarked.remove(&marks);
        });
    }
}

/// Receives from a channel. Returns `None` once, when the channel is closed and empty; then sets it to `None`, and from then on
/// never returns.
async fn receive<T>(channel: &mut Option<async_channel::Receiver<T>>) -> Option<T> {
    let Some(open) = channel else { return std::future::pending().await };
    let item = open.recv().await.ok();
    if item.is_none() {
        *channel = None;
    }
    item
}

/// Removes the items at these positions, which must be in ascending order.
fn take<T>(items: &mut Vec<T>, positions: Vec<usize>) -> Vec<T> {
    positions.into_iter().rev().map(|position| items.swap_remove(position)).collect()
}

/// Waits until an instant; never returns without one.
async fn wait_until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
