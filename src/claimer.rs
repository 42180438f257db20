//! The claimer: takes outbox entries whose lease has expired, whichever worker held them, and hands them to the dispatcher.
//!
//! Emails and events are claimed apart, each as many as there is room for: an unavailable mail server delays no event.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use metrics::counter;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock;
use crate::engine::Engine;
use crate::outbox::{Outbox, Writer};
use crate::store::inspect::Index;
use crate::store::leases::{Claimed, DueQueue};
use crate::store::outbox::{Kind, Lease};
use crate::store::{Collection, Store, StoreError};

/// How often to look for due entries, at least.
const CLAIM_EVERY: Duration = Duration::from_secs(2);
/// How often to look for room for them.
const ROOM_EVERY: Duration = Duration::from_millis(100);
/// From how many documents entries are claimed at once.
const CLAIM_DOCUMENTS_MAX: usize = 256;
/// For how long after the database was unavailable emails are claimed late.
const LATE_CLAIMS_FOR: Duration = Duration::from_secs(60);
/// How late: whoever sent them before it was unavailable has marked them by then, or never will.
const LATE_CLAIMS_BY: TimeDelta = TimeDelta::seconds(10);
/// How often documents are tried again that nothing can be claimed from.
const RETRY_UNCLAIMABLE_EVERY: Duration = Duration::from_secs(60);
/// How many unclaimable documents are remembered as reported.
const REPORTED_MAX: usize = 10_000;

/// Claims due entries until it is told to stop.
#[derive(Debug)]
pub struct Claimer {
    /// Where to look.
    pub store: Store,
    /// Is told whether the database answers.
    pub engine: Engine,
    /// Where claimed entries go.
    pub outbox: Outbox,
    /// Tells how emails of earlier versions are recorded.
    pub writer: Arc<Writer>,
    /// The time between two looks, at most two seconds.
    pub every: Duration,
    /// How long claimed entries belong to this process.
    pub lease: Duration,
    /// The indexes that do not exist yet.
    pub missing_indexes: watch::Receiver<Vec<Index>>,
}

impl Claimer {
    /// Claims until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::join!(self.repeat(Kind::Event, &shutdown), self.repeat(Kind::Email, &shutdown));
    }

    async fn repeat(&self, kind: Kind, shutdown: &CancellationToken) {
        let mut queues = DueQueue::of(kind);
        let mut reported = HashSet::new();
        let mut rewound_at = Instant::now();
        let mut unavailable_at: Option<Instant> = None;
        while !shutdown.is_cancelled() {
            if rewound_at.elapsed() >= RETRY_UNCLAIMABLE_EVERY {
                rewound_at = Instant::now();
                queues.iter_mut().for_each(DueQueue::rewind);
            }
            if self.is_able() {
                // An email must not arrive twice; an event that does is recognized.
                let is_late = kind == Kind::Email && unavailable_at.is_some_and(|at| at.elapsed() < LATE_CLAIMS_FOR);
                let overdue_by = if is_late { LATE_CLAIMS_BY } else { TimeDelta::zero() };
                match self.claim_all(kind, overdue_by, &mut queues, &mut reported, shutdown).await {
                    Ok(()) => {}
                    Err(error @ (StoreError::Unavailable(_) | StoreError::TimedOut)) => {
                        unavailable_at = Some(Instant::now());
                        self.engine.report(&error);
                    }
                    Err(StoreError::Refused(error)) => {
                        tracing::error!(kind = kind.as_str(), error, "cannot search for due outbox entries");
                    }
                }
            }
            if kind == Kind::Event {
                // Whatever was claimed, the database may be there for reads only. Once for both kinds.
                self.engine.look().await;
            }
            tokio::select! {
                () = tokio::time::sleep(self.every.min(CLAIM_EVERY)) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Whether entries can be looked for without reading everything, and leased by a clock that is right.
    fn is_able(&self) -> bool {
        let is_indexed = !self.missing_indexes.borrow().iter().any(Index::is_of_outbox);
        is_indexed && self.engine.clock_offset().is_none()
    }

    /// Claims what is due, queue by queue in turns: a backlog in one does not hold up the others.
    async fn claim_all(
        &self,
        kind: Kind,
        overdue_by: TimeDelta,
        queues: &mut [DueQueue],
        reported: &mut HashSet<(Collection, String)>,
        shutdown: &CancellationToken,
    ) -> Result<(), StoreError> {
        let mut open: Vec<&mut DueQueue> = queues.iter_mut().collect();
        while !open.is_empty() {
            let mut still_open = Vec::new();
            for queue in open {
                let Some(room) = self.room(kind, shutdown).await else { return Ok(()) };
                let now = clock::now();
                let lease = Lease { holder: Uuid::new_v4(), until: now + self.lease };
                let claimed = self
                    .store
                    .claim(queue, room.min(CLAIM_DOCUMENTS_MAX), &lease, now - overdue_by, &|id, email| {
                        self.writer.identify(id, email)
                    })
                    .await?;
                report(queue.collection, &claimed, reported);
                counter!("offramp_claimed_total").increment(claimed.entries.len() as u64);
                self.store.give_back(&self.outbox.offer(claimed.entries).await).await;
                if claimed.goes_on {
                    still_open.push(queue);
                }
            }
            open = still_open;
        }
        Ok(())
    }

    /// Waits for room in the dispatcher. None: the program is stopping.
    async fn room(&self, kind: Kind, shutdown: &CancellationToken) -> Option<usize> {
        while !shutdown.is_cancelled() {
            match self.outbox.room(kind) {
                0 => tokio::time::sleep(ROOM_EVERY).await,
                room => return Some(room),
            }
        }
        None
    }
}

/// Reports what an operator should know: each document once.
fn report(collection: Collection, claimed: &Claimed, reported: &mut HashSet<(Collection, String)>) {
    if claimed.unreadable > 0 {
        tracing::error!(
            collection = collection.as_str(),
            entries = claimed.unreadable,
            "outbox entries cannot be read; they are kept for an operator (`offramp outbox list`)"
        );
    }
    for document in &claimed.unclaimable {
        if reported.len() >= REPORTED_MAX {
            reported.clear();
        }
        if reported.insert((collection, document.document_id.clone())) {
            let error = document.error;
            tracing::error!(
                collection = collection.as_str(),
                document = document.document_id,
                error,
                "due outbox entries cannot be claimed; trying again every minute"
            );
        }
    }
}
